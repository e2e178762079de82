"""What an earlier process of a run has finished, so that nothing of it is run again.

Invariant: a piece of work is recalled with the rows that it left, or not at all. A search with a
larger N recalls what the smaller one ran, under its own name, for the seeds are the same.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.commit_log import CommitLog, Part
from search.config import is_uneven
from search.partition import WorkUnit, unit_id
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
        for part in log.parts("units"):
            self._note(part)
        self._graded = {
            place for part in log.parts("solutions") for place in self._keys(part, "problem_id")
        }
        self._part = lru_cache(_PARTS_KEPT)(log.read)
        self._places = lru_cache(len(COMMITTED))(self._read_places)

    def units_of(self, policy: str) -> int:
        """How many units of a policy are held."""
        return sum(len(held) for search, held in self._held.items() if search[0] == policy)

    def is_graded(self, policy: str, problem_id: str) -> bool:
        """Whether the problem's solutions, as they were then, have been graded and committed."""
        return (policy, problem_id) in self._graded

    def pieces(self, policy: str, unit: WorkUnit) -> Iterator[Piece]:
        """The unit cut where what is held begins and ends, in order."""
        place, cut = unit.first, self._within(policy, unit)
        for held in sorted(cut, key=lambda each: each.first):
            if held.first > place:
                yield Piece(_narrowed(unit, place, held.first))
            yield Piece(_narrowed(unit, held.first, held.stop), held)
            place = held.stop
        if place < unit.stop:
            yield Piece(_narrowed(unit, place, unit.stop))

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

    def _within(self, policy: str, unit: WorkUnit) -> list[Held]:
        """What is held of a unit; pieces that reach beyond it, or into another, are left out."""
        found, end = [], unit.first
        held = self._held.get(_search(policy, unit), {})
        for each in sorted(held.values(), key=lambda each: (each.first, -each.stop)):
            if each.first >= end and each.stop <= unit.stop:
                found.append(each)
                end = each.stop
        return found

    def _note(self, part: Part) -> None:
        for row in self._log.read(part, _NAMES).to_pylist():
            search = self._held[_row_search(row)]
            search.pop(row["unit_id"], None)
            if row["status"] == "done":
                first, stop = map(int, row["unit_id"].rsplit("/", 1)[1].split("-"))
                search[row["unit_id"]] = Held(first, stop, row["policy"], row["unit_id"])

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

    def pieces(self, unit: WorkUnit) -> list[Piece]:
        """See `Recall.pieces`."""
        return list(self.recall.pieces(self.policy, unit))

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
