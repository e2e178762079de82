"""Every vote and every estimator against its definition, in exact arithmetic on small cases.

tests/test_subsampling.py compares estimators with `decide`; here `decide` itself and everything
above it, down to the rows of `answers`, is compared with what the words say.
"""

from fractions import Fraction
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.curves import answers_table
from search import subsampling
from search.rewards import Reduction, reduce_rewards
from search.schemas import SOLUTIONS
from search.subsampling import expected_max, expected_pass, expected_sums, group_grid
from search.votes import Ballots, Floats, Vote, decide, heaviest

pytestmark = pytest.mark.unit

# A group is a list of solutions (answer class, score); class 0 is right, -1 has no answer.
Solution = tuple[int, float]
Groups = list[list[Solution]]
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
SOLUTION = st.tuples(st.integers(-1, 2), SCORES)
GROUPS = st.lists(st.lists(SOLUTION, min_size=1, max_size=3), min_size=1, max_size=4)
VOTES = st.sampled_from(list(Vote))
modest = settings(max_examples=60, deadline=None)


def laid_out(groups: Groups) -> tuple[Ballots, Floats]:
    rows = [(g, *solution) for g, group in enumerate(groups) for solution in group]
    group, classes, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Ballots(group, classes, classes == 0), scores


# Votes by their definition


def by_definition(groups: Groups, vote: Vote) -> Fraction:
    """The probability that the vote of all groups is right."""
    if vote is Vote.MAX:
        return first_of_the_best(groups)
    weights: dict[int, Fraction] = {}
    for answer, score in (solution for group in groups for solution in group):
        if answer >= 0:
            weight = Fraction(score) if vote is Vote.WEIGHTED else Fraction(1)
            weights[answer] = weights.get(answer, Fraction(0)) + weight
    tied = [answer for answer, weight in weights.items() if weight == max(weights.values())]
    return Fraction(tied.count(0), len(tied)) if tied else Fraction(0)


def first_of_the_best(groups: Groups) -> Fraction:
    """The first best solution, over all orders of groups and of candidates in the first of them."""
    voting = [[each for each in group if each[0] >= 0] for group in groups]
    best = max((score for group in voting for _, score in group), default=None)
    tied = [[answer for answer, score in group if score == best] for group in voting]
    tied = [answers for answers in tied if answers]
    if not tied:
        return Fraction(0)
    orders = list(permutations(tied))
    firsts = [Fraction(order[0].count(0), len(order[0])) for order in orders]
    return sum(firsts, Fraction(0)) / len(orders)


@given(GROUPS, VOTES)
@modest
def test_a_vote_is_its_definition(groups: Groups, vote: Vote) -> None:
    found = decide(*laid_out(groups), vote)
    assert found.expected_correct == pytest.approx(float(by_definition(groups, vote)))
    answers = [answer for group in groups for answer, _ in group if answer >= 0]
    assert found.answer_class in answers if answers else found.answer_class == -1


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=6))
def test_the_heaviest_are_the_largest_of_those_present(sums: list[tuple[float, bool]]) -> None:
    totals, present = (np.array(column) for column in zip(*sums, strict=True))
    top = max((total for total, there in sums if there), default=None)
    expected = [there and total == top for total, there in sums]
    assert heaviest(totals, present.astype(bool)).tolist() == expected


@given(st.lists(st.floats(0, 1), max_size=6))
def test_reductions_are_their_definitions(rewards: list[float]) -> None:
    product = 1.0
    for reward in rewards:
        product *= reward
    expected = {
        Reduction.LAST: rewards[-1:],
        Reduction.MIN: sorted(rewards)[:1],
        Reduction.MEAN: [sum(rewards) / len(rewards)] if rewards else [],
        Reduction.PROD: [product] if rewards else [],
    }
    for reduction, value in expected.items():
        assert reduce_rewards(rewards, reduction) == pytest.approx(value[0] if value else 0.0)


# Estimators by their definition


def over_subsets(groups: Groups, vote: Vote, k: int) -> float:
    values = [by_definition(list(some), vote) for some in combinations(groups, k)]
    return float(sum(values, Fraction(0)) / len(values))


def estimated(groups: Groups, vote: Vote, ks: list[int]) -> Floats:
    ballots, score = laid_out(groups)
    if vote is Vote.MAX:
        return expected_max(ballots, score, ks)
    weight = score if vote is Vote.WEIGHTED else np.ones(len(score))
    return expected_sums(ballots, weight[None], ks, seed=1)[0]


