"""Grading: verdicts, classes, and answers that are meant to break the grader."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from jobs.grader_process import MathChecker, hostile, normalised, plain_number, verdict_at_sight
from jobs.grading import REFERENCE_CLASS, Graders, GradingError, Judgement, Verdict
from search.problem import Problem

pytestmark = pytest.mark.unit

PATIENT_S = 60.0
SLOW, DEADLY, STUBBORN = "slow_answer", "deadly_answer", "stubborn_answer"
WAITING = "waiting_answer"


class TrickyChecker(MathChecker):
    """math-verify, with answers that hang it, and answers that say whom to kill."""

    def verdict(self, reference: str, answer: str) -> Verdict:
        if SLOW in answer:
            time.sleep(3600)
        if WAITING in answer:
            time.sleep(1.5)
        if DEADLY in answer:
            Path(answer.partition(":")[2]).write_text(str(os.getpid()))
            time.sleep(3600)
        if STUBBORN in answer:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verdict(reference, answer)


class BrokenChecker(MathChecker):
    """Cannot be started."""

    def __init__(self) -> None:
        raise RuntimeError("no such library")


def problem(reference: str, metadata: str = "{}") -> Problem:
    return Problem("p", "What is it?", reference, metadata)


def judge(reference: str, *answers: str, metadata: str = "{}") -> list[Judgement]:
    """The judgements of one fresh grader."""

    async def run() -> list[Judgement]:
        async with Graders(1, PATIENT_S) as graders:
            return await graders.judge(problem(reference, metadata), answers)

    return asyncio.run(run())


def verdicts(reference: str, *answers: str) -> list[str]:
    return [str(judgement.verdict) for judgement in judge(reference, *answers)]


def test_equal_forms_of_a_number_are_correct_and_share_the_reference_class() -> None:
    forms = ["1/2", r"\frac{1}{2}", "0.5", ".50", r"\dfrac{1}{2}", "$0.5$", r"\frac12"]
    found = judge("1/2", *forms)
    assert {judgement.verdict for judgement in found} == {Verdict.CORRECT}
    assert {judgement.answer_class for judgement in found} == {REFERENCE_CLASS}


def test_wrong_answers_are_grouped_by_meaning() -> None:
    found = judge("7", "1,000", "1000", r"1{,}000", "3", r"\sqrt{9}", "x+1", "1+x", "8")
    classes = [judgement.answer_class for judgement in found]
    assert {judgement.verdict for judgement in found} == {Verdict.INCORRECT}
    assert classes[0] == classes[1] == classes[2]
    assert classes[3] == classes[4]
    assert classes[5] == classes[6]
    assert len({classes[0], classes[3], classes[5], classes[7], REFERENCE_CLASS}) == 5


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        (r"\{1,2\}", r"\{2,1\}", "correct"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", "correct"),
        ("(1,2)", "(2,1)", "incorrect"),
        ("(1,2]", "(1,2]", "correct"),
        ("[0,1)", "(0,1]", "incorrect"),
        ("1,000", "1000", "correct"),
        (r"12\%", "12", "correct"),
        ("12%", "13", "incorrect"),
        ("1/3", "0.333333", "correct"),
        ("12", "1 2", "incorrect"),
        ("5", "x=5", "correct"),
        (r"\text{Evelyn}", "Evelyn", "correct"),
    ],
)
def test_kinds_of_answers(reference: str, answer: str, verdict: str) -> None:
    assert verdicts(reference, answer) == [verdict]


def test_an_empty_answer_has_no_class() -> None:
    found = judge("7", "", "  ")
    assert found == [Judgement(Verdict.NO_ANSWER, -1, None)] * 2


def test_hostile_answers_never_reach_math_verify() -> None:
    tower, deep, long = "9**9**9", "(" * 60 + "1" + ")" * 60, "1+" * 1500 + "1"
    found = judge("7", tower, "9^{9^{9^9}}", deep, long, "(10^8)!+100000000!", "7")
    assert [f.verdict for f in found[:5]] == [Verdict.PARSE_ERROR] * 5
    assert len({f.answer_class for f in found}) == 6
    assert found[5].verdict is Verdict.CORRECT


def test_harmless_powers_are_not_hostile() -> None:
    assert not any(hostile(text) for text in ("e^{x^2}", "2^{2024}", "x^{y^{z}}", "10^{10}", "5!"))


def test_what_cannot_be_read_is_a_class_of_its_own() -> None:
    found = judge("7", "???", "? ??", "@@", r"\frac{")
    assert {f.verdict for f in found} == {Verdict.PARSE_ERROR}
    assert found[0].answer_class == found[1].answer_class
    assert len({f.answer_class for f in found}) == 3


def test_classes_stay_the_same_across_calls_and_orders() -> None:
    async def run() -> None:
        async with Graders(2, PATIENT_S) as graders:
            first = await graders.judge(problem("7"), ["3", "7", "5", "x"])
            again = await graders.judge(problem("7"), ["x", r"\sqrt{25}", "9", "5", "7", "3"])
            assert [again[i] for i in (5, 4, 3, 0)] == first
            assert again[1].answer_class == first[2].answer_class
            assert again[2].answer_class == 4

    asyncio.run(run())
    one, other = judge("7", "3", "5", "x"), judge("7", "x", "5", "3")
    assert one == other[::-1]


def test_a_slow_answer_times_out_and_the_next_is_graded() -> None:
    async def run() -> list[Judgement]:
        async with Graders(1, 1.0, checker=TrickyChecker) as graders:
            return await graders.judge(problem("x+1"), [SLOW, "1 + x", "x+2", "1+x"])

    found = asyncio.run(run())
    assert [f.verdict for f in found] == ["timeout", "correct", "incorrect", "correct"]
    assert found[0].answer_class > REFERENCE_CLASS


def test_an_answer_that_waits_for_the_processor_is_graded() -> None:
    """The limit is of what grading computes: on a busy machine it takes longer."""

    async def run() -> list[Judgement]:
        async with Graders(1, 1.0, checker=TrickyChecker) as graders:
            return await graders.judge(problem("x+1"), [WAITING])

    [found] = asyncio.run(run())
    assert found.verdict is not Verdict.TIMEOUT


def test_a_child_killed_midway_is_replaced(tmp_path: Path) -> None:
    async def run() -> Judgement:
        async with Graders(1, PATIENT_S, checker=TrickyChecker) as graders:
            pid_file = tmp_path / "pid"
            asked = asyncio.create_task(graders.judge(problem("x+1"), [f"{DEADLY}:{pid_file}"]))
            for _ in range(2):
                os.kill(await asyncio.to_thread(_pid_in, pid_file), signal.SIGKILL)
            [judgement] = await asked
            assert (await graders.judge(problem("x+1"), ["1+x"]))[0].verdict is Verdict.CORRECT
            return judgement

    assert asyncio.run(run()).verdict is Verdict.PARSE_ERROR


def _pid_in(path: Path) -> int:
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    pid = int(path.read_text())
    path.unlink()
    return pid


def test_an_answer_that_ends_every_child_is_a_parse_error() -> None:
    async def run() -> list[Judgement]:
        async with Graders(2, PATIENT_S, checker=TrickyChecker) as graders:
            return await graders.judge(problem("x+1"), [STUBBORN, "y"])

    assert [f.verdict for f in asyncio.run(run())] == ["parse_error", "incorrect"]


def test_a_cancelled_question_leaves_no_stale_reply() -> None:
    async def run() -> list[Judgement]:
        async with Graders(1, PATIENT_S, checker=TrickyChecker) as graders:
            asked = asyncio.create_task(graders.judge(problem("x+1"), [SLOW]))
            await asyncio.sleep(0.05)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            return await graders.judge(problem("x+1"), ["1+x", "y"])

    assert [f.verdict for f in asyncio.run(run())] == ["correct", "incorrect"]


def test_no_grader_at_all_is_one_clear_error() -> None:
    async def run() -> None:
        async with Graders(1, PATIENT_S, checker=BrokenChecker) as graders:
            await graders.parses("1")

    with pytest.raises(GradingError, match="did not start"):
        asyncio.run(run())


def test_references_that_nothing_can_parse() -> None:
    async def run() -> list[bool]:
        async with Graders(1, PATIENT_S) as graders:
            references = ["7", r"\frac{1}{2}", "(1, 2]", "???", "", r"\frac{", "9**9**9"]
            return [await graders.parses(reference) for reference in references]

    assert asyncio.run(run()) == [True, True, True, False, False, False, False]


def test_an_unreadable_reference_makes_parse_errors() -> None:
    assert verdicts("???", "7", "") == ["parse_error", "no_answer"]


def test_the_task_scorer_is_asked_where_the_problem_names_its_task() -> None:
    metadata = json.dumps({"source_dataset": "chain_sum", "num_terms": 2})
    found = judge("1000", "1,000.0", "999", "", metadata=metadata)
    scores = [f.task_score for f in found]
    assert scores[0] == 1.0
    assert scores[1] is not None
    assert scores[1] < 1.0
    assert scores[2] == 0.0


@pytest.mark.parametrize("metadata", ['{"source_dataset": "no_such_task"}', "[]", "", "{", "{}"])
def test_other_metadata_gives_no_task_score(metadata: str) -> None:
    assert judge("7", "7", metadata=metadata)[0].task_score is None


def test_forgotten_problems_are_graded_anew() -> None:
    async def run() -> None:
        async with Graders(1, PATIENT_S, problems_kept=1) as graders:
            other = Problem("q", "", "8")
            assert (await graders.judge(problem("7"), ["8"]))[0].verdict is Verdict.INCORRECT
            assert (await graders.judge(other, ["8"]))[0].verdict is Verdict.CORRECT
            assert (await graders.judge(problem("7"), ["8"]))[0].verdict is Verdict.INCORRECT

    asyncio.run(run())


def test_classes_start_anew_once_a_problem_is_forgotten() -> None:
    async def run() -> tuple[int, ...]:
        async with Graders(1, PATIENT_S) as graders:
            first = await graders.judge(problem("7"), ["8"])
            second = await graders.judge(problem("7"), ["9"])
            graders.forget(problem("7"))
            graders.forget(problem("7"))
            third = await graders.judge(problem("7"), ["10"])
        return tuple(judgements[0].answer_class for judgements in (first, second, third))

    assert asyncio.run(run()) == (1, 2, 1)


def test_plain_numbers_are_exact() -> None:
    number = plain_number(normalised(r"-\frac{3}{4}"))
    assert number == plain_number("-0.75") == plain_number("-3/4")
    assert plain_number("1,00") is plain_number("1/0") is plain_number("1e5") is None
    assert verdict_at_sight("10", "10.000001") is None
    assert verdict_at_sight("10", "10.1") is Verdict.INCORRECT


def test_processes_that_started_before_the_loop_answer_in_it() -> None:
    async def parses(graders: Graders) -> bool:
        async with graders:
            return await graders.parses("4")

    with Graders(2, PATIENT_S).starting() as graders:
        assert asyncio.run(parses(graders))


def test_a_process_that_still_starts_ends_with_what_it_was_started_beside() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(ValueError, match="no such file"), Graders(2, PATIENT_S).starting():
        raise ValueError("no such file")
    assert not [
        child
        for child in psutil.Process().children()
        if child.pid not in before and "spawn_main" in " ".join(child.cmdline())
    ]
