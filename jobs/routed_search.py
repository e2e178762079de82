"""`strategy: compute_optimal` while a run goes on: probe, predict, route, spend the rest.

Invariant: what is run of a problem follows from the recipe, its files and the problem's own
probe; what the probe really cost is paid from the budget before a route is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from jobs.budgets import Budget, Measure
from jobs.costs import tokens_and_flops
from jobs.dispatch import Run
from jobs.route_choosers import Chooser, Chosen
from jobs.routed_settings import RoutedSettings
from jobs.routes import PROBE_STRATEGY, Route
from jobs.search_plans import Judge
from search.config import SearchConfig, variant_settings
from search.partition import WorkUnit, partition_range
from search.problem import Problem
from search.rewards import Reduction
from search.schemas import SOLUTIONS
from search.strategies import keep_count, subtree_count
from search.votes import Vote


@dataclass(frozen=True, slots=True)
class Spent:
    """What units cost: `solutions` that they were asked for, and what `jobs.costs` counts."""

    solutions: int = 0
    tokens: int = 0
    flops: float = 0.0

    def of(self, measure: Measure) -> float:
        """In one measure."""
        return float(getattr(self, str(measure)))

    def less(self, other: "Spent") -> "Spent":
        """What was spent beyond another sum."""
        return Spent(
            self.solutions - other.solutions, self.tokens - other.tokens, self.flops - other.flops
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """The route of one problem, and what it cost.

    config: which rows of the tables are of the route; of the samples only the first `route.n`
    vote. complete: whether no unit failed.
    """

    chosen: Chosen
    config: SearchConfig
    probe: Spent
    rest: Spent
    complete: bool


@dataclass(slots=True)
class RoutedSearch:
    """One compute-optimal search. base: the settings that its probe and its routes share."""

    settings: RoutedSettings
    budget: Budget
    chooser: Chooser
    base: SearchConfig
    solutions_per_unit: int
    judge: Judge
    is_whole: ClassVar[bool] = False
    _taken: dict[str, Taken] = field(default_factory=dict)

    def first_units(self, problem: Problem) -> list[WorkUnit]:
        """See `SearchPlan`; without a probe the whole search."""
        probe = self.chooser.probe
        if not probe:
            return self._rest(problem, self._unseen().route)
        return self._units(problem, self._config(_samples(probe)), range(probe))

    async def finish(self, problem: Problem, found: pa.Table, run: Run) -> pa.Table:
        """See `SearchPlan`. A problem whose probe lost samples is left out: `units` says why."""
        probe = self.chooser.probe
        if not probe:
            chosen = self._unseen()
            self._take(problem, chosen, Spent(), self._rest(problem, chosen.route), run)
            return found
        if found.num_rows < probe:
            return found
        paid = _spent(self.first_units(problem), run.units)
        left = Budget(self.budget.amount - paid.of(self.budget.measure), self.budget.measure)
        chosen = self.chooser.choose(await self.judge(problem, found), left)
        units = self._rest(problem, chosen.route)
        more = await run(units)
        self._take(problem, chosen, paid, [*self.first_units(problem), *units], run)
        return pa.concat_tables([found, more])

    def taken(self, problem_id: str) -> Taken | None:
        """The route of a problem that has ended, once; None if its probe failed."""
        return self._taken.pop(problem_id, None)

    def _unseen(self) -> Chosen:
        return self.chooser.choose(SOLUTIONS.empty_table(), self.budget)

    def _take(
        self, problem: Problem, chosen: Chosen, paid: Spent, units: Sequence[WorkUnit], run: Run
    ) -> None:
        rest = _spent(units, run.units).less(paid)
        complete = bool(pc.all(pc.equal(run.units["status"], "done")).as_py())
        config = self._route_config(chosen.route)
        self._taken[problem.problem_id] = Taken(chosen, config, paid, rest, complete)

    def _rest(self, problem: Problem, route: Route) -> list[WorkUnit]:
        """What is still to be run: of independent samples those that the probe has not."""
        config = self._route_config(route)
        if self._goes_on(route):
            return self._units(problem, config, range(self.chooser.probe, route.n))
        return self._units(
            problem, config, range(subtree_count(config.strategy, config.n, config.branching))
        )

    def _route_config(self, route: Route) -> SearchConfig:
        # Samples after the probe are rows of its search: nodes were written before N was known.
        goes_on = self._goes_on(route)
        return self._config(_samples(self.chooser.probe) if goes_on else route)

    def _goes_on(self, route: Route) -> bool:
        """Whether the probe's samples are the first of the route, or all of them."""
        return self.chooser.probe > 0 and route.reuses(min(self.chooser.probe, route.n))

    def _config(self, route: Route) -> SearchConfig:
        return replace(
            self.base,
            strategy=route.strategy,
            n=route.n,
            branching=route.branching,
            keep=keep_count(route.strategy, route.n, route.branching),
            reduction=route.reduction,
            **variant_settings(route.variant),
        )

    def _units(self, problem: Problem, config: SearchConfig, subtrees: range) -> list[WorkUnit]:
        return list(partition_range(problem, config, self.solutions_per_unit, subtrees))


def most_solutions(chooser: Chooser, budget: Budget) -> int:
    """Solutions of a problem in one search, at most."""
    return max((chooser.probe + route.n for route in chooser.routes(budget)), default=0)


def _samples(probe: int) -> Route:
    """The probe as a search: nothing chooses among its samples, so its vote means nothing."""
    return Route(PROBE_STRATEGY, probe, 1, Reduction.LAST, Vote.MAJORITY)


def _spent(units: Sequence[WorkUnit], rows: pa.Table) -> Spent:
    return Spent(sum(unit.solutions for unit in units), *tokens_and_flops(rows))