@given(GROUPS, VOTES)
@modest
def test_every_estimator_is_the_mean_over_subsets(groups: Groups, vote: Vote) -> None:
    ks = list(range(1, len(groups) + 1))
    expected = [over_subsets(groups, vote, k) for k in ks]
    assert estimated(groups, vote, ks) == pytest.approx(expected)


@given(GROUPS)
@modest
def test_coverage_is_above_every_vote_and_grows(groups: Groups) -> None:
    ks = list(range(1, len(groups) + 1))
    coverage = expected_pass(laid_out(groups)[0], ks)
    assert (np.diff(coverage) >= -1e-12).all()
    for vote in Vote:
        assert (estimated(groups, vote, ks) <= coverage + 1e-12).all()


@given(GROUPS, st.integers(0, 5))
@modest
def test_several_weights_at_once_are_each_of_them(groups: Groups, seed: int) -> None:
    ballots, score = laid_out(groups)
    weights, ks = np.stack([np.ones(len(score)), score, score**2]), group_grid(len(groups))
    together = expected_sums(ballots, weights, ks, seed)
    alone = [expected_sums(ballots, row[None], ks, seed)[0] for row in weights]
    assert together == pytest.approx(np.array(alone))


@given(
    st.lists(st.lists(SOLUTION, min_size=1, max_size=2), min_size=2, max_size=6),
    st.sampled_from([Vote.MAJORITY, Vote.WEIGHTED]),
    st.integers(0, 50),
)
@modest
def test_random_orders_are_averaged_as_they_are_drawn(
    groups: Groups, vote: Vote, seed: int
) -> None:
    """With too many subsets to list: the first k groups of each of the drawn orders."""
    ks = list(range(1, len(groups) + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subsampling, "EXACT_SUBSETS", 0)
        patch.setattr(subsampling, "PERMUTATIONS", 7)
        ballots, score = laid_out(groups)
        weight = score if vote is Vote.WEIGHTED else np.ones(len(score))
        found = expected_sums(ballots, weight[None], ks, seed)[0]
        orders = subsampling._random_orders(len(groups), seed)
    assert [sorted(order) for order in orders.tolist()] == [list(range(len(groups)))] * 7
    drawn = [
        [by_definition([groups[g] for g in order[:k]], vote) for order in orders.tolist()]
        for k in ks
    ]
    assert found == pytest.approx([float(sum(values, Fraction(0)) / 7) for values in drawn])


@given(st.integers(1, 600))
def test_a_grid_ends_at_what_was_run(groups: int) -> None:
    grid = group_grid(groups)
    assert grid == sorted(set(grid))
    assert (grid[0], grid[-1]) == (1, groups)
    assert all(b <= 2 * a for a, b in pairwise(grid))


# Down to the rows of `answers`


def rows_of(groups: Groups, strategy: str) -> list[dict[str, Any]]:
    """`SOLUTIONS` rows of groups of equal size; their one reward is their score."""
    width = len(groups[0])
    shared = {
        "problem_id": "p",
        "policy": "small",
        "strategy": strategy,
        "n": len(groups) * width,
        "branching": width,
        "keep": 1 if strategy == "dvts" else len(groups),
        "variant": "",
    }
    return [
        shared
        | {
            "subtree": place,
            "solution_id": f"{place}:{child}",
            "answer": str(answer),
            "answer_class": answer,
            "verdict": "correct" if answer == 0 else "incorrect",
            "rewards": [score],
        }
        for place, group in enumerate(groups)
        for child, (answer, score) in enumerate(group)
    ]


EVEN_GROUPS = st.integers(1, 3).flatmap(
    lambda width: st.lists(
        st.lists(SOLUTION, min_size=width, max_size=width), min_size=1, max_size=4
    )
)


@given(EVEN_GROUPS)
@modest
def test_every_row_of_a_curve_is_its_definition(groups: Groups) -> None:
    strategy = "best_of_n" if len(groups[0]) == 1 else "dvts"
    solutions = pa.Table.from_pylist(rows_of(groups, strategy), SOLUTIONS)
    rows = [row for row in answers_table(solutions, None, 1).to_pylist() if row["problem_id"]]
    assert {row["n"] // len(groups[0]) for row in rows} == set(group_grid(len(groups)))
    for row in rows:
        k = row["n"] // len(groups[0])
        if row["vote"] == "pass":
            right = [any(answer == 0 for answer, _ in group) for group in groups]
            expected = float(np.mean([any(some) for some in combinations(right, k)]))
        else:
            expected = over_subsets(groups, Vote(row["vote"]), k)
        assert row["expected_correct"] == pytest.approx(expected), row
