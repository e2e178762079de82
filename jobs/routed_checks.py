"""Checks of compute-optimal searches: routes that can be read, taken and paid for.

Invariant: a complaint is one line that says what to change, and where. Routes are read only if a
recipe has such a search, so other recipes are answered without the libraries that this takes.
"""

from collections.abc import Iterator, Sequence

from jobs.budgets import Budget, Measure
from jobs.routed_settings import RoutedSettings
from jobs.settings import PolicySettings, Recipe
from search.errors import RecipeError
from search.problem import Problem
from search.strategies import STRATEGIES
from search.thinking import Scored

_SHOWN = 3


def routed_complaints(recipe: Recipe) -> Iterator[str]:
    """What to change, one line a complaint."""
    for place, search in enumerate(recipe.searches):
        if isinstance(search, RoutedSettings):
            yield from _search_complaints(f"searches.{place}", search, recipe)


def _search_complaints(where: str, search: RoutedSettings, recipe: Recipe) -> Iterator[str]:
    if recipe.prm is None:
        yield f"{where}: {search.strategy} needs a PRM: add a prm section"
        return
    counts_none = [p for p in [*recipe.policies, recipe.prm] if p.engine == "fake"]
    for policy in (each for each in recipe.policies if search.is_run_by(str(each.name))):
        for budget in search.budgets:
            if budget.measure is Measure.FLOPS and counts_none:
                yield f"{where}.budget: fake engines count no FLOPs: use solutions or tokens"
                return
            if complaint := _complaint(search, recipe, policy, budget):
                yield f"{where}: {complaint}"
                return


def _complaint(
    search: RoutedSettings, recipe: Recipe, policy: PolicySettings, budget: Budget
) -> str:
    """The first thing that keeps a policy from running the search; "" if nothing does."""
    from jobs.route_choosers import chooser_of

    try:
        routes = chooser_of(recipe, search, str(policy.name), budget).routes(budget)
    except RecipeError as error:
        return str(error)
    if policy.thinking:
        for route in routes:
            kind = STRATEGIES[route.strategy]
            if "compat=" in route.variant:
                return f"the route {route} knows no thinking parts: fit without compat"
            if kind.uses_prm and not kind.samples and policy.thinking.score is Scored.ANSWER:
                return (
                    f"the route {route} compares steps while {policy.name!r} thinks: set "
                    "thinking.score: all, or fit best_of_n and majority only"
                )
    return ""


def check_overlap(recipe: Recipe, problems: Sequence[Problem]) -> None:
    """Refuses problems that routes were learned from, by id and by text; raises RecipeError."""
    for place, search in enumerate(recipe.searches):
        known = _learned_from(search, problems) if isinstance(search, RoutedSettings) else []
        if known:
            shown = ", ".join(map(repr, known[:_SHOWN])) + ", ..." * (len(known) > _SHOWN)
            raise RecipeError(
                f"searches.{place}.routes: {len(known)} of {len(problems)} problems were learned "
                f"from ({shown}): take other problems, or fit on others"
            )


def _learned_from(search: RoutedSettings, problems: Sequence[Problem]) -> list[str]:
    from jobs.route_choosers import artifact_of
    from jobs.routes import overlap

    artifact = artifact_of(search)
    if artifact is None:
        return []
    ids, texts = [p.problem_id for p in problems], [p.text for p in problems]
    return overlap(artifact, ids, texts)


def check_plan(recipe: Recipe) -> None:
    """Refuses to plan what is decided while a run goes on; raises RecipeError."""
    for place, search in enumerate(recipe.searches):
        if isinstance(search, RoutedSettings):
            raise RecipeError(
                f"searches.{place}: {search.strategy} decides what it runs while it runs, so there "
                f"is no plan of it: plan with searches.{place} replaced by what it may choose"
            )
