"""Checks of how a search gives out its solutions: stopping rules and divided budgets."""

from collections.abc import Iterator

from jobs.settings import SearchSettings
from search.strategies import STRATEGIES


def spending_complaints(where: str, search: SearchSettings) -> Iterator[str]:
    """What to change, one line a complaint."""
    if search.stop and search.allocation:
        yield f"{where}: stop and allocation both decide who gets how much: remove one"
    for name in ("stop", "allocation"):
        if getattr(search, name) and not STRATEGIES[search.strategy].splits:
            able = ", ".join(each for each, kind in STRATEGIES.items() if kind.splits)
            yield f"{where}.{name}: {search.strategy} writes its N solutions as one: use {able}"
    if search.stop:
        yield from _stop_complaints(where, search)
    if search.allocation:
        yield from _allocation_complaints(where, search)


def _stop_complaints(where: str, search: SearchSettings) -> Iterator[str]:
    stop = search.stop
    assert stop
    if stop.vote == "weighted" and not STRATEGIES[search.strategy].uses_prm:
        yield f"{where}.stop.vote: {search.strategy} has no rewards to weigh: set majority"
    for n in search.n:
        if stop.at_least >= n:
            yield f"{where}.stop.at_least={stop.at_least} leaves nothing of n={n} to save: lower it"


def _allocation_complaints(where: str, search: SearchSettings) -> Iterator[str]:
    allocation, group = search.allocation, search.candidates() or 1
    assert allocation
    if allocation.probe % group:
        yield f"{where}.allocation.probe is not a multiple of branching={group}: change it"
    for n in search.n:
        if allocation.probe >= n:
            yield f"{where}.allocation.probe={allocation.probe} uses up n={n}: lower it"
