"""The rule by which a search is chosen, by hand and against a search through all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jobs.best_routes import best_route, best_routes, routed, weighted_interval, weighted_mean
from search.votes import Floats

pytestmark = pytest.mark.unit


def prices(*amounts: float, problems: int) -> Floats:
    """The same price on every problem."""
    return np.repeat(np.array(amounts)[:, None], problems, axis=1)


def test_the_best_mean_within_the_budget_wins() -> None:
    accuracy = np.array([[0.1] * 4, [0.5] * 4, [0.9] * 4])
    cost = prices(1.0, 2.0, 4.0, problems=4)
    weights = np.ones(4)
    assert [best_route(accuracy, cost, weights, limit, 1.0) for limit in (1, 3, 4)] == [0, 1, 2]


def test_where_nothing_fits_the_cheapest_is_taken() -> None:
    accuracy = np.array([[1.0] * 3, [0.0] * 3])
    assert best_route(accuracy, prices(8.0, 2.0, problems=3), np.ones(3), 1.0, 1.0) == 1


def test_the_cheaper_of_two_that_cannot_be_told_apart() -> None:
    """Differences 1, 1, -1, 1, 0: mean 0.4, standard error sqrt(0.8 / 5) = 0.4."""
    best, other = np.array([1.0, 1.0, 0.0, 1.0, 0.5]), np.array([0.0, 0.0, 1.0, 0.0, 0.5])
    accuracy, cost = np.stack([best, other]), prices(4.0, 1.0, problems=5)
    assert best_route(accuracy, cost, np.ones(5), 4.0, 1.0) == 1
    assert best_route(accuracy, cost, np.ones(5), 4.0, 0.99) == 0


def test_pairs_tell_apart_what_intervals_would_not() -> None:
    """Problems differ much more than searches do, but one search is always ahead by 0.05."""
    level = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9])
    accuracy = np.stack([level + 0.05, level])
    assert best_route(accuracy, prices(2.0, 1.0, problems=6), np.ones(6), 2.0, 1.0) == 0


def test_the_cheapest_of_equals() -> None:
    accuracy = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert best_route(accuracy, prices(3.0, 1.0, 1.0, problems=2), np.ones(2), 9.0, 0.0) == 1


def test_one_problem_gives_no_licence_to_save() -> None:
    accuracy = np.array([[1.0, 0.0], [0.9, 1.0]])
    only_first = np.array([1.0, 0.0])
    assert best_route(accuracy, prices(2.0, 1.0, problems=2), only_first, 2.0, 1.0) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 1.5), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_the_choice_keeps_its_rule(seed: int, limit: float, errors: float) -> None:
    rng = np.random.default_rng(seed)
    accuracy, cost = rng.random((6, 8)), rng.random((6, 8))
    weights = rng.integers(0, 2, 8).astype(float)
    weights[:2] = 1.0
    used = weights > 0
    chosen = best_route(accuracy, cost, weights, limit, errors)
    price, mean = cost[:, used].mean(axis=1), accuracy[:, used].mean(axis=1)
    open_ = [row for row in range(6) if price[row] <= limit]
    if not open_:
        assert chosen == price.argmin()
        return
    best = max(open_, key=lambda row: mean[row])

    def is_near(row: int) -> bool:
        gaps = accuracy[best, used] - accuracy[row, used]
        return bool(gaps.mean() <= errors * stats.sem(gaps) + 1e-12)

    assert chosen == min((row for row in open_ if is_near(row)), key=lambda row: price[row])


def test_bins_choose_for_themselves_unless_they_are_too_small() -> None:
    accuracy = np.zeros((2, 12))
    accuracy[0, :6], accuracy[1, 6:] = 1.0, 0.9
    cost = prices(1.0, 1.0, problems=12)
    shares = np.zeros((3, 12))
    shares[0, :6], shares[1, 6:10], shares[2, 10:] = 1.0, 1.0, 1.0
    # Four and two problems are too few, so those bins take what is best for all twelve.
    assert best_routes(accuracy, cost, shares, 1.0, 0.0) == [0, 0, 0]
    shares[1, 6:], shares[2] = 1.0, 0.0
    assert best_routes(accuracy, cost, shares, 1.0, 0.0) == [0, 1, 0]


def test_each_problem_gets_the_search_of_its_bins() -> None:
    values = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    shares = np.array([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]])
    assert routed(values, shares, [0, 2, 1]).tolist() == [1.0, 0.5 * 2 + 0.5 * 200]
    deep = np.stack([values, -values], axis=2)
    assert routed(deep, shares, [0, 2, 1]).tolist() == [[1.0, -1.0], [101.0, -101.0]]


def test_weights_of_one_give_the_usual_error_and_interval() -> None:
    values = np.array([0.1, 0.5, 0.2, 0.9])
    mean, error = weighted_mean(values, np.ones(4))
    assert (mean, error) == (pytest.approx(values.mean()), pytest.approx(stats.sem(values)))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert weighted_interval(values, np.ones(4)) == pytest.approx((values.mean(), low, high))
    padded = weighted_interval(np.append(values, 7.0), np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert padded == pytest.approx((values.mean(), low, high))


def test_weighted_intervals_cover_the_truth() -> None:
    """With weights between 0 and 1, as bins of probes have them."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        weights = rng.random(30)
        _, low, high = weighted_interval(rng.beta(2, 2, 30), weights)
        inside += low <= 0.5 <= high
    assert 0.92 < inside / 1000 < 0.98
