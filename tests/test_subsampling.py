"""Sub-sampled accuracies against brute force, against votes, and against a known oracle."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.stats import norm

from search import subsampling
from search.subsampling import expected_max, expected_pass, expected_sums, group_grid
from search.votes import Ballots, Flags, Floats, Vote, decide

pytestmark = pytest.mark.unit

# A group is a list of solutions (answer class, score); class 0 is right.
Groups = list[list[tuple[int, float]]]
SOLUTION = st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
GROUPS = st.lists(st.lists(SOLUTION, min_size=1, max_size=3), min_size=1, max_size=6)


def laid_out(groups: Groups) -> tuple[Ballots, Floats]:
    rows = [(g, *solution) for g, group in enumerate(groups) for solution in group]
    group, classes, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Ballots(group, classes, classes == 0), scores


def estimate(groups: Groups, vote: Vote, ks: list[int]) -> Floats:
    ballots, score = laid_out(groups)
    if vote is Vote.MAX:
        return expected_max(ballots, score, ks)
    weight = score if vote is Vote.WEIGHTED else np.ones(len(score))
    return expected_sums(ballots, weight[None], ks, seed=1)[0]


def brute_force(groups: Groups, vote: Vote, k: int) -> float:
    outcomes = [decide(*laid_out(list(s)), vote) for s in combinations(groups, k)]
    return float(np.mean([outcome.expected_correct for outcome in outcomes]))


@given(GROUPS, st.sampled_from(list(Vote)))
@settings(deadline=None)
def test_every_k_agrees_with_brute_force(groups: Groups, vote: Vote) -> None:
    ks = list(range(1, len(groups) + 1))
    expected = [brute_force(groups, vote, k) for k in ks]
    assert estimate(groups, vote, ks) == pytest.approx(expected)


@given(GROUPS)
@settings(deadline=None)
def test_pass_agrees_with_brute_force(groups: Groups) -> None:
    ks = list(range(1, len(groups) + 1))
    right = [any(c == 0 for c, _ in group) for group in groups]
    expected = [np.mean([any(s) for s in combinations(right, k)]) for k in ks]
    assert expected_pass(laid_out(groups)[0], ks) == pytest.approx(expected)


def random_groups(seed: int, groups: int, width: int) -> Groups:
    rng = np.random.default_rng(seed)
    return [
        [(int(rng.integers(-1, 6)), float(rng.random())) for _ in range(width)]
        for _ in range(groups)
    ]


@pytest.mark.parametrize("vote", list(Vote))
@pytest.mark.parametrize("width", [1, 4])
def test_the_ends_of_a_large_run_are_exact(vote: Vote, width: int) -> None:
    groups = random_groups(3, 64, width)
    ends = estimate(groups, vote, [1, 64])
    assert ends[0] == pytest.approx(np.mean([brute_force([g], vote, 1) for g in groups]))
    assert ends[1] == pytest.approx(brute_force(groups, vote, 64))


@pytest.mark.parametrize("vote", [Vote.MAJORITY, Vote.WEIGHTED])
def test_random_orders_are_unbiased(vote: Vote, monkeypatch: pytest.MonkeyPatch) -> None:
    ballots, score = laid_out(random_groups(5, 10, 2))
    weight = (score if vote is Vote.WEIGHTED else np.ones(len(score)))[None]
    exact = expected_sums(ballots, weight, [4], seed=0)[0, 0]
    monkeypatch.setattr(subsampling, "EXACT_SUBSETS", 1)
    drawn = [expected_sums(ballots, weight, [4], seed)[0, 0] for seed in range(200)]
    error = np.std(drawn, ddof=1) / np.sqrt(len(drawn))
    assert error > 0
    assert abs(np.mean(drawn) - exact) < 4 * error


def test_a_seed_gives_the_same_numbers_again() -> None:
    ballots, score = laid_out(random_groups(7, 64, 1))
    one, same, other = (expected_sums(ballots, score[None], [16], seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_grids() -> None:
    assert [group_grid(k) for k in (1, 2, 3, 8, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
    ]


def test_nothing_votes() -> None:
    groups: Groups = [[(-1, 0.5)], [(-1, 0.7)]]
    assert all(not estimate(groups, vote, [1, 2]).any() for vote in Vote)


# The oracle: a policy whose steps are right with probability 3/4, eight steps a solution, and
# a PRM whose rewards are normal with unit variance around 0 (a wrong step so far) or around the
# distance that gives this area under the ROC curve. Its accuracies were found by simulating
# whole searches at each N; here one run at the largest N has to give all of them.
STEP_ACCURACY, STEPS, BRANCHING, ONE_SAMPLE = 0.75, 8, 4, 0.75**8
RUNS = 500
# The simulated table was made from a few hundred problems; this is its own error.
ORACLE_ERROR = 0.02


def synthetic_rewards(right: Flags, auc: float, rng: np.random.Generator) -> Floats:
    distance = np.sqrt(2) * norm.ppf(auc)
    return np.asarray(rng.standard_normal(right.shape) + distance * right)


def samples(n: int, auc: float, rng: np.random.Generator) -> tuple[Ballots, Floats]:
    """n solutions and their rewards (n, STEPS)."""
    right = np.logical_and.accumulate(rng.random((n, STEPS)) < STEP_ACCURACY, axis=1)
    group, correct = np.arange(n), right[:, -1]
    classes = np.where(correct, 0, 1 + group)
    return Ballots(group, classes, correct), synthetic_rewards(right, auc, rng)


def subtrees(n: int, auc: float, rng: np.random.Generator) -> tuple[Ballots, Floats]:
    """n solutions of n / BRANCHING subtrees, each of which goes on from its best step."""
    count = n // BRANCHING
    kept = np.ones(count, dtype=bool)
    for _ in range(STEPS):
        right = kept[:, None] & (rng.random((count, BRANCHING)) < STEP_ACCURACY)
        rewards = synthetic_rewards(right, auc, rng)
        kept = right[np.arange(count), rewards.argmax(axis=1)]
    group, correct = np.repeat(np.arange(count), BRANCHING), right.ravel()
    return Ballots(group, np.where(correct, 0, 1 + np.arange(n)), correct), rewards.ravel()


def assert_close(values: list[Floats], expected: list[float], rounding: float) -> None:
    """The mean of runs is what is expected, within 4 standard errors and its rounding."""
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
    allowed = 4 * spread / np.sqrt(len(values)) + rounding
    assert (np.abs(mean - expected) <= allowed).all(), (mean, expected)


def exact_best_of_n(auc: float, n: int) -> float:
    """Best of n by the last reward: the integral of n (1 - S)^(n - 1) over right solutions.

    ROC-n-reroll (arXiv 2507.12399): S is the share of all solutions above a reward.
    """
    distance = np.sqrt(2) * norm.ppf(auc)
    x = np.linspace(-8, 12, 20001)
    below = ONE_SAMPLE * norm.cdf(x - distance) + (1 - ONE_SAMPLE) * norm.cdf(x)
    return float(trapezoid(n * below ** (n - 1) * ONE_SAMPLE * norm.pdf(x - distance), x))


@pytest.mark.parametrize("auc", [0.7, 0.8, 0.9])
def test_best_of_n_by_last_reward_gives_the_exact_accuracies(auc: float) -> None:
    rng, ks = np.random.default_rng(11), [1, 4, 16, 64, 256]
    runs = [samples(256, auc, rng) for _ in range(RUNS)]
    exact = [exact_best_of_n(auc, k) for k in ks]
    assert_close([expected_max(b, r[:, -1], ks) for b, r in runs], exact, 0.0)


@pytest.mark.parametrize(
    ("auc", "expected"),
    [(0.7, [0.32, 0.48, 0.61]), (0.8, [0.49, 0.71, 0.83])],
)
def test_best_of_n_by_lowest_reward_gives_the_oracle_accuracies(
    auc: float, expected: list[float]
) -> None:
    rng, ks = np.random.default_rng(11), [16, 64, 256]
    runs = [samples(256, auc, rng) for _ in range(RUNS)]
    assert_close([expected_max(b, r.min(axis=1), ks) for b, r in runs], expected, ORACLE_ERROR)


@pytest.mark.parametrize(
    ("auc", "expected"), [(0.7, [0.55, 0.68, 0.75]), (0.8, [0.82, 0.93, 0.97])]
)
def test_dvts_gives_the_oracle_accuracies(auc: float, expected: list[float]) -> None:
    rng, ks = np.random.default_rng(12), [4, 16, 64]
    values = [expected_max(*subtrees(256, auc, rng), ks) for _ in range(RUNS)]
    assert_close(values, expected, ORACLE_ERROR)


def test_pass_gives_the_outcome_oracle() -> None:
    rng, ns = np.random.default_rng(13), [1, 4, 16]
    values = [expected_pass(samples(64, 0.5, rng)[0], ns) for _ in range(RUNS)]
    assert_close(values, [1 - (1 - ONE_SAMPLE) ** n for n in ns], 0.0)


def test_a_perfect_prm_gives_the_step_oracle() -> None:
    rng, ks = np.random.default_rng(14), [1, 4]
    values = [expected_max(*subtrees(64, 1 - 1e-9, rng), ks) for _ in range(RUNS)]
    one_step = 1 - (1 - STEP_ACCURACY) ** BRANCHING
    assert_close(values, [1 - (1 - one_step**STEPS) ** k for k in ks], 1e-3)
