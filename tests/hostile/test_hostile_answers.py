"""Answers that are meant to hang the grader, to end it, or to be run by it.

Each is judged by a grader that goes on to judge an honest answer. Nothing asserts on time: a
grader that does not come back within its own limit is an error of the run.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from hostile_cases import Case, each, load

from jobs.grader_guard import install_refusals, is_formula, literal_value, without_side_effects
from jobs.grading import Graders, Judgement, Verdict
from search.problem import Problem
from search.rows import NO_CLASS

pytestmark = [pytest.mark.unit, pytest.mark.timeout(600)]

LIMIT_S = 10.0
LANES = 2
MARK = "MARK"
HONEST = ("x+1", "1 + x")
# Of an answer: its judgement, and that of the honest one after it.
Judged: TypeAlias = dict[str, tuple[Judgement, Judgement]]


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that appears if any answer is run."""
    return tmp_path_factory.mktemp("ran") / MARK


@pytest.fixture(scope="module")
def judged(mark: Path) -> Judged:
    """All answers, each followed by an honest one in the same grading process."""
    cases = [*load("answers"), *load("scorers")]
    return asyncio.run(judge_all(cases, mark))


async def judge_all(cases: Sequence[Case], mark: Path) -> Judged:
    async with asyncio.TaskGroup() as tasks:
        lanes = [tasks.create_task(judge_lane(cases[lane::LANES], mark)) for lane in range(LANES)]
    return {name: pair for lane in lanes for name, pair in lane.result().items()}


async def judge_lane(cases: Sequence[Case], mark: Path) -> Judged:
    found: Judged = {}
    async with Graders(1, LIMIT_S) as graders:
        for case in cases:
            [hostile] = await graders.judge(problem_of(case, mark), [answer_of(case, mark)])
            honest = Problem(f"after {case.name}", "?", HONEST[0])
            [after] = await graders.judge(honest, [HONEST[1]])
            found[case.name] = (hostile, after)
    return found


def answer_of(case: Case, mark: Path) -> str:
    text = case.text("answer").replace(MARK, str(mark))
    return text + "\ud800" if case.get("surrogate") else text


def problem_of(case: Case, mark: Path) -> Problem:
    metadata = dict(case.get("metadata", {}))
    if "task" in case.values:
        metadata["source_dataset"] = case["task"]
    text = json.dumps(metadata).replace(MARK, str(mark))
    return Problem(case.name, "?", case.get("reference", "7").replace(MARK, str(mark)), text)


@each("answers")
def test_a_hostile_answer_is_one_marked_row(case: Case, judged: Judged, mark: Path) -> None:
    hostile, after = judged[case.name]
    assert str(hostile.verdict) in case["verdicts"]
    assert (hostile.answer_class == NO_CLASS) == (hostile.verdict is Verdict.NO_ANSWER)
    assert hostile.answer_class != 0
    assert after.verdict is Verdict.CORRECT
    assert not mark.exists()


@each("scorers")
def test_a_scorer_runs_no_code(case: Case, judged: Judged, mark: Path) -> None:
    hostile, after = judged[case.name]
    assert hostile.task_score == case["score"]
    assert after.verdict is Verdict.CORRECT
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "[x for x in (1,)]",
        "(1).real",
        "'a' * 10**9",
        "[0] * 9",
        "9 ** 9",
        "{1: 2}",
        "a",
        "lambda: 1",
        "f'{1}'",
        "1 if 1 else 2",
        "[*(1,)]",
        "1 < 2",
        "(",
        "(" * 300,
    ],
)
def test_what_is_no_literal_is_not_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        literal_value(text)


def test_literals_and_arithmetic_are_evaluated() -> None:
    assert literal_value(" [[1, -2.5], ('a',), None] ") == [[1, -2.5], ["a"], None]
    assert literal_value("((0x10 + 3) << 2) ^ ~1") == ((0x10 + 3) << 2) ^ ~1


def test_formulas_are_told_from_code() -> None:
    assert is_formula("5*x**2/2 + sin(x) - log(abs(y)) + C")
    code = [
        "x.y",
        "f(x)",
        "x[0]",
        "_x",
        "'x'",
        "exp(x=1)",
        "(lambda: 1)()",
        "x and y",
        "[x]",
        "x if",
    ]
    assert [text for text in code if is_formula(text)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('touch MARK')",
        "import subprocess; subprocess.run(['touch', 'MARK'])",
        "open('MARK', 'w')",
        "import os; os.open('MARK', os.O_CREAT)",
        "import os; os.mkdir('MARK')",
        "import os; os.symlink('/', 'MARK')",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "from pathlib import Path; Path('MARK').touch()",
        "import shutil; shutil.rmtree('MARK')",
        "import ctypes; ctypes.CDLL(None).system(b'touch MARK')",
    ],
)
def test_the_second_line_refuses_what_code_would_do(code: str, mark: Path) -> None:
    install_refusals()
    with pytest.raises(PermissionError, match="grading must not do this"), without_side_effects():
        exec(code.replace(MARK, str(mark)))
    assert not mark.exists()
