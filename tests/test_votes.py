"""Votes on ballots whose outcome is known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.rows import NO_CLASS
from search.votes import Ballots, Decision, Vote, decide

pytestmark = pytest.mark.unit


def ballots(classes: list[int], right: int, group: list[int] | None = None) -> Ballots:
    answer_class = np.array(classes, dtype=np.int64)
    groups = np.arange(len(classes)) if group is None else np.array(group)
    return Ballots(groups, answer_class, answer_class == right)


def outcome(classes: list[int], scores: list[float], vote: Vote, right: int = 0) -> Decision:
    return decide(ballots(classes, right), np.array(scores), vote)


def test_each_vote_has_its_own_winner() -> None:
    classes, scores = [0, 0, 0, 1, 1, 2], [0.1, 0.1, 0.1, 0.5, 0.4, 0.8]
    assert outcome(classes, scores, Vote.MAJORITY) == Decision(0, 1.0)
    assert outcome(classes, scores, Vote.WEIGHTED) == Decision(1, 0.0)
    assert outcome(classes, scores, Vote.MAX) == Decision(2, 0.0)


@pytest.mark.parametrize("vote", list(Vote))
def test_empty_answers_have_no_vote(vote: Vote) -> None:
    assert outcome([-1, -1, -1, 4], [0.9, 0.9, 0.9, 0.1], vote, right=4) == Decision(4, 1.0)
    assert outcome([-1, -1], [0.9, 0.9], vote) == Decision(NO_CLASS, 0.0)
    assert outcome([], [], vote) == Decision(NO_CLASS, 0.0)


@pytest.mark.parametrize("vote", list(Vote))
def test_ties_are_split_evenly_and_named_by_the_first(vote: Vote) -> None:
    assert outcome([3, 0, 5], [0.5, 0.5, 0.5], vote) == Decision(3, pytest.approx(1 / 3))


def test_scores_of_zero_still_vote() -> None:
    assert outcome([1, 0], [0.0, 0.0], Vote.WEIGHTED) == Decision(1, 0.5)


def test_sums_that_differ_by_rounding_are_tied() -> None:
    classes, scores = [0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.3, 0.3]
    assert outcome(classes, scores, Vote.WEIGHTED).expected_correct == 0.5


def test_max_shares_a_tie_over_groups_first() -> None:
    tied = ballots([0, 1, 1, 1], right=0, group=[7, 8, 8, 8])
    assert decide(tied, np.ones(4), Vote.MAX) == Decision(0, 0.5)
    assert decide(ballots([0, 1, 1, 1], 0), np.ones(4), Vote.MAX) == Decision(0, 0.25)


@given(
    st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.25, 0.5])), max_size=8),
    st.sampled_from(list(Vote)),
    st.randoms(use_true_random=False),
)
def test_the_order_of_solutions_does_not_matter(
    solutions: list[tuple[int, float]], vote: Vote, random: "object"
) -> None:
    mixed = sorted(solutions, key=lambda _: random.random())  # type: ignore[attr-defined]
    found = [
        outcome([c for c, _ in order], [s for _, s in order], vote) for order in (solutions, mixed)
    ]
    assert found[0].expected_correct == pytest.approx(found[1].expected_correct)
