"""From a recipe's searches to their plans, and what the plans did to a table."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.budgets import Budget
from jobs.commits import graded
from jobs.dispatch import SearchPlan
from jobs.grading import Graders
from jobs.route_choosers import chooser_of
from jobs.routed_search import RoutedSearch, most_solutions
from jobs.routed_settings import RoutedSettings
from jobs.routes import PROBE_STRATEGY
from jobs.search_plans import Judge, StoppingSearch, WeightedSearch, WholeSearch
from jobs.settings import AllocationSettings, Recipe, SearchSettings, StopSettings
from jobs.stopping import Stopping, StopRule
from search.config import Limits, SearchConfig
from search.max_entropy import max_entropy_weight
from search.problem import Problem
from search.protocols import Sampling
from search.rewards import Reduction
from search.schemas import STOPS
from search.votes import Vote


def search_plans(recipe: Recipe, policy: str, problems: int, graders: Graders) -> list[SearchPlan]:
    """What a policy does with every problem, search by search."""
    size = recipe.work.solutions_per_unit
    plain = (
        _plan(search, config, size, problems, graders)
        for search, config in recipe.searches_of(policy)
    )
    routed = (
        routed_search(recipe, policy, search, budget, graders)
        for search, budget in recipe.routed_of(policy)
    )
    return [*plain, *routed]


def routed_search(
    recipe: Recipe, policy: str, search: RoutedSettings, budget: Budget, graders: Graders
) -> RoutedSearch:
    """A compute-optimal search; raises RecipeError if its routes cannot be taken."""
    base = SearchConfig(
        strategy=PROBE_STRATEGY,
        n=1,
        branching=1,
        keep=1,
        reduction=Reduction.LAST,
        run_seed=recipe.seed,
        limits=Limits(**recipe.limits.model_dump()),
        sampling=Sampling(**recipe.sampling.model_dump()),
        thinking=recipe.thinking_of(policy),
        spending=search.mark(budget),
    )
    chooser = chooser_of(recipe, search, policy, budget)
    size, judge = recipe.work.solutions_per_unit, _judge(graders, base)
    return RoutedSearch(search, budget, chooser, base, size, judge)


def routed_solutions(recipe: Recipe, policy: str) -> int:
    """Solutions of a problem in all compute-optimal searches of a policy, at most."""
    return sum(
        most_solutions(chooser_of(recipe, search, policy, budget), budget)
        for search, budget in recipe.routed_of(policy)
    )


def _plan(
    search: SearchSettings, config: SearchConfig, size: int, problems: int, graders: Graders
) -> SearchPlan:
    if search.stop:
        rule, judge = search.stop, _judge(graders, config)
        return StoppingSearch(config, size, _rule(rule), rule.audit, rule.most_extra, judge)
    if search.allocation:
        probe = search.allocation.probe // config.branching
        weight = _Weight(search.allocation)
        return WeightedSearch(config, size, probe, problems, _judge(graders, config), weight)
    return WholeSearch(config, size)


def _rule(stop: StopSettings) -> Stopping:
    return Stopping(StopRule(stop.rule), stop.threshold, stop.at_least, stop.every, Vote(stop.vote))


class _Weight:
    """A problem's weight from its probe: how near one half its success is."""

    def __init__(self, allocation: AllocationSettings) -> None:
        self._allocation = allocation

    def __call__(self, probe: pa.Table) -> float:
        return max_entropy_weight(self._success(probe), self._allocation.strength)

    def _success(self, probe: pa.Table) -> float:
        """Correct solutions, or votes for the best answer, over all solutions.

        A probe whose units all failed has none: such a problem counts as one never solved.
        """
        solutions = max(1, len(probe))
        if self._allocation.success == "graded":
            correct = pc.sum(pc.equal(probe["verdict"], "correct")).as_py() or 0
            return float(correct) / solutions
        classes = probe["answer_class"].to_numpy()
        voting = classes[classes >= 0]
        return float(np.bincount(voting).max(initial=0)) / solutions


def _judge(graders: Graders, config: SearchConfig) -> Judge:
    """Judges a search's solutions as they come, apart from the problem's last judgement.

    So the classes that are written at the end do not depend on which search was first.
    """
    name = f"{config.strategy} {config.n} {config.branching} {config.variant}"

    async def judge(problem: Problem, solutions: pa.Table) -> pa.Table:
        aside = replace(problem, problem_id=f"{problem.problem_id} {name}")
        return await graded(solutions, aside, graders)

    return judge


def stops_table(plans: Sequence[SearchPlan], policy: str) -> pa.Table:
    """`STOPS`: what each problem did under a stopping rule, in the order of the problems."""
    rows = [
        asdict(stop) | _columns(plan.config) | {"policy": policy}
        for plan in plans
        if isinstance(plan, StoppingSearch)
        for stop in sorted(plan.stops, key=lambda stop: plan.place(stop.problem_id))
    ]
    return pa.Table.from_pylist(rows, STOPS)


def _columns(config: SearchConfig) -> dict[str, object]:
    names = ("strategy", "n", "branching", "keep", "variant")
    return {name: getattr(config, name) for name in names}
