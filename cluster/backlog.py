"""What is still to be started: units in order, to which more may come while others run.

Invariant: every unit that was added is taken once, and nobody waits when nothing more can come.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator

from cluster.admission import Bundle
from search.partition import WorkUnit


class Backlog:
    """Units to be run. Without `is_open` nothing comes to those that are given."""

    def __init__(self, units: Iterable[WorkUnit] = (), *, is_open: bool = False) -> None:
        self._units, self._added = iter(units), deque[WorkUnit]()
        self._is_open, self._is_spent = is_open, False
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether all units have been taken and none can come."""
        return self._next() is None and not self._is_open

    def add(self, units: Iterable[WorkUnit]) -> None:
        """Units that go before what waits from the start: their problem is under way."""
        self._added.extend(units)
        self._news.set()

    def close(self) -> None:
        """Says that nothing more will come."""
        self._is_open = False
        self._news.set()

    def take(self, solutions: int) -> Bundle | None:
        """The next units that have so many solutions together, at least one; None if none wait."""
        units: list[WorkUnit] = []
        while (unit := self._next()) is not None:
            if units and sum(each.solutions for each in units) + unit.solutions > solutions:
                break
            units.append(self._added.popleft())
        return Bundle(tuple(units), is_last=self.is_over) if units else None

    async def news(self) -> None:
        """Waits until units are added or the backlog is closed."""
        await self._news.wait()
        self._news.clear()

    def _next(self) -> WorkUnit | None:
        """The unit that is taken next, drawn from the start's if none was added."""
        if not self._added and not self._is_spent:
            drawn = next(self._units, None)
            self._is_spent = drawn is None
            self._added.extend(() if drawn is None else (drawn,))
        return self._added[0] if self._added else None


def bundles(units: Iterable[WorkUnit], solutions: int) -> Iterator[Bundle]:
    """The units in order, as many to a bundle as have that many solutions together."""
    backlog = Backlog(units)
    while (bundle := backlog.take(solutions)) is not None:
        yield bundle
