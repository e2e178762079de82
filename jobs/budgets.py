"""What a problem may cost, as recipes and options give it. Nothing heavy is imported here."""

import math
from dataclasses import dataclass
from enum import StrEnum

from search.errors import RecipeError


class Measure(StrEnum):
    """What a budget is counted in."""

    SOLUTIONS = "solutions"
    TOKENS = "tokens"
    FLOPS = "flops"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one problem may cost, the probe included."""

    amount: float
    measure: Measure = Measure.SOLUTIONS

    def __str__(self) -> str:
        return f"{self.amount:g} {self.measure}"

    @property
    def exact(self) -> str:
        """The budget with all its digits; `parse_budget` reads it."""
        return f"{self.amount:.15g} {self.measure}"


def parse_budget(text: str) -> Budget:
    """`64 solutions`, `2e5 tokens` or `1e12 flops`; a number alone counts solutions."""
    amount, _, measure = text.strip().partition(" ")
    try:
        budget = Budget(float(amount), Measure(measure.strip() or Measure.SOLUTIONS))
    except ValueError:
        wanted = f"a number and one of {', '.join(Measure)}, such as '64 solutions'"
        raise RecipeError(f"cannot read the budget {text!r}: write {wanted}") from None
    if not 0.0 < budget.amount < math.inf:
        raise RecipeError(f"the budget {text!r} must be a number above 0")
    return budget
