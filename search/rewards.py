"""Reductions: how the rewards of a solution's steps become one score."""

import math
from collections.abc import Sequence
from enum import StrEnum


class Reduction(StrEnum):
    """`last`, `min`, `mean` and `prod`; papers call the first three PRM-Last, -Min and -Avg."""

    LAST = "last"
    MIN = "min"
    MEAN = "mean"
    PROD = "prod"


def reduce_rewards(rewards: Sequence[float], reduction: Reduction) -> float:
    """The score of a solution; 0 for one without a scored step."""
    if not rewards:
        return 0.0
    match reduction:
        case Reduction.LAST:
            return rewards[-1]
        case Reduction.MIN:
            return min(rewards)
        case Reduction.MEAN:
            return math.fsum(rewards) / len(rewards)
        case Reduction.PROD:
            return math.prod(rewards)
