"""The search that stands for a run, as its recipe chooses it.

Invariant: it follows from the recipe alone, never from results, so that the nights of a recipe
show the same search however they went. Nothing heavy is imported here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.settings import Recipe, SearchSettings
from search.config import COMPUTE_OPTIMAL, is_uneven
from search.strategies import STRATEGIES

# As in jobs.curves, which loads numpy.
_PASS, _ROUTE, _NO_REDUCTION, _MAJORITY, _WEIGHTED = "pass", "route", "none", "majority", "weighted"


@dataclass(frozen=True, slots=True)
class Headline:
    """A point of the table `answers`. n: None for the one N of a compute-optimal search, which may
    be counted in tokens or FLOPs."""

    policy: str
    strategy: str
    variant: str
    n: int | None
    branching: int
    reduction: str
    vote: str

    def __str__(self) -> str:
        size = "" if self.n is None else f" at N = {self.n}"
        vote = self.vote if self.reduction == _NO_REDUCTION else f"{self.reduction} {self.vote}"
        return f"{self.policy}, {f'{self.strategy} {self.variant}'.rstrip()}{size}, {vote}"


def headline_of(recipe: Recipe) -> Headline | None:
    """The first search of the recipe that fits its section `headline`; None if none does."""
    asked = recipe.headline
    return next((each for each in _candidates(recipe) if _fits(asked.n, each)), None)


def headline_complaints(recipe: Recipe) -> Iterator[str]:
    """What to change about the section, if no search is the one that it names."""
    asked = recipe.headline.model_dump(exclude_none=True, exclude={"reduction", "vote"})
    if asked and headline_of(recipe) is None:
        named = ", ".join(f"{name}={value}" for name, value in asked.items())
        yield f"headline: no search of the recipe has {named}: name one that is run"


def _fits(n: int | None, each: Headline) -> bool:
    return n is None or each.n in (None, n)


def _candidates(recipe: Recipe) -> Iterator[Headline]:
    """Those of one policy, in the recipe's order, each search with its largest N first."""
    asked = recipe.headline
    policy = asked.policy or _last_policy(recipe) or ""
    if policy not in [each.name for each in recipe.policies]:
        return
    for search in recipe.searches:
        if not search.is_run_by(policy) or asked.strategy not in (None, search.strategy):
            continue
        if isinstance(search, SearchSettings):
            if asked.variant in (None, search.variant):
                yield from _plain(recipe, policy, search)
            continue
        for variant in map(search.variant, search.budgets):
            if asked.variant in (None, variant):
                yield Headline(policy, COMPUTE_OPTIMAL, variant, None, 0, _NO_REDUCTION, _ROUTE)


def _last_policy(recipe: Recipe) -> str | None:
    """The last of the ladder that runs a search."""
    names = [str(each.name) for each in recipe.policies]
    run = (name for name in names if any(each.is_run_by(name) for each in recipe.searches))
    return max(run, key=names.index, default=None)


def _plain(recipe: Recipe, policy: str, search: SearchSettings) -> Iterator[Headline]:
    kind, asked = STRATEGIES[search.strategy], recipe.headline
    vote = asked.vote or (_WEIGHTED if kind.uses_prm else _MAJORITY)
    # A single sample can be read off all, where each problem has as many.
    single = kind.samples and not is_uneven(search.variant)
    samples = single and recipe.protocol == "sampling" and not (asked.vote or asked.n)
    if samples:
        vote = _PASS
    elif not kind.uses_prm and vote != _PASS:
        vote = _MAJORITY
    scored = kind.uses_prm and vote != _PASS
    reduction = str(asked.reduction) if scored else _NO_REDUCTION
    sizes = [1] if samples else [*sorted(search.n, reverse=True), *([1] if single else [])]
    for n in sizes:
        branching = search.candidates() or 1
        yield Headline(policy, search.strategy, search.variant, n, branching, reduction, vote)
