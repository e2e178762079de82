"""Published votes on ballots worked out by hand, and against their definition."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.compat_votes import (
    NO_SCORES,
    compute_optimal_tts_score,
    compute_optimal_tts_winner,
    search_and_learn_winner,
)
from search.rewards import Reduction
from search.votes import Vote

pytestmark = pytest.mark.unit

SCORES = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75])
BALLOTS = st.lists(st.tuples(st.sampled_from(["", "1", "2", "3"]), SCORES), max_size=7)


def test_only_equal_strings_count_together() -> None:
    answers, scores = ["1/2", "0.5", "3", "3"], [0.4, 0.4, 0.3, 0.3]
    assert compute_optimal_tts_winner(answers, scores, Vote.MAJORITY) == 2
    assert compute_optimal_tts_winner(answers, scores, Vote.WEIGHTED) == 2
    assert compute_optimal_tts_winner(answers, scores, Vote.MAX) == 0
    classes = [0, 0, 1, 1]
    assert search_and_learn_winner(classes, scores, Vote.MAJORITY) == 0
    assert search_and_learn_winner(classes, scores, Vote.WEIGHTED) == 0


def test_empty_answers_are_dropped_by_one_and_may_win_in_the_other() -> None:
    answers, classes, scores = ["", "7", ""], [-1, 0, -1], [0.9, 0.5, 0.8]
    for vote in Vote:
        assert compute_optimal_tts_winner(answers, scores, vote) == 1
        assert search_and_learn_winner(classes, scores, vote) == 0
        assert compute_optimal_tts_winner(["", ""], [0.9, 0.9], vote) is None
        assert search_and_learn_winner([-1, -1], [0.1, 0.9], vote) == (1 if vote == "max" else 0)
        assert search_and_learn_winner([], [], vote) is None


@pytest.mark.parametrize("vote", list(Vote))
def test_the_first_of_equals_wins(vote: Vote) -> None:
    assert compute_optimal_tts_winner(["5", "3", "3", "5"], [0.5] * 4, vote) == 0
    assert search_and_learn_winner([4, 0, 0, 4], [0.5] * 4, vote) == 0


def test_a_solution_without_scores_is_worth_less_than_none() -> None:
    assert {compute_optimal_tts_score([], reduction) for reduction in Reduction} == {NO_SCORES}
    assert compute_optimal_tts_score([0.2, 0.4], Reduction.MEAN) == pytest.approx(0.3)
    assert compute_optimal_tts_winner(["2", "1", "1"], [0.1, -1.0, 0.9], Vote.WEIGHTED) == 0


def first_of_the_best(keys: list[str], scores: list[float], vote: Vote) -> str:
    """The winning key by the definition, in exact arithmetic."""
    exact = [Fraction(score) for score in scores]
    if vote is Vote.MAX:
        return keys[exact.index(max(exact))]
    order = list(dict.fromkeys(keys))
    weights = exact if vote is Vote.WEIGHTED else [Fraction(1)] * len(keys)
    sums = [sum(w for w, k in zip(weights, keys, strict=True) if k == key) for key in order]
    return order[sums.index(max(sums))]


@given(BALLOTS, st.sampled_from(list(Vote)))
def test_compute_optimal_tts_is_its_definition(
    ballots: list[tuple[str, float]], vote: Vote
) -> None:
    answers, scores = [answer for answer, _ in ballots], [score for _, score in ballots]
    place = compute_optimal_tts_winner(answers, scores, vote)
    valid = [(answer, score) for answer, score in ballots if answer]
    if not valid:
        assert place is None
        return
    assert place is not None
    expected = first_of_the_best([a for a, _ in valid], [s for _, s in valid], vote)
    assert answers[place] == expected


@given(BALLOTS, st.sampled_from(list(Vote)))
def test_search_and_learn_is_its_definition(ballots: list[tuple[str, float]], vote: Vote) -> None:
    classes = [int(answer or -1) for answer, _ in ballots]
    scores = [score for _, score in ballots]
    place = search_and_learn_winner(classes, scores, vote)
    if not ballots:
        assert place is None
        return
    assert place is not None
    assert str(classes[place]) == first_of_the_best([str(c) for c in classes], scores, vote)
    if vote is not Vote.MAX:
        assert place == classes.index(classes[place])
