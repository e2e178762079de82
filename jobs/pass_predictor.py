"""Pass@1 of a problem from a probe's features: a logistic regression of five numbers.

Small on purpose: a few hundred problems do not carry more, and its coefficients can be read.
Invariant: the same rows give the same coefficients; nothing is drawn at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.difficulty import FEATURES
from search.votes import Floats

# Strength of the pull towards 0, in problems: a coefficient of 1 (of a feature scaled to variance
# 1) costs as much as half a unit of log-likelihood, whatever the number of problems.
RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Predictor:
    """log-odds of pass@1 = intercept + the sum of weight x feature, features as they are."""

    intercept: float
    weights: Mapping[str, float]

    def pass_at_1(self, features: Floats) -> Floats:
        """(...,): estimates for (..., FEATURES)."""
        weights = np.array([self.weights[name] for name in FEATURES])
        return _logistic(np.asarray(self.intercept + features @ weights, dtype=np.float64))


def fit_predictor(features: Floats, pass_at_1: Floats, weight: Floats) -> Predictor:
    """The ridge-regularised maximum of the binomial likelihood.

    features (Q, FEATURES) of Q probes; pass_at_1 (Q,): the share of right samples beside the
    probe's own; weight (Q,): how much a probe counts, 1 in all for each problem. The intercept is
    not pulled. A feature that never varies gets the weight 0.
    """
    mean = np.average(features, axis=0, weights=weight)
    spread = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weight))
    scale = np.where(spread > 1e-9, spread, np.inf)
    found = _maximum(
        np.column_stack([np.ones(len(features)), (features - mean) / scale]),
        *(
            pass_at_1,
            weight,
        ),
    )
    slopes = found[1:] / scale
    names = dict(zip(FEATURES, slopes.tolist(), strict=True))
    return Predictor(float(found[0] - slopes @ mean), names)


def _maximum(rows: Floats, share: Floats, weight: Floats) -> Floats:
    """Coefficients of standardised features; the loss is convex, so there is one minimum."""
    from scipy.optimize import minimize

    def loss(beta: Floats) -> tuple[float, Floats]:
        return penalised_loss(beta, rows, share, weight)

    options: dict[str, Any] = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    start = np.zeros(rows.shape[1])
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)


def penalised_loss(
    beta: Floats, rows: Floats, share: Floats, weight: Floats
) -> tuple[float, Floats]:
    """Negative log-likelihood plus ridge, and its gradient; `rows` begins with a column of ones."""
    odds, pull = rows @ beta, RIDGE * np.append(0.0, beta[1:])
    likelihood = weight @ (np.logaddexp(0.0, odds) - share * odds)
    gradient = rows.T @ (weight * (_logistic(odds) - share)) + pull
    return float(likelihood + 0.5 * pull @ beta), gradient


def _logistic(odds: Floats) -> Floats:
    """1 / (1 + exp(-odds)), which does not overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -odds)))
