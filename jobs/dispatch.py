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
from cluster.unit_tables import UnitTables
from jobs.recall import Piece, PolicyRecall
from jobs.run_writer import RunWriter
from search.partition import WorkUnit
from search.problem import Problem
from search.schemas import SOLUTIONS, UNITS

# What a unit brought: rows of `SOLUTIONS`, not graded, and its row of `UNITS`.
_Brought: TypeAlias = "tuple[pa.Table, pa.Table]"
# Asked when it is needed: what is recalled is not read before.
_Coming: TypeAlias = "Callable[[], Awaitable[_Brought]]"


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

    @property
    def is_whole(self) -> bool:
        """Whether its first units are all that it ever runs, whatever they bring."""
        ...

    def first_units(self, problem: Problem) -> list[WorkUnit]:
        """What is run of every problem."""
        ...

    async def finish(self, problem: Problem, found: pa.Table, run: Run) -> pa.Table:
        """All solutions of the search, from those of its first units; may run more."""
        ...


class Dispatch:
    """One policy's searches over all problems.

    tasks: what the problems run in. commit: awaited with all solutions of a problem when its
    searches have ended, unless nothing of it is new. skip: called with a problem that needs
    nothing any more. recall: what has been run before. `later_units` counts what was asked for
    after the first units.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        plans: Sequence[SearchPlan],
        writer: RunWriter,
        commit: Callable[[Problem, pa.Table], Awaitable[None]],
        tasks: asyncio.TaskGroup,
        recall: PolicyRecall,
        skip: Callable[[Problem], None],
    ) -> None:
        self._recall, self._skip = recall, skip
        self._with_news: set[str] = set()
        self.backlog = Backlog(self._started(problems), is_open=True)
        self._plans, self._writer, self._commit, self._tasks = plans, writer, commit, tasks
        self._are_whole = all(plan.is_whole for plan in plans)
        self._waiting: dict[str, asyncio.Future[_Brought]] = {}
        self._under_way, self._all_started = 0, False
        self.later_units = 0

    def deliver(self, done: UnitTables) -> None:
        """Writes what a unit left, and passes its solutions on."""
        self._write(done.nodes, done.solutions, done.units)
        self._waiting.pop(done.unit.unit_id).set_result((done.solutions, done.units))

    def _started(self, problems: Iterable[Problem]) -> Iterator[WorkUnit]:
        """The first units of each problem, which is under way from then on."""
        for problem in problems:
            firsts = [self._pieces(plan.first_units(problem)) for plan in self._plans]
            if self._is_over(problem, firsts):
                self._skip(problem)
                continue
            coming = [self._expected(pieces) for pieces in firsts]
            self._under_way += 1
            self._tasks.create_task(self._search(problem, coming))
            yield from (piece.unit for pieces in firsts for piece in pieces if not piece.held)
        self._all_started = True
        self._close_when_done()

    async def _search(self, problem: Problem, coming: "Sequence[Sequence[_Coming]]") -> None:
        async with asyncio.TaskGroup() as tasks:
            searches = [
                tasks.create_task(self._finished(problem, plan, units))
                for plan, units in zip(self._plans, coming, strict=True)
            ]
        name = problem.problem_id
        if name in self._with_news or not self._recall.is_graded(name):
            await self._commit(problem, pa.concat_tables([each.result() for each in searches]))
        else:
            self._skip(problem)
        self._with_news.discard(name)
        self._under_way -= 1
        self._close_when_done()

    async def _finished(
        self, problem: Problem, plan: SearchPlan, coming: "Sequence[_Coming]"
    ) -> pa.Table:
        run = _ProblemRun(self._more)
        return await plan.finish(problem, await run.back(coming), run)

    def _more(self, units: Sequence[WorkUnit]) -> "list[_Coming]":
        pieces = self._pieces(units)
        coming = self._expected(pieces)
        missing = [piece.unit for piece in pieces if not piece.held]
        self.later_units += len(missing)
        self.backlog.add(missing)
        return coming

    def _is_over(self, problem: Problem, firsts: Sequence[Sequence[Piece]]) -> bool:
        """Whether an earlier process has run, graded and committed all of a problem."""
        pieces = (piece for each in firsts for piece in each)
        is_held = all(piece.held and not piece.is_renamed for piece in pieces)
        return self._are_whole and is_held and self._recall.is_graded(problem.problem_id)

    def _pieces(self, units: Sequence[WorkUnit]) -> list[Piece]:
        pieces = self._recall.pieces(units)
        news = (piece for piece in pieces if piece.is_renamed or not piece.held)
        self._with_news |= {piece.unit.problem.problem_id for piece in news}
        return pieces

    def _expected(self, pieces: Sequence[Piece]) -> "list[_Coming]":
        return [self._recalled(each) if each.held else self._awaited(each) for each in pieces]

    def _awaited(self, piece: Piece) -> _Coming:
        future = asyncio.get_running_loop().create_future()
        self._waiting[piece.unit.unit_id] = future
        return lambda: future

    def _recalled(self, piece: Piece) -> _Coming:
        async def read() -> _Brought:
            nodes, solutions, units = (
                self._recall.rows(piece, name) for name in ("nodes", "found", "units")
            )
            if piece.is_renamed:
                self._write(nodes, solutions, units)
            return solutions, units

        return read

    def _write(self, nodes: pa.Table, solutions: pa.Table, units: pa.Table) -> None:
        self._writer.add("nodes", nodes)
        self._writer.add("found", solutions)
        self._writer.add("units", units)

    def _close_when_done(self) -> None:
        """Nobody asks for more once all have begun, or else once all have ended."""
        if self._all_started and (self._are_whole or not self._under_way):
            self.backlog.close()


class _ProblemRun:
    """A `Run`; `more` starts units."""

    def __init__(self, more: "Callable[[Sequence[WorkUnit]], list[_Coming]]") -> None:
        self._more, self._rows = more, [UNITS.empty_table()]

    async def __call__(self, units: Sequence[WorkUnit]) -> pa.Table:
        return await self.back(self._more(units))

    async def back(self, coming: "Sequence[_Coming]") -> pa.Table:
        """The solutions of units that were started or are recalled."""
        brought = [await each() for each in coming]
        self._rows += [units for _, units in brought]
        solutions = [solutions for solutions, _ in brought]
        return pa.concat_tables([SOLUTIONS.empty_table(), *solutions])

    @property
    def units(self) -> pa.Table:
        return pa.concat_tables(self._rows)
