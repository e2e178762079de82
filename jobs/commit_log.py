"""What a run has finished, commit by commit, in its folder.

A commit is a file for each table that has new rows; the one of `units` is written last, and only
with it the commit counts. Invariants: what a process that is killed leaves is the commits that
count and files that nobody reads; a unit's rows, or a problem's graded solutions, that are
committed again replace those that were there; no two commits have the same number, finished or not.
The row groups of whole tables, written when a run has ended, count as what came before all commits,
so that a run can go on after its end.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage import PARQUET, Storage
from search.errors import StorageError
from search.schemas import COMMITTED

FOLDER = "commits"
LAST = "units"
# Solutions that were graded are as good as those that were not, and are no longer kept apart.
_WHOLE = {"found": "solutions"}
_FILE = re.compile(r"(\d{6})-([a-z_]+)\.parquet")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one table in one commit, or in a row group of the whole table (commit 0)."""

    number: int
    table: str
    row_group: int = 0

    @property
    def name(self) -> str:
        """Its file."""
        if not self.number:
            return f"{_WHOLE.get(self.table, self.table)}.parquet"
        return f"{self.number:06}-{self.table}.parquet"


class CommitLog:
    """The commits of one run folder; one process writes them.

    check_writer: raises StorageError if that is another process now. otherwise: what to do where
    it cannot be read, in words.
    was_continued: an earlier process has left some, so that something may stand in two.
    """

    def __init__(
        self,
        folder: Storage,
        check_writer: Callable[[], None] = lambda: None,
        otherwise: str = "begin a new run",
    ) -> None:
        self._folder, self._commits = folder, folder.child(FOLDER)
        self._check_writer, self._otherwise = check_writer, otherwise
        written = _written(self._commits.names())
        self._parts = [*self._whole(), *_counting(written)]
        self.was_continued = bool(self._parts)
        # What a killed process left of a commit would count with the next one of its number.
        self._next = 1 + max((part.number for part in written), default=0)

    @property
    def commits(self) -> int:
        """How many count."""
        return len({part.number for part in self._parts if part.number})

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been finished."""
        return not self._parts

    def commit(self, tables: Mapping[str, pa.Table]) -> int:
        """Writes new rows, all or none of them; returns the number of the commit."""
        self._check_writer()
        number, self._next = self._next, self._next + 1
        units = tables.get(LAST, self.empty(LAST))
        written = {name: rows for name, rows in tables.items() if name != LAST and len(rows)}
        for name, rows in written.items():
            self._commits.write(Part(number, name).name, _as_parquet(rows))
        self._check_writer()
        self._commits.write(Part(number, LAST).name, _as_parquet(units))
        self._parts += [Part(number, name) for name in (*written, LAST)]
        return number

    def parts(self, table: str) -> list[Part]:
        """A table's parts, in the order of their commits."""
        mine = [part for part in self._parts if part.table == table]
        return sorted(mine, key=lambda part: (part.number, part.row_group))

    def read(self, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a part; raises StorageError if they cannot be read."""
        wanted = None if columns is None else list(columns)
        folder = self._commits if part.number else self._folder

        def rows(file: pq.ParquetFile) -> pa.Table:
            if not file.schema_arrow.equals(COMMITTED[part.table]):
                raise StorageError(
                    f"{folder.called(part.name)} does not have the columns of its table: "
                    f"{self._otherwise}"
                )
            return file.read(wanted) if part.number else file.read_row_group(part.row_group, wanted)

        return folder.read_parquet(part.name, rows)

    @staticmethod
    def empty(table: str) -> pa.Table:
        """A table without rows."""
        return COMMITTED[table].empty_table()

    def delete(self) -> None:
        """Removes all commits, when whole tables have been written."""
        self._folder.delete(FOLDER)

    def _whole(self) -> Iterator[Part]:
        """The row groups of whole tables; these count if the last one was written."""
        if not self._folder.has(Part(0, LAST).name):
            return
        for table in COMMITTED:
            name = Part(0, table).name
            if self._folder.has(name):
                groups = self._folder.read_parquet(name, lambda file: int(file.num_row_groups))
                yield from (Part(0, table, group) for group in range(groups))


def _written(names: Sequence[str]) -> list[Part]:
    """What these files hold, whether it counts or not."""
    matches = [found for name in names if (found := _FILE.fullmatch(name))]
    return [Part(int(match[1]), match[2]) for match in matches]


def _counting(parts: Sequence[Part]) -> Iterator[Part]:
    """Those whose commit was finished."""
    finished = {part.number for part in parts if part.table == LAST}
    return (part for part in parts if part.number in finished and part.table in COMMITTED)


def _as_parquet(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(rows.combine_chunks(), sink, **PARQUET)
    return sink.getvalue()
