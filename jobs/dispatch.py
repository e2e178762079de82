"""Problems under way: their units on the way to the machines, and what comes back.

Each problem is a coroutine. Its searches' first units go out when it is their turn; what a
search asks for next may depend on what came back. Invariants: a unit's rows are written as soon
as they are there; memory holds the problems that are under way and nothing of any other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

import pyarrow as pa

from cluster.backlog import Backlog
from cluster.fanout import UnitTables
from jobs.results import RunWriter
from search.partition import WorkUnit
from search.problem import Problem
from search.schemas import SOLUTIONS, UNITS

# What a unit brought: rows of `SOLUTIONS`, not graded, and its row of `UNITS`.
_Brought: TypeAlias = "asyncio.Future[tuple[pa.Table, pa.Table]]"


class Run(Protocol):
    """What one search has run of a problem that is under way, and a way to run more of it."""

    async def __call__(self, units: Sequence[WorkUnit]) -> pa.Table:
        """Runs units and returns their solutions, not graded."""
        ...

    @property
    def units(self) -> pa.Table:
        """Rows of `UNITS` of all that came back, the first units among them: what they cost."""
        ...


class SearchPlan(Protocol):
    """One search of a recipe: which units it begins with, and what it does when they are back."""

    def first_units(self, problem: Problem) -> list[WorkUnit]:
        """What is run of every problem."""
        ...

    async def finish(self, problem: Problem, found: pa.Table, run: Run) -> pa.Table:
        """All solutions of the search, from those of its first units; may run more."""
        ...


class Dispatch:
    """One policy's searches over all problems.

    tasks: what the problems run in. commit: awaited with all solutions of a problem when its
    searches have ended. `later_units` counts what was asked for after the first units.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        plans: Sequence[SearchPlan],
        writer: RunWriter,
        commit: Callable[[Problem, pa.Table], Awaitable[None]],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.backlog = Backlog(self._started(problems), is_open=True)
        self._plans, self._writer, self._commit, self._tasks = plans, writer, commit, tasks
        self._waiting: dict[str, _Brought] = {}
        self._under_way, self._all_started = 0, False
        self.later_units = 0

    def deliver(self, done: UnitTables) -> None:
        """Writes what a unit left, and passes its solutions on."""
        self._writer.add("nodes", done.nodes)
        self._writer.add("units", done.units)
        self._waiting.pop(done.unit.unit_id).set_result((done.solutions, done.units))

    def _started(self, problems: Iterable[Problem]) -> Iterator[WorkUnit]:
        """The first units of each problem, which is under way from then on."""
        for problem in problems:
            firsts = [plan.first_units(problem) for plan in self._plans]
            coming = [self._expected(units) for units in firsts]
            self._under_way += 1
            self._tasks.create_task(self._search(problem, coming))
            yield from (unit for units in firsts for unit in units)
        self._all_started = True
        self._close_when_done()

    async def _search(self, problem: Problem, coming: "Sequence[Sequence[_Brought]]") -> None:
        async with asyncio.TaskGroup() as tasks:
            searches = [
                tasks.create_task(self._finished(problem, plan, units))
                for plan, units in zip(self._plans, coming, strict=True)
            ]
        await self._commit(problem, pa.concat_tables([search.result() for search in searches]))
        self._under_way -= 1
        self._close_when_done()

    async def _finished(
        self, problem: Problem, plan: SearchPlan, coming: "Sequence[_Brought]"
    ) -> pa.Table:
        run = _ProblemRun(self._more)
        return await plan.finish(problem, await run.back(coming), run)

    def _more(self, units: Sequence[WorkUnit]) -> "list[_Brought]":
        coming = self._expected(units)
        self.later_units += len(units)
        self.backlog.add(units)
        return coming

    def _expected(self, units: Sequence[WorkUnit]) -> "list[_Brought]":
        loop = asyncio.get_running_loop()
        self._waiting |= {unit.unit_id: loop.create_future() for unit in units}
        return [self._waiting[unit.unit_id] for unit in units]

    def _close_when_done(self) -> None:
        if self._all_started and not self._under_way:
            self.backlog.close()


class _ProblemRun:
    """A `Run`; `more` starts units."""

    def __init__(self, more: "Callable[[Sequence[WorkUnit]], list[_Brought]]") -> None:
        self._more, self._rows = more, [UNITS.empty_table()]

    async def __call__(self, units: Sequence[WorkUnit]) -> pa.Table:
        return await self.back(self._more(units))

    async def back(self, coming: "Sequence[_Brought]") -> pa.Table:
        """The solutions of units that were started."""
        brought = [await each for each in coming]
        self._rows += [units for _, units in brought]
        solutions = [solutions for solutions, _ in brought]
        return pa.concat_tables([SOLUTIONS.empty_table(), *solutions])

    @property
    def units(self) -> pa.Table:
        return pa.concat_tables(self._rows)
