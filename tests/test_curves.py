"""Curves: which rows a run gives, that they are right, and how intervals are clustered."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import curves
from jobs.curves import (
    PASS,
    SOLUTION_COLUMNS,
    Search,
    answers_in_parts,
    answers_of_parts,
    answers_table,
    best_votes,
    single_samples,
    summary,
)
from jobs.intervals import accuracy_interval
from search.rewards import Reduction
from search.schemas import ANSWERS, SOLUTIONS
from search.votes import Vote

pytestmark = pytest.mark.unit

Row = dict[str, Any]


def solution(subtree: int, answer: str, rewards: list[float], **columns: Any) -> Row:
    """A row of `SOLUTIONS`; the answer "7" is right, and each answer is its own class."""
    classes = {"7": 0, "": -1}
    verdict = {"7": "correct", "": "no_answer"}.get(answer, "incorrect")
    return {
        "problem_id": "p",
        "policy": "small",
        "strategy": "best_of_n",
        "n": 4,
        "branching": 1,
        "keep": 4,
        "variant": "",
        "subtree": subtree,
        "solution_id": f"{subtree}:0",
        "answer": answer,
        "answer_class": classes.get(answer, sum(map(ord, answer))),
        "verdict": verdict,
        "rewards": rewards,
    } | columns


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SOLUTIONS)


def four_samples(**columns: Any) -> list[Row]:
    answers, scores = ["7", "3", "7", ""], [0.2, 0.9, 0.3, 1.0]
    return [
        solution(place, answer, [0.5, score], **columns)
        for place, (answer, score) in enumerate(zip(answers, scores, strict=True))
    ]


def find(answers: pa.Table, **columns: Any) -> list[Row]:
    rows: list[Row] = answers.to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def only(answers: pa.Table, **columns: Any) -> Row:
    [row] = find(answers, **columns)
    return row


def test_best_of_n_gives_every_point_reduction_and_vote() -> None:
    answers = answers_table(table(four_samples()), None, run_seed=1)
    assert answers.schema.equals(ANSWERS, check_metadata=True)
    for problem_id in ("p", None):
        rows = find(answers, problem_id=problem_id)
        assert [row["n"] for row in rows] == [1] * 13 + [2] * 13 + [4] * 13
        assert all(row["keep"] == row["n"] and row["searched_n"] == 4 for row in rows)
        assert {row["branching"] for row in rows} == {1}
    kinds = {(row["reduction"], row["vote"]) for row in find(answers, n=4)}
    assert kinds == {(r, v) for r in Reduction for v in Vote} | {("none", PASS)}


def test_the_votes_at_full_n_are_those_of_the_solutions() -> None:
    answers = answers_table(table(four_samples()), None, run_seed=1)
    shown = {"problem_id": "p", "n": 4}
    best = only(answers, **shown, reduction="last", vote="max")
    assert (best["answer"], best["expected_correct"]) == ("3", 0.0)
    most = only(answers, **shown, reduction="min", vote="majority")
    assert (most["answer"], most["expected_correct"]) == ("7", 1.0)
    assert only(answers, **shown, vote=PASS)["expected_correct"] == 1.0
    assert only(answers, problem_id="p", n=1, vote=PASS)["expected_correct"] == 0.5
    assert all(row["answer"] == "" for row in find(answers, problem_id="p", n=2))
    assert all(row["ci_low"] is None for row in find(answers, problem_id="p"))


def test_majority_has_no_rewards() -> None:
    rows = [row | {"rewards": []} for row in four_samples(strategy="majority")]
    answers = answers_table(table(rows), None, run_seed=1)
    kinds = {(row["reduction"], row["vote"]) for row in answers.to_pylist()}
    assert kinds == {("none", "majority"), ("none", PASS)}


def test_dvts_counts_subtrees() -> None:
    answers = ["7", "7", "3", "", "3", "3", "7", "3"]
    shared = {"strategy": "dvts", "n": 8, "branching": 2, "keep": 1}
    rows = [
        solution(i // 2, answer, [i / 8], **shared, solution_id=f"{i // 2}:{i % 2}")
        for i, answer in enumerate(answers)
    ]
    found = answers_table(table(rows), None, run_seed=1)
    places = {(row["n"], row["branching"], row["keep"]) for row in found.to_pylist()}
    assert places == {(2, 2, 1), (4, 2, 1), (8, 2, 1)}
    at_two = only(found, problem_id="p", n=2, vote="majority", reduction="last")
    assert at_two["expected_correct"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    coverage = only(found, problem_id="p", n=2, vote=PASS)
    assert coverage["expected_correct"] == 0.5


def test_beam_has_one_point_and_may_have_fewer_solutions() -> None:
    shared = {"strategy": "beam", "n": 16, "branching": 4, "keep": 4}
    rows = [row | {"subtree": 0} for row in four_samples(**shared)]
    answers = answers_table(table(rows), None, run_seed=1)
    assert {(row["n"], row["keep"], row["searched_n"]) for row in answers.to_pylist()} == {
        (16, 4, 16)
    }


def test_a_single_sample_is_one_of_the_default_rule() -> None:
    ruled = [row | {"variant": "compat=search_and_learn"} for row in four_samples(n=8, keep=8)]
    points = summary(answers_table(table(ruled + four_samples()), None, run_seed=1))
    assert single_samples(points)["small"].variant == ""
    points = summary(answers_table(table(ruled), None, run_seed=1))
    assert single_samples(points)["small"].variant == "compat=search_and_learn"


def test_variants_are_searches_of_their_own() -> None:
    shared = {"strategy": "dvts", "n": 4, "branching": 2, "keep": 1}
    rows = [
        solution(place // 2, answer, [0.5], **shared, variant=variant)
        for variant, answers in (("", ["7", "7", "7", "7"]), ("lookahead=1", ["3", "3", "7", "3"]))
        for place, answer in enumerate(answers)
    ]
    answers = answers_table(table(rows), None, run_seed=1)
    of_means = [point for point in summary(answers) if point.vote == PASS and point.n == 2]
    assert {point.rule: point.expected_correct for point in of_means} == {
        "dvts": 1.0,
        "dvts lookahead=1": 0.5,
    }
    assert {rule for _, rule in best_votes(summary(answers))} == {"dvts", "dvts lookahead=1"}


def test_aggregates_are_means_with_intervals_over_problems() -> None:
    rows = four_samples()
    rows += [solution(i, "3", [0.5], problem_id="hard") for i in range(4)]
    rows += [solution(i, "7", [0.5], problem_id="easy") for i in range(4)]
    answers = answers_table(table(rows[::-1]), None, run_seed=1)
    row = only(answers, problem_id=None, n=1, vote=PASS)
    found = (row["expected_correct"], row["ci_low"], row["ci_high"])
    assert found == pytest.approx(accuracy_interval(np.array([0.5, 0.0, 1.0])))


def test_the_order_of_rows_changes_nothing() -> None:
    rows = four_samples() + four_samples(problem_id="q") + four_samples(strategy="majority")
    one = answers_table(table(rows), None, run_seed=1)
    assert answers_table(table(rows[::-1]), None, run_seed=1).equals(one)


def test_solutions_may_come_in_parts() -> None:
    first = four_samples() + four_samples(strategy="majority")
    second = four_samples(problem_id="a") + four_samples(problem_id="é")
    parts = [table(second).select(SOLUTION_COLUMNS), table(first)]
    whole = answers_table(table(first + second), None, run_seed=1)
    assert answers_of_parts(iter(parts), None, run_seed=1).equals(whole)


def test_rows_leave_in_order_a_few_problems_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for name in "cab" for row in four_samples(problem_id=name)]
    rows += four_samples(strategy="majority")
    whole = answers_table(table(rows), None, run_seed=1)
    monkeypatch.setattr(curves, "PROBLEMS_A_PART", 2)
    parts = list(answers_in_parts([table(rows)], None, run_seed=1))
    assert pa.concat_tables(parts).equals(whole)
    problems = [part["problem_id"].unique().to_pylist() for part in parts]
    assert problems == [["a", "b"], ["c"], [None], ["p"], [None]]


def test_a_problem_in_two_parts_is_refused() -> None:
    first, second = four_samples()[:2], four_samples()[2:]
    with pytest.raises(ValueError, match="'p' stand in several parts"):
        answers_of_parts([table(first), table(second)], None, run_seed=1)


def test_only_the_named_problems_are_looked_at() -> None:
    rows = four_samples() + four_samples(problem_id="q")
    answers = answers_table(table(rows), ["q", "never_run"], run_seed=1)
    assert set(answers["problem_id"].to_pylist()) == {"q", None}


def test_a_point_leaves_out_problems_that_lost_units() -> None:
    rows = four_samples()[:3] + four_samples(problem_id="whole")
    answers = answers_table(table(rows), None, run_seed=1)
    assert {row["n"] for row in find(answers, problem_id="p")} == {1, 2}
    full = only(answers, problem_id=None, n=4, reduction="last", vote="majority")
    whole = only(answers, problem_id="whole", n=4, reduction="last", vote="majority")
    assert full["expected_correct"] == whole["expected_correct"]
    assert full["ci_low"] is None


def test_no_solutions_give_no_rows() -> None:
    empty = answers_table(SOLUTIONS.empty_table(), None, run_seed=1)
    assert empty.schema.equals(ANSWERS)
    assert len(empty) == 0
    assert summary(empty) == []


def test_summaries_choose_the_widest_search_and_the_best_vote() -> None:
    rows = four_samples()
    rows += [solution(i, "3", [0.5], n=2, keep=2) for i in range(2)]
    rows += [row | {"rewards": []} for row in four_samples(strategy="majority", policy="big")]
    points = summary(answers_table(table(rows), None, run_seed=1))
    assert {point.searched_n for point in points} == {4}
    best = best_votes(points)
    assert best["small", "best_of_n"].vote == Vote.MAJORITY
    assert best["small", "best_of_n"].n == 4
    single = single_samples(points)
    assert {policy: point.n for policy, point in single.items()} == {"small": 1, "big": 1}
    assert single["big"].expected_correct == 0.5


def test_a_problem_with_its_own_number_of_solutions_is_one_point() -> None:
    whole, stopped = (Search("p", "best_of_n", 32, 1, 32, rule) for rule in ("", "stop=posterior"))
    assert whole.ks_held(8) == [1, 2, 4, 8]
    assert [whole.ks, stopped.ks] == [[1, 2, 4, 8, 16, 32], [32]]
    assert [stopped.ks_held(groups) for groups in (8, 32, 40)] == [[8], [32], [40]]
