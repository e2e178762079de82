"""`strategy: compute_optimal` in a recipe: which routes, and what a problem may cost."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from jobs.budgets import Budget, Measure, parse_budget
from jobs.data import MOST, Section, optional
from search.config import ROUTED
from search.errors import RecipeError


def _as_texts(value: object) -> object:
    """One budget or a list of them, each as text."""
    several = value if isinstance(value, list | tuple) else [value]
    numbers = (int, float)
    return [
        str(each) if isinstance(each, numbers) and not isinstance(each, bool) else each
        for each in several
    ]


def _exact(text: str) -> str:
    """The budget as it is written in `run.json`."""
    try:
        budget = parse_budget(text)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    if budget.measure is Measure.SOLUTIONS and not budget.amount.is_integer():
        raise ValueError(f"{text!r} is no whole number of solutions")
    if budget.measure is Measure.SOLUTIONS and budget.amount > MOST:
        raise ValueError(f"{text!r} is more than the tables can number: write {MOST} or less")
    return budget.exact


BudgetText = Annotated[str, AfterValidator(_exact)]


class RoutedSettings(Section):
    """A search that is chosen for each problem, by a probe of it."""

    strategy: Literal["compute_optimal"] = Field(description="Chooses a search for each problem")
    routes: str = Field(
        min_length=1,
        description="File of branchwise fit, or liu2025, liu2025_aime, liu2025_r1",
    )
    budget: Annotated[tuple[BudgetText, ...], BeforeValidator(_as_texts)] = Field(
        min_length=1,
        description="What a problem may cost: 64, 2e5 tokens, 1e12 flops; a list means one search "
        "for each",
    )
    predictor: str | None = optional("File of branchwise fit that predicts difficulty for liu2025")
    policies: tuple[str, ...] | None = optional("Names of the policies that run it; all if null")

    @property
    def budgets(self) -> list[Budget]:
        """One for each search."""
        return [parse_budget(text) for text in self.budget]

    def is_run_by(self, policy: str) -> bool:
        """Whether a policy, by its name, runs this search."""
        return self.policies is None or policy in self.policies

    @property
    def routes_name(self) -> str:
        """The routes in the tables: the file's name without its ending."""
        return "_".join(Path(self.routes).stem.split())

    def variant(self, budget: Budget) -> str:
        """What names the search in `answers` and `routes`; solutions are in their `n`."""
        named = f"routes={self.routes_name}"
        if budget.measure is Measure.SOLUTIONS:
            return named
        return f"{named} budget={budget.exact.replace(' ', '')}"

    def mark(self, budget: Budget) -> str:
        """What the variants of its rows in all other tables end with."""
        return f"{ROUTED}{self.routes_name},{budget.exact.replace(' ', '')}"
