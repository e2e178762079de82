"""95 % intervals over problems: the problems are the draws, the solutions of one are not.

Invariant: one value a problem. The solutions of one problem share its difficulty, so counting
each as a draw would make intervals far too narrow (Miller 2024, arXiv 2411.00640, section 2.2).
tests/test_intervals.py measures how often both intervals hold the truth.
"""

import numpy as np

from search.votes import Floats

CONFIDENCE = 0.95
# How much the largest variance that a mean allows weighs, in problems at accuracy one half.
PRIOR_PROBLEMS = 0.5


def clustered_interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and 95 % interval over problems of (P, ...) values; NaN values are left out.

    Student's t over P values: for differences, and for whatever has no bounds. With one problem
    the interval is NaN, without any the mean is too.
    """
    count, mean, variance = _moments(values)
    with np.errstate(invalid="ignore"):
        half = _quantile(count) * np.sqrt(variance / count)
    return mean, mean - half, mean + half


def accuracy_interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and 95 % interval inside [0, 1] of (P, ...) values that lie there, such as accuracies.

    Wilson's interval for P problems, each of which counts for as many single answers as its
    value is steadier than one (the design effect; Dean and Pagano 2015, Journal of Survey
    Statistics and Methodology 3:484). With few problems near 0 or 1 their variance says little,
    so it is mixed with the largest that the mean allows, that of right and wrong answers alone.
    Student's t would give no width at all where all problems are wrong.
    """
    count, mean, variance = _moments(values)
    room = np.clip(mean * (1.0 - mean), 0.0, None)
    with np.errstate(invalid="ignore"):
        width = _quantile(count) ** 2 * _steadiness(count, room, variance) / count
        middle = (mean + width / 2) / (1 + width)
        half = np.sqrt(width * room + width**2 / 4) / (1 + width)
    return mean, np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)


def _moments(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Number of known values, their mean, and their variance (NaN for one)."""
    known = ~np.isnan(values)
    count = known.sum(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(axis=0) / count
        squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
        return count, mean, squares / (count - 1)


def _quantile(count: Floats) -> Floats:
    from scipy.special import stdtrit

    return np.where(count > 1, stdtrit(np.maximum(count - 1, 1), 0.5 + CONFIDENCE / 2), np.nan)


def _steadiness(count: Floats, room: Floats, variance: Floats) -> Floats:
    """The variance over that of right and wrong answers with the same mean, in [0, 1]."""
    problems = 4 * count * room
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(variance * (count - 1) / count / room, 0.0, 1.0)
        seen = np.where(room > 0, share * problems, 0.0)
    return np.asarray((seen + PRIOR_PROBLEMS) / (problems + PRIOR_PROBLEMS))
