"""How much a problem can still teach: its success rate's divergence from one half, and a weight.

Pure. From the MaxEnt-guided policy optimisation of VibeThinker (arXiv 2511.06221): problems that
a policy solves about half of the time have the weight 1, those it always or never solves the
least.
"""

import math

HALF = 0.5


def divergence_from_half(success: float) -> float:
    """KL(p || 0.5) in nats: p ln(p / 0.5) + (1 - p) ln((1 - p) / 0.5), from 0 to ln 2.

    success: p in [0, 1]; 0 ln 0 counts as 0. Raises ValueError outside.
    """
    if not 0.0 <= success <= 1.0:
        raise ValueError(f"a success rate lies between 0 and 1, not at {success}")
    # Never below 0, where rounding would put it for p next to one half.
    return max(0.0, _term(success) + _term(1.0 - success))


def max_entropy_weight(success: float, strength: float = 1.0) -> float:
    """exp(-strength * KL(p || 0.5)), in (0, 1]: 1 at p = 0.5, 2**-strength at p = 0 and p = 1.

    strength: lambda from 0; 0 gives every problem the weight 1. Raises ValueError for p outside
    [0, 1] and for a strength that is negative or not finite.
    """
    if not (math.isfinite(strength) and strength >= 0.0):
        raise ValueError(f"lambda of the max-entropy weight is a number from 0, not {strength}")
    return math.exp(-strength * divergence_from_half(success))


def _term(share: float) -> float:
    return share * math.log(share / HALF) if share else 0.0
