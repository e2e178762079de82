"""The steps of one solution that come to be scored together: read in one request where that can be.

A head on every token gives the rewards of all steps of a solution in one pass, so a solution that
is scored as a whole need not be read step by step. Invariant: the scores are those of the single
items, in their order.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from actors.engines import PRMEngine
from actors.wire import ScoreItem
from search.protocols import Score


@runtime_checkable
class ReadsChains(Protocol):
    """A PRM engine that scores the steps of a solution in one request."""

    async def score_chain(self, items: Sequence[ScoreItem]) -> list[Score]:
        """One score for each item, of which each path goes on from the one before it."""
        ...


ReadsChain: TypeAlias = "Callable[[Sequence[ScoreItem]], Coroutine[Any, Any, list[Score]]]"


def chains(items: Sequence[ScoreItem]) -> Iterator[tuple[ScoreItem, ...]]:
    """The items in order, those together of which each path goes on from the one before it."""
    chain: list[ScoreItem] = []
    for item in items:
        if chain and not _goes_on(item, chain[-1]):
            yield tuple(chain)
            chain = []
        chain.append(item)
    if chain:
        yield tuple(chain)


def chain_reader(engine: PRMEngine) -> ReadsChain:
    """Reads chains one by one; in one request each if the engine can."""
    # Asked once, for to ask a protocol takes longer than to carry a score.
    reads_chains = engine.score_chain if isinstance(engine, ReadsChains) else None

    async def read(chain: Sequence[ScoreItem]) -> list[Score]:
        if len(chain) == 1:
            return [await engine.score(chain[0])]
        if reads_chains is not None:
            return await reads_chains(chain)
        return await _read_apart(engine, chain)

    return read


async def _read_apart(engine: PRMEngine, chain: Sequence[ScoreItem]) -> list[Score]:
    async with asyncio.TaskGroup() as tasks:
        scores = [tasks.create_task(engine.score(item)) for item in chain]
    return [score.result() for score in scores]


def _goes_on(item: ScoreItem, before: ScoreItem) -> bool:
    steps, known = item.path.steps, before.path.steps
    longer = len(steps) > len(known) and steps[: len(known)] == known
    return longer and item.path.problem == before.path.problem
