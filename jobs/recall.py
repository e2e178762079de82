"""What an earlier process of a run has finished, so that nothing of it is run again.

Invariant: a piece of work is recalled with the rows that it left, or not at all. A search with a
larger N recalls what the smaller one ran, under its own name, for the seeds are the same.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.commit_log import CommitLog, Part
from jobs.standing import Standing
from search.config import is_uneven
from search.partition import WorkUnit, search_and_subtrees, unit_id
from search.rows import search_columns
from search.schemas import COMMITTED
from search.strategies import STRATEGIES

_NAMES = ("problem_id", "policy", "strategy", "n", "branching", "variant", "unit_id", "status")
_PARTS_KEPT = 4
Search = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """Subtrees [first, stop) of a search over a problem that have been run, as unit `unit_id`."""

    first: int
    stop: int
    policy: str
    unit_id: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a unit, as a unit: `held` if it has been run."""

    unit: WorkUnit
    held: Held | None = None

    @property
    def is_renamed(self) -> bool:
        """Whether its rows stand under another name."""
        return self.held is not None and self.held.unit_id != self.unit.unit_id


class Recall:
    """The finished units of a run's commits; empty for a run that begins.

    Commits that come later are not seen.
    """

    def __init__(self, log: CommitLog) -> None:
        self._log = log
        self._held: defaultdict[Search, dict[str, Held]] = defaultdict(dict)
        # By policy and problem: its last commit with units, and with graded solutions.
        self._brought: dict[tuple[str, str], int] = {}
        standing = Standing()
        for part in log.parts("units"):
            self._note(part, standing)
        self._graded = {
            place: part.number
            for part in log.parts("solutions")
            for place in self._keys(part, "problem_id")
        }
        self._part = lru_cache(_PARTS_KEPT)(log.read)
        self._places = lru_cache(len(COMMITTED))(self._read_places)

    def units_of(self, policy: str) -> int:
        """How many units of a policy are held."""
        return sum(len(held) for search, held in self._held.items() if search[0] == policy)

    def is_graded(self, policy: str, problem_id: str) -> bool:
        """Whether all solutions that its units brought have been graded and committed."""
        graded, brought = (of.get((policy, problem_id), -1) for of in (self._graded, self._brought))
        return graded >= max(0, brought)

    def pieces(self, policy: str, units: Sequence[WorkUnit]) -> Iterator[Piece]:
        """The units of one search, cut where what is held begins and ends, in order.

        What is held may reach over several units that follow each other.
        """
        for row in _in_rows(units):
            yield from _cut(row, self._within(policy, row))

    def rows(self, piece: Piece, table: str) -> pa.Table:
        """What a held piece left in a table, under the name that it has now."""
        assert piece.held is not None
        held = piece.held
        part = self._places(table).get((held.policy, held.unit_id))
        if part is None:
            return self._log.empty(table)
        rows = self._part(part)
        mine = pc.and_(
            pc.equal(rows["unit_id"], held.unit_id), pc.equal(rows["policy"], held.policy)
        )
        return _renamed(rows.filter(mine), piece, held.policy)

    def _within(self, policy: str, row: Sequence[WorkUnit]) -> list[Held]:
        """What is held of units in a row, in order; what reaches beyond them is left out."""
        unit, stop = row[0], row[-1].stop

        def by_place(held: Held) -> tuple[int, int, bool]:
            # The longest first, and what was run under its own name before what was not.
            name = unit_id(unit.problem, unit.config, held.first, held.stop)
            return held.first, -held.stop, held.unit_id != name

        found, end = [], unit.first
        for each in sorted(self._held.get(_search(policy, unit), {}).values(), key=by_place):
            if each.first >= end and each.stop <= stop:
                found.append(each)
                end = each.stop
        return found

    def _note(self, part: Part, standing: Standing) -> None:
        for row in self._log.read(part, _NAMES).to_pylist():
            policy, name = row["policy"], row["unit_id"]
            self._brought[policy, row["problem_id"]] = part.number
            search = self._held[_row_search(row)]
            for replaced in (name, *standing.add(policy, name)):
                search.pop(replaced, None)
            if row["status"] == "done":
                _, subtrees = search_and_subtrees(name)
                search[name] = Held(subtrees.start, subtrees.stop, policy, name)

    def _read_places(self, table: str) -> dict[tuple[str, str], Part]:
        """Where the rows of each unit are, as they were committed last."""
        parts = self._log.parts(table)
        return {place: part for part in parts for place in self._keys(part, "unit_id")}

    def _keys(self, part: Part, name: str) -> list[tuple[str, str]]:
        rows = self._log.read(part, ("policy", name))
        pairs = rows.group_by(["policy", name]).aggregate([]).to_pylist()
        return [(row["policy"], row[name]) for row in pairs]


@dataclass(frozen=True, slots=True)
class PolicyRecall:
    """What one policy has finished."""

    recall: Recall
    policy: str

    @property
    def units(self) -> int:
        """How many units are held."""
        return self.recall.units_of(self.policy)

    def pieces(self, units: Sequence[WorkUnit]) -> list[Piece]:
        """See `Recall.pieces`."""
        return list(self.recall.pieces(self.policy, units))

    def rows(self, piece: Piece, table: str) -> pa.Table:
        """See `Recall.rows`."""
        return self.recall.rows(piece, table)

    def is_graded(self, problem_id: str) -> bool:
        """See `Recall.is_graded`."""
        return self.recall.is_graded(self.policy, problem_id)


def _search(policy: str, unit: WorkUnit) -> Search:
    return _row_search(search_columns(unit, policy))


def _row_search(row: Any) -> Search:
    """What names a search over a problem; N only where a larger N has other parts."""
    grows = STRATEGIES[row["strategy"]].splits and not is_uneven(row["variant"])
    named = (row["policy"], row["problem_id"], row["strategy"], row["branching"], row["variant"])
    return (*named, None if grows else row["n"])


def _in_rows(units: Iterable[WorkUnit]) -> list[list[WorkUnit]]:
    """The units, those together that follow each other."""
    rows: list[list[WorkUnit]] = []
    for unit in units:
        if rows and rows[-1][-1].stop == unit.first and rows[-1][-1].config == unit.config:
            rows[-1].append(unit)
        else:
            rows.append([unit])
    return rows


def _cut(row: Sequence[WorkUnit], held: Iterable[Held]) -> Iterator[Piece]:
    """Units in a row cut by what is held of them, in order."""
    place, waiting = row[0].first, deque(held)
    for unit in row:
        while waiting and waiting[0].first < unit.stop:
            each = waiting.popleft()
            if place < each.first:
                yield Piece(_narrowed(unit, place, each.first))
            yield Piece(_narrowed(unit, each.first, each.stop), each)
            place = each.stop
        if place < unit.stop:
            yield Piece(_narrowed(unit, place, unit.stop))
            place = unit.stop


def _narrowed(unit: WorkUnit, first: int, stop: int) -> WorkUnit:
    if (first, stop) == (unit.first, unit.stop):
        return unit
    name = unit_id(unit.problem, unit.config, first, stop)
    return replace(unit, unit_id=name, first=first, stop=stop)


def _renamed(rows: pa.Table, piece: Piece, policy: str) -> pa.Table:
    if not piece.is_renamed:
        return rows
    for name, value in search_columns(piece.unit, policy).items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(name)
        rows = rows.set_column(place, field, pa.array([value] * len(rows), field.type))
    return rows
