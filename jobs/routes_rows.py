"""Rows of the table `routes`: what a compute-optimal search chose, paid and answered.

Invariant: the vote is the one that the route names, over the solutions of the route and no
others.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.budgets import Measure
from jobs.curves import ballots_of, scores_of
from jobs.dispatch import SearchPlan
from jobs.routed_search import RoutedSearch, Taken
from jobs.routes import Route
from search.config import COMPUTE_OPTIMAL
from search.problem import Problem
from search.rewards import Reduction
from search.rows import NO_CLASS
from search.schemas import ROUTES
from search.votes import decide

Row = dict[str, Any]
_VOTED = ("answer", "answer_class", "expected_correct")


def routes_rows(
    plans: Iterable[SearchPlan], policy: str, problem: Problem, graded: pa.Table
) -> pa.Table:
    """`ROUTES`: one row for each compute-optimal search of a problem that has ended.

    graded: all solutions of the problem by the policy. None for a search whose probe failed.
    """
    rows = []
    for plan in plans:
        if isinstance(plan, RoutedSearch):
            taken = plan.taken(problem.problem_id)
            if taken is not None:
                rows.append(_row(plan, policy, problem, taken) | _vote(taken, graded))
    return pa.Table.from_pylist(rows, ROUTES)


def _row(plan: RoutedSearch, policy: str, problem: Problem, taken: Taken) -> Row:
    budget, chosen = plan.budget, taken.chosen
    spent = taken.probe.of(budget.measure) + taken.rest.of(budget.measure)
    return (
        {
            "problem_id": problem.problem_id,
            "policy": policy,
            "strategy": COMPUTE_OPTIMAL,
            "n": int(budget.amount) if budget.measure is Measure.SOLUTIONS else 0,
            "branching": 0,
            "keep": 0,
            "variant": plan.settings.variant(budget),
            "searched_as": plan.settings.mark(budget),
            "routes": plan.settings.routes,
            "measure": str(budget.measure),
            "budget": budget.amount,
            "pass_at_1": chosen.pass_at_1,
            "difficulty": chosen.difficulty and str(chosen.difficulty),
            "overspent": spent > budget.amount,
        }
        | _route_columns(chosen.route)
        | {f"probe_{measure}": getattr(taken.probe, measure) for measure in Measure}
        | {f"rest_{measure}": getattr(taken.rest, measure) for measure in Measure}
    )


def _route_columns(route: Route) -> Row:
    scored = route.vote_reduction
    return {
        "route_strategy": route.strategy,
        "route_n": route.n,
        "route_branching": route.branching,
        "route_reduction": str(route.reduction),
        "route_vote": str(route.vote),
        "route_vote_reduction": None if scored is None else str(scored),
        "route_variant": route.variant,
    }


def _vote(taken: Taken, graded: pa.Table) -> Row:
    """The answer by the route's own vote; null if units of it failed."""
    if not taken.complete:
        return dict.fromkeys(_VOTED)
    route, rows = taken.chosen.route, voters(taken, graded)
    scores = scores_of(rows, route.vote_reduction or Reduction.LAST)
    decision = decide(ballots_of(rows), scores, route.vote)
    winner = decision.answer_class
    texts = rows.filter(pc.equal(rows["answer_class"], winner))["answer"]
    answer = "" if winner == NO_CLASS else texts[0].as_py()
    return dict(zip(_VOTED, (answer, winner, decision.expected_correct), strict=True))


def voters(taken: Taken, graded: pa.Table) -> pa.Table:
    """The solutions of a problem that vote: those of the route, in the order of their tree."""
    config, keep = taken.config, None
    for name in ("strategy", "variant", "n", "branching"):
        same = pc.equal(graded[name], getattr(config, name))
        keep = same if keep is None else pc.and_(keep, same)
    rows = graded.filter(keep)
    if config.n != taken.chosen.route.n:
        # The rows of the probe and of what came after it; a smaller route has its first ones.
        rows = rows.filter(pc.less(rows["subtree"], taken.chosen.route.n))
    return rows.sort_by([("subtree", "ascending"), ("solution_id", "ascending")])
