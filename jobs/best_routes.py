"""Which search is best for some problems within a budget: the rule, and honest means.

Invariant: nothing is drawn at random, and a search is chosen by the problems it is given and by
no others.
"""

from collections.abc import Sequence

import numpy as np

from jobs.intervals import CONFIDENCE
from search.votes import Floats

# A bin with fewer problems takes the search that is best for all of them.
MIN_PROBLEMS = 5
# Sums of costs that were added up in another order differ in their last bits.
_SLACK = 1.0 + 1e-9


def weighted_mean(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mean over problems of (..., P) values with weights (P,), and its standard error.

    With weights of 0 and 1 both are the usual ones. The error is infinite for less than two
    problems' worth of weight: one problem says nothing about others.
    """
    share = weights / weights.sum()
    mean = values @ share
    squares = ((values - mean[..., None]) ** 2) @ share**2
    effective = 1.0 / (share**2).sum()
    if effective < 2.0:
        return mean, np.full(mean.shape, np.inf)
    return mean, np.sqrt(squares * effective / (effective - 1.0))


def weighted_interval(values: Floats, weights: Floats) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t) of values (P,); NaN ends where there is no error."""
    from scipy.special import stdtrit

    mean, error = weighted_mean(values, weights)
    if not np.isfinite(error):
        return float(mean), float("nan"), float("nan")
    effective = weights.sum() ** 2 / (weights**2).sum()
    half = stdtrit(effective - 1.0, 0.5 + CONFIDENCE / 2) * error
    return float(mean), float(mean - half), float(mean + half)


def best_route(
    accuracy: Floats, cost: Floats, weights: Floats, limit: float, standard_errors: float
) -> int:
    """The row of the search to take, of R searches over P problems.

    accuracy, cost (R, P); weights (P,): how much each problem counts. The rule:

    1. Searches whose mean cost is within the limit are open; if none is, the cheapest is taken.
    2. Of these the one with the highest mean accuracy is the best.
    3. A search is as good if it is behind the best by at most `standard_errors` standard errors
       of their paired difference (the one-standard-error rule, Breiman et al. 1984, with pairs).
    4. Of those that are as good the cheapest is taken, then the most accurate, then the first.
    """
    price = cost @ (weights / weights.sum())
    within = np.flatnonzero(price <= limit * _SLACK)
    if not within.size:
        return int(np.argmin(price))
    mean, _ = weighted_mean(accuracy[within], weights)
    gap, error = weighted_mean(accuracy[within[np.argmax(mean)]] - accuracy[within], weights)
    # An infinite error must not make searches equal of which nothing is known but the mean.
    allowed = standard_errors * np.where(np.isfinite(error), error, 0.0)
    near = gap <= allowed + 1e-12
    order = np.lexsort((-mean[near], price[within][near]))
    return int(within[near][order[0]])


def best_routes(
    accuracy: Floats, cost: Floats, shares: Floats, limit: float, standard_errors: float
) -> list[int]:
    """`best_route` for each bin; shares (bins, P): how much of each problem is in it."""
    together = shares.sum(axis=0)
    weights = [share if share.sum() >= MIN_PROBLEMS else together for share in shares]
    return [best_route(accuracy, cost, each, limit, standard_errors) for each in weights]


def routed(values: Floats, shares: Floats, routes: Sequence[int]) -> Floats:
    """(P, ...): what each problem gets of (R, P, ...) values if each bin takes its route."""
    parts = [
        values[row] * share.reshape(-1, *[1] * (values.ndim - 2))
        for row, share in zip(routes, shares, strict=True)
    ]
    return np.asarray(sum(parts))
