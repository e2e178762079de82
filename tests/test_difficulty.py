"""Difficulty: bins, quintiles, what samples measure, and what a probe tells without verdicts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jobs.difficulty import (
    FEATURES,
    Difficulty,
    Measured,
    Thresholds,
    measured,
    probe_features,
    quintiles,
    samples_independently,
    samples_of,
)
from jobs.pass_predictor import RIDGE, fit_predictor, penalised_loss
from search.errors import RecipeError
from search.schemas import SOLUTIONS
from search.strategies import STRATEGIES
from search.votes import Floats

pytestmark = pytest.mark.unit

CLASSES = st.lists(st.integers(-1, 6), min_size=1, max_size=12)


def solution(subtree: int, verdict: str, **columns: Any) -> dict[str, Any]:
    classes = {"correct": 0, "incorrect": 3, "no_answer": -1}
    return {
        "problem_id": "p",
        "policy": "small",
        "strategy": "best_of_n",
        "n": 4,
        "branching": 1,
        "subtree": subtree,
        "answer_class": classes[verdict],
        "verdict": verdict,
        "rewards": [0.5, 0.25],
    } | columns


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SOLUTIONS)


def features(classes: list[int], scores: list[float] | None = None) -> dict[str, float]:
    score = np.array(scores or [0.5] * len(classes))
    return dict(zip(FEATURES, probe_features(np.array(classes), score).tolist(), strict=True))


# Bins and quintiles


@pytest.mark.parametrize(
    ("pass_at_1", "expected"),
    [
        (1.0, "easy"),
        (0.5, "easy"),
        (0.4999, "medium"),
        (0.1, "medium"),
        (0.0999, "hard"),
        (0.0, "hard"),
    ],
)
def test_bins_are_those_of_the_paper(pass_at_1: float, expected: str) -> None:
    assert Thresholds().bin_of(pass_at_1) == expected
    row = list(Difficulty).index(Difficulty(expected))
    assert Thresholds().bins_of(np.array([pass_at_1]))[:, 0].tolist() == [
        i == row for i in range(3)
    ]


def test_thresholds_can_be_moved() -> None:
    moved = Thresholds(easy=0.8, hard=0.3)
    assert [moved.bin_of(p) for p in (0.8, 0.5, 0.29)] == ["easy", "medium", "hard"]


@pytest.mark.parametrize(("easy", "hard"), [(0.1, 0.5), (0.5, 0.5), (0.5, 0.0), (1.1, 0.5)])
def test_thresholds_that_make_no_bins_are_refused(easy: float, hard: float) -> None:
    with pytest.raises(RecipeError, match=r"thresholds easy=.*: choose 0 < hard < easy <= 1"):
        Thresholds(easy, hard)


def test_quintiles_by_hand() -> None:
    values = np.array([0.9, 0.1, 0.5, 0.3, 0.7])
    assert quintiles(values).tolist() == [1, 5, 3, 4, 2]


def test_equal_problems_share_a_quintile() -> None:
    values = np.array([0.0] * 6 + [0.5, 0.6, 0.7, 0.8])
    assert quintiles(values).tolist() == [3] * 6 + [2, 2, 1, 1]
    assert set(quintiles(np.full(7, 0.3))) == {1}


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=40, unique=True))
def test_quintiles_are_fifths_in_order(values: list[float]) -> None:
    found = quintiles(np.array(values))
    order = np.argsort(values)
    assert (np.diff(found[order]) <= 0).all()
    sizes = [(found == level).sum() for level in range(1, 6)]
    assert max(sizes) - min(sizes) <= 2


# Measured


def test_only_independent_samples_measure() -> None:
    assert {name for name in STRATEGIES if samples_independently(name)} == {"majority", "best_of_n"}


def test_pass_at_1_is_counted_from_samples() -> None:
    rows = [solution(0, "correct"), solution(1, "incorrect"), solution(2, "no_answer")]
    # The smaller search has the same samples; the trees are no samples; majority drew others.
    rows += [solution(0, "correct", n=2), solution(1, "correct", n=2)]
    rows += [solution(i, "correct", strategy="dvts", branching=4) for i in range(4)]
    rows += [solution(i, "incorrect", strategy="majority", rewards=[]) for i in range(2)]
    rows += [solution(0, "correct", policy="large")]
    rows += [solution(0, "incorrect", strategy="beam", problem_id="q", branching=4)]
    assert measured(table(rows)) == {
        ("small", "p"): Measured(1, 5),
        ("large", "p"): Measured(1, 1),
    }
    assert Measured(1, 5).pass_at_1 == 0.2


def test_samples_come_in_the_order_of_their_numbers() -> None:
    rows = [
        solution(2, "no_answer", rewards=[]),
        solution(0, "correct", rewards=[0.1, 0.9]),
        solution(1, "incorrect", rewards=[0.4]),
    ]
    samples = samples_of(table(rows))
    assert samples.answer_class.tolist() == [0, 3, -1]
    assert samples.correct.tolist() == [True, False, False]
    assert samples.score.tolist() == [0.9, 0.4, 0.0]


# Features of a probe


def test_features_by_hand() -> None:
    found = features([2, 2, 5, -1], [0.2, 0.4, 0.6, 0.8])
    half, quarter = 0.5 * np.log(2), 0.25 * np.log(4)
    assert found["agreement"] == 0.5
    assert found["entropy"] == pytest.approx((half + 2 * quarter) / np.log(4))
    assert found["unanswered"] == 0.25
    assert found["prm_mean"] == pytest.approx(0.5)
    assert found["prm_spread"] == pytest.approx(np.sqrt(0.05))


def test_all_agree_and_none_agree() -> None:
    assert features([4, 4, 4]) | {"prm_mean": 0, "prm_spread": 0} == {
        "agreement": 1.0,
        "entropy": 0.0,
        "unanswered": 0.0,
        "prm_mean": 0,
        "prm_spread": 0,
    }
    nothing = features([-1, -1, -1])
    assert (nothing["agreement"], nothing["unanswered"]) == (0.0, 1.0)
    assert nothing["entropy"] == pytest.approx(1.0)
    assert features([7])["entropy"] == 0.0


@settings(deadline=None)
@given(CLASSES, st.permutations(range(7)), st.randoms(use_true_random=False))
def test_a_probe_cannot_see_which_class_is_right(
    classes: list[int], names: list[int], rng: Any
) -> None:
    """Other numbers for the classes and another order of the samples tell the same."""
    renamed = [names[c] if c >= 0 else c for c in classes]
    rng.shuffle(renamed)
    assert features(renamed) == pytest.approx(features(classes))
    assert all(0.0 <= value <= 1.0 for value in features(classes).values())


def test_a_probe_looks_at_no_verdict() -> None:
    rows = [solution(i, "correct") for i in range(4)]
    wrong = samples_of(table([row | {"verdict": "incorrect"} for row in rows]))
    right = samples_of(table(rows))
    assert right.correct.tolist() != wrong.correct.tolist()
    assert probe_features(right.answer_class, right.score).tolist() == (
        probe_features(wrong.answer_class, wrong.score).tolist()
    )


# The predictor


def drawn(seed: int, rows: int = 60) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    found = rng.random((rows, len(FEATURES)))
    odds = 3.0 * found[:, 0] - 2.0 * found[:, 3]
    return found, rng.binomial(16, 1 / (1 + np.exp(-odds))) / 16, rng.random(rows)


def test_the_predictor_is_the_minimum_of_its_loss() -> None:
    """Against a search that uses no gradient, on features as they are."""
    found, share, weight = drawn(0)
    fitted = fit_predictor(found, share, weight)
    mean = np.average(found, axis=0, weights=weight)
    spread = np.sqrt(np.average((found - mean) ** 2, axis=0, weights=weight))

    def loss(raw: Floats) -> float:
        odds = raw[0] + found @ raw[1:]
        likelihood = weight @ (
            share * np.log1p(np.exp(-odds)) + (1 - share) * np.log1p(np.exp(odds))
        )
        return float(likelihood + RIDGE / 2 * ((raw[1:] * spread) ** 2).sum())

    ours = np.array([fitted.intercept, *(fitted.weights[name] for name in FEATURES)])
    slow = minimize(loss, np.zeros(6), method="Powell", options={"xtol": 1e-8, "ftol": 1e-14})
    assert loss(ours) <= slow.fun + 1e-9
    assert ours == pytest.approx(slow.x, abs=1e-3)


def test_the_gradient_is_that_of_the_loss() -> None:
    found, share, weight = drawn(1)
    beta, step = np.linspace(-1.0, 1.0, len(FEATURES)), 1e-6
    _, gradient = penalised_loss(beta, found, share, weight)
    for place, moved in enumerate(np.eye(len(FEATURES)) * step):
        above, _ = penalised_loss(beta + moved, found, share, weight)
        below, _ = penalised_loss(beta - moved, found, share, weight)
        assert gradient[place] == pytest.approx((above - below) / (2 * step), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_estimates_are_probabilities_that_repeat(seed: int) -> None:
    found, share, weight = drawn(seed, rows=12)
    one, two = (fit_predictor(found, share, weight) for _ in range(2))
    assert one == two
    estimates = one.pass_at_1(found)
    assert ((estimates > 0.0) & (estimates < 1.0)).all()
    # The intercept is free, so the mean is met exactly.
    assert weight @ estimates == pytest.approx(weight @ share, abs=1e-4)


def test_separable_problems_and_constant_features_stay_finite() -> None:
    found = np.zeros((20, len(FEATURES)))
    found[10:, 0] = 1.0
    share = found[:, 0].copy()
    fitted = fit_predictor(found, share, np.ones(20))
    assert 0.0 < fitted.weights["agreement"] < 20.0
    assert [fitted.weights[name] for name in FEATURES[1:]] == [0.0] * 4
    assert fitted.pass_at_1(found[[0, -1]]).round().tolist() == [0.0, 1.0]
