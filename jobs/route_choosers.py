"""Who names the search for a problem: what `branchwise fit` learned, or a published table.

Invariant: a chooser that `chooser_of` returns can choose for every probe: what is missing in a
file, in a table or in the budget has been refused before.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from jobs.budgets import Budget, Measure
from jobs.data import find_path
from jobs.difficulty import Difficulty, Thresholds
from jobs.liu2025 import Exam, liu2025
from jobs.model_shapes import shape_of
from jobs.routed_settings import RoutedSettings
from jobs.routes import Artifact, LearnedPolicy, Route, Router, load_artifact
from jobs.settings import Recipe
from search.config import variant_settings
from search.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Chosen:
    """A route, and what it was chosen by; None where nothing was predicted."""

    route: Route
    pass_at_1: float | None = None
    difficulty: Difficulty | None = None


class Chooser(Protocol):
    """Names the search for each problem of one policy."""

    @property
    def probe(self) -> int:
        """k: samples that it has to see first; 0 for none."""
        ...

    def choose(self, probe: pa.Table, left: Budget) -> Chosen:
        """The search for what is left, from the judged rows of a problem's k samples."""
        ...

    def routes(self, budget: Budget) -> list[Route]:
        """All that it may choose within a budget for a problem, the probe included."""
        ...


@dataclass(frozen=True, slots=True)
class FittedChooser:
    """What `branchwise fit` learned for a policy."""

    router: Router
    policy: str
    thresholds: Thresholds
    learned: LearnedPolicy

    @property
    def probe(self) -> int:
        """See `Chooser`."""
        return self.router.probe

    def choose(self, probe: pa.Table, left: Budget) -> Chosen:
        """See `Chooser`."""
        estimate = self.router.pass_at_1(self.policy, probe)
        route = self.router.route(self.policy, probe, left)
        return Chosen(route, estimate, self.thresholds.bin_of(estimate))

    def routes(self, budget: Budget) -> list[Route]:
        """See `Chooser`."""
        return [
            row.route
            for row in self.learned.routes
            if row.measure is budget.measure
            and getattr(row.cost, str(budget.measure)) <= budget.amount
        ]


@dataclass(frozen=True, slots=True)
class TableChooser:
    """A published table, by a policy's size; `predictor` where it goes by difficulty too."""

    exam: Exam
    parameters: float
    predictor: FittedChooser | None = None

    @property
    def probe(self) -> int:
        """See `Chooser`."""
        return self.predictor.probe if self.predictor else 0

    def choose(self, probe: pa.Table, left: Budget) -> Chosen:
        """See `Chooser`."""
        if self.predictor is None:
            return Chosen(self._route(Difficulty.EASY, left))
        estimate = self.predictor.router.pass_at_1(self.predictor.policy, probe)
        difficulty = self.predictor.thresholds.bin_of(estimate)
        return Chosen(self._route(difficulty, left), estimate, difficulty)

    def routes(self, budget: Budget) -> list[Route]:
        """See `Chooser`."""
        left = Budget(budget.amount - self.probe, budget.measure)
        return [self._route(difficulty, left) for difficulty in Difficulty]

    def _route(self, difficulty: Difficulty, left: Budget) -> Route:
        return liu2025(self.parameters, difficulty, int(left.amount), self.exam)


def chooser_of(recipe: Recipe, search: RoutedSettings, policy: str, budget: Budget) -> Chooser:
    """The chooser of a policy's search, if it can work; raises RecipeError, one line."""
    chooser: Chooser
    if search.routes in list(Exam):
        chooser = _table(recipe, search, policy, budget)
    else:
        if search.predictor:
            raise RecipeError("predictor is for the tables liu2025 only: remove it")
        difficulty = recipe.difficulty
        thresholds = Thresholds(difficulty.easy, difficulty.hard)
        chooser = _fitted(recipe, search.routes, policy, thresholds)
        chooser.router.check(policy, budget)
    for route in chooser.routes(budget):
        _check_variant(route)
    return chooser


def artifact_of(search: RoutedSettings) -> Artifact | None:
    """The fitted file that a search reads; None for a table alone. Raises RecipeError."""
    path = search.predictor if search.routes in list(Exam) else search.routes
    return load_routes(path) if path else None


def load_routes(written: str) -> Artifact:
    """A file of `branchwise fit`, looked up as all paths of a recipe are; raises RecipeError."""
    path = find_path(written) or Path(written)
    if not path.is_file():
        return load_artifact(path)
    facts = path.stat()
    return _loaded(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def _loaded(path: Path, changed_ns: int, size: int) -> Artifact:
    """Read once: a large file takes seconds, and checks and search both need it."""
    return load_artifact(path)


def _fitted(recipe: Recipe, written: str, policy: str, thresholds: Thresholds) -> FittedChooser:
    artifact = load_routes(written)
    router = Router(artifact, Path(recipe.prm.model).name if recipe.prm else None, thresholds)
    return FittedChooser(router, policy, artifact.thresholds, router.learned(policy))


def _table(recipe: Recipe, search: RoutedSettings, policy: str, budget: Budget) -> TableChooser:
    exam, size = Exam(search.routes), _parameters(recipe, policy)
    if budget.measure is not Measure.SOLUTIONS:
        raise RecipeError(f"{exam} knows no costs: give the budget in solutions, not {budget}")
    if not size:
        raise RecipeError(f"{exam} goes by the policy's size, which is not known of {policy!r}")
    whole = int(budget.amount)
    if len({str(liu2025(size, each, whole, exam)) for each in Difficulty}) == 1:
        return TableChooser(exam, size)
    if search.predictor is None:
        raise RecipeError(
            f"{exam} goes by difficulty for {policy!r}: give predictor, a file of branchwise fit"
        )
    predictor = _fitted(recipe, search.predictor, policy, Thresholds())
    predictor.router.check(policy, budget)
    return TableChooser(exam, size, predictor)


def _parameters(recipe: Recipe, policy: str) -> float:
    [settings] = [each for each in recipe.policies if each.name == policy]
    shape = None if settings.engine == "fake" else shape_of(settings.model)
    return float(shape.parameters) if shape else 0.0


def _check_variant(route: Route) -> None:
    try:
        variant_settings(route.variant)
    except ValueError as error:
        raise RecipeError(f"the route {route} cannot be run here: {error}") from None
