"""The table of independent samples: pass@1, pass@k, cons@k, cuts and weights, against counting."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_samples import samples_of_parts

from jobs.curves import answers_table
from jobs.samples import pass_at_k, samples_in_parts
from search.max_entropy import divergence_from_half, max_entropy_weight
from search.protocols import StopReason
from search.schemas import SAMPLES, SOLUTIONS

pytestmark = pytest.mark.unit

Row = dict[str, Any]
SHARES = st.floats(0.0, 1.0)
STRENGTHS = st.floats(0.0, 50.0)


def solutions(problem_id: str, answers: Sequence[str], **columns: Any) -> list[Row]:
    """One sample for each answer; "7" is right and an empty answer is none."""
    shared: Row = {
        "problem_id": problem_id,
        "policy": "small",
        "strategy": "majority",
        "n": len(answers),
        "branching": 1,
        "keep": len(answers),
        "variant": "",
        "rewards": [],
        "stop_reason": "eos",
    }
    return [
        shared
        | {
            "subtree": place,
            "solution_id": f"{place}:0",
            "answer": answer,
            "answer_class": {"": -1, "7": 0}.get(answer, int(answer or 0)),
            "verdict": {"": "no_answer", "7": "correct"}.get(answer, "incorrect"),
            "policy_tokens": 10 * (place + 1),
        }
        | columns
        for place, answer in enumerate(answers)
    ]


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SOLUTIONS)


def samples(rows: Sequence[Row], strength: float = 1.0) -> list[Row]:
    found = samples_of_parts([table(rows)], None, strength)
    assert found.schema.equals(SAMPLES, check_metadata=True)
    listed: list[Row] = found.to_pylist()
    return listed


# ---- the weight


@settings(deadline=None)
@given(SHARES, STRENGTHS)
def test_a_weight_is_symmetric_and_largest_at_one_half(p: float, strength: float) -> None:
    weight = max_entropy_weight(p, strength)
    assert 0.0 < weight <= max_entropy_weight(0.5, strength) == 1.0
    assert weight == pytest.approx(max_entropy_weight(1.0 - p, strength), rel=1e-9)


@settings(deadline=None)
@given(SHARES)
def test_a_divergence_lies_between_zero_and_ln_2(p: float) -> None:
    assert 0.0 <= divergence_from_half(p) <= math.log(2.0) + 1e-15


@settings(deadline=None)
@given(SHARES)
def test_lambda_0_weighs_all_problems_alike(p: float) -> None:
    assert max_entropy_weight(p, 0.0) == 1.0


@settings(deadline=None)
@given(st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.floats(0.01, 10.0))
def test_a_weight_grows_towards_one_half(p: float, q: float, strength: float) -> None:
    low, high = sorted((p, q))
    assert max_entropy_weight(low, strength) <= max_entropy_weight(high, strength) * (1 + 1e-12)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_problems_have_the_finite_weight_of_ln_2(p: float) -> None:
    assert divergence_from_half(p) == pytest.approx(math.log(2.0))
    assert max_entropy_weight(p, 3.0) == pytest.approx(1 / 8)


def test_a_divergence_worked_out_by_hand() -> None:
    assert divergence_from_half(0.25) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


@pytest.mark.parametrize(
    ("p", "strength"), [(-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.5, -1.0), (0.5, math.inf)]
)
def test_what_is_no_share_or_no_lambda_is_refused(p: float, strength: float) -> None:
    with pytest.raises(ValueError, match="not "):
        max_entropy_weight(p, strength)


# ---- the table


def test_a_problem_worked_out_by_hand() -> None:
    rows = solutions("p", ["7", "3", "7", "", "3", "4", "", "7"])
    rows[3]["stop_reason"], rows[6]["stop_reason"] = "max_tokens", "thinking"
    row, mean = samples(rows, strength=2.0)
    divergence = 3 / 8 * math.log(3 / 4) + 5 / 8 * math.log(5 / 4)
    assert (row["problem_id"], row["n"], row["samples"]) == ("p", 8, 8)
    assert (row["pass_at_1"], row["ks"]) == (3 / 8, [1, 2, 4, 8])
    misses = [5 / 8, 10 / 28, 5 / 70, 0.0]
    assert row["pass_at_k"] == pytest.approx([1 - miss for miss in misses])
    assert (row["cons_at_k"], row["cut_share"], row["mean_tokens"]) == (1.0, 2 / 8, 45.0)
    assert row["divergence"] == pytest.approx(divergence)
    assert row["weight"] == pytest.approx(math.exp(-2 * divergence))
    assert mean | {"problem_id": "p"} == row  # one problem: its mean, and no interval


def test_ties_for_the_consensus_are_averaged() -> None:
    [row, _] = samples(solutions("p", ["7", "3", "4", "7", "3", ""]))
    assert row["cons_at_k"] == 1 / 2


@pytest.mark.parametrize("answers", [["", ""], ["3", "", "3"]])
def test_nothing_right_is_a_consensus_of_nought(answers: list[str]) -> None:
    assert [row["cons_at_k"] for row in samples(solutions("p", answers))] == [0.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["7", "3", "4", ""]), min_size=1, max_size=7))
def test_estimates_are_those_of_counting_every_subset(answers: list[str]) -> None:
    row, _ = samples(solutions("p", answers))
    for k, estimate in zip(row["ks"], row["pass_at_k"], strict=True):
        drawn = list(combinations(answers, k))
        assert estimate == pytest.approx(sum("7" in each for each in drawn) / len(drawn))
    votes = Counter(answer for answer in answers if answer)
    modes = [answer for answer in votes if votes[answer] == max(votes.values())]
    assert row["cons_at_k"] == pytest.approx(modes.count("7") / max(1, len(modes)))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["7", "3", "4", ""]), min_size=1, max_size=12))
def test_consensus_and_coverage_are_those_of_the_curves(answers: list[str]) -> None:
    rows = solutions("p", answers)
    row, _ = samples(rows)
    points = {
        (point["vote"], point["n"]): point["expected_correct"]
        for point in answers_table(table(rows), None, run_seed=1).to_pylist()
        if point["problem_id"] == "p"
    }
    assert row["cons_at_k"] == pytest.approx(points["majority", len(answers)])
    for k, estimate in zip(row["ks"], row["pass_at_k"], strict=True):
        assert estimate == pytest.approx(points["pass", k])


def test_large_counts_stay_exact() -> None:
    assert pass_at_k(512, 1, 256) == 0.5
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)


def test_the_mean_is_over_problems_with_the_interval_of_the_curves() -> None:
    successes = [["7"] * right + ["3"] * (4 - right) for right in (0, 1, 2, 4)]
    rows = [row for i, each in enumerate(successes) for row in solutions(f"p{i}", each)]
    *_, mean = samples(rows)
    values = [0.0, 0.25, 0.5, 1.0]
    assert (mean["problem_id"], mean["samples"]) == (None, 16)
    assert mean["pass_at_1"] == pytest.approx(np.mean(values))
    assert mean["weight"] == pytest.approx(np.mean([max_entropy_weight(v) for v in values]))
    points = answers_table(table(rows), None, run_seed=1).to_pylist()
    [single] = [
        point
        for point in points
        if (point["problem_id"], point["vote"], point["n"]) == (None, "pass", 1)
    ]
    assert mean["ci_low"] == pytest.approx(single["ci_low"])
    assert mean["ci_high"] == pytest.approx(single["ci_high"])
    assert mean["ci_low"] < mean["pass_at_1"] < mean["ci_high"]


def test_a_problem_that_lost_samples_counts_with_those_it_has() -> None:
    whole, part = solutions("p", ["3", "3", "3", "7"]), solutions("q", ["7", "7", "7", "7"])[:3]
    first, second, mean = samples([*whole, *part])
    assert (first["ks"], second["ks"], mean["ks"]) == ([1, 2, 4], [1, 2], [1, 2, 4])
    assert mean["pass_at_k"] == pytest.approx([(1 / 4 + 1) / 2, (1 / 2 + 1) / 2, 1.0])


@pytest.mark.parametrize("variant", ["stop=posterior", "allocation=max_entropy,probe=2"])
def test_uneven_searches_have_no_pass_at_k(variant: str) -> None:
    settled, unsettled = ["7", "7"], ["7", "3", "3", "8", "3", "8"]
    rows = [
        *solutions("p", settled, n=4, keep=4, variant=variant),
        *solutions("q", unsettled, n=4, keep=4, variant=variant),
    ]
    found = samples(rows)
    for row in found:
        assert (row["ks"], row["pass_at_k"]) == ([], [])
    assert [row["samples"] for row in found] == [2, 6, 8]
    assert [row["cons_at_k"] for row in found] == [1.0, 0.0, 0.5]
    assert found[2]["pass_at_1"] == pytest.approx((1 + 1 / 6) / 2)


def test_only_independent_samples_have_rows_one_set_a_search() -> None:
    rows = [
        *solutions("p", ["7", "3"]),
        *solutions("p", ["7", "3"], strategy="best_of_n", policy="large"),
        *solutions("p", ["3", "3"], strategy="best_of_n", policy="large", variant="compat=x"),
        *solutions("p", ["7", "3", "3", "3"], strategy="dvts", branching=4, keep=1),
        *solutions("p", ["7", "3", "3", "3"], strategy="beam", branching=4, keep=1),
    ]
    names = ("policy", "strategy", "variant", "problem_id")
    found = [tuple(row[name] for name in names) for row in samples(rows)]
    assert found == [
        ("large", "best_of_n", "", "p"),
        ("large", "best_of_n", "", None),
        ("large", "best_of_n", "compat=x", "p"),
        ("large", "best_of_n", "compat=x", None),
        ("small", "majority", "", "p"),
        ("small", "majority", "", None),
    ]
    assert samples(rows[6:]) == []


def test_parts_and_order_change_nothing() -> None:
    first, second = solutions("p", ["7", "3"]), solutions("q", ["3", "3"])
    whole = samples_of_parts([table([*second[::-1], *first])], None, 1.0)
    assert samples_of_parts([table(first), table(second)], None, 1.0).equals(whole)
    only = samples_of_parts([table(first), table(second)], ["q"], 1.0)
    assert only["problem_id"].to_pylist() == ["q", None]
    with pytest.raises(ValueError, match="several parts"):
        samples_of_parts([table(first[:1]), table(first[1:])], None, 1.0)


def test_rows_leave_in_order_a_few_problems_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"c": ["7", "3", "7"], "a": ["7", ""], "b": ["3", "3", "3"]}
    rows = [row for name, answers in given.items() for row in solutions(name, answers, n=3, keep=3)]
    whole = samples_of_parts([table(rows)], None, 1.0)
    monkeypatch.setattr("jobs.samples.PROBLEMS_A_PART", 2)
    parts = list(samples_in_parts([table(rows)], None, 1.0))
    assert pa.concat_tables(parts).equals(whole)
    assert [part["problem_id"].to_pylist() for part in parts] == [["a", "b"], ["c", None]]


@pytest.mark.parametrize("reason", list(StopReason))
def test_what_counts_as_cut_off(reason: StopReason) -> None:
    [row, _] = samples(solutions("p", [""], stop_reason=str(reason)))
    assert row["cut_share"] == (reason in ("max_tokens", "max_steps", "thinking"))
