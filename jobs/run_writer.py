"""Rows on their way into a run's folder.

Rows wait in memory until the next commit, which comes at least every so many seconds. Invariants:
rows that are added in one step of the event loop are committed together; memory holds what came
since the last commit and, while the store is away, no more than `BYTES_HELD`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from jobs.commit_log import CommitLog
from search.errors import StorageError
from search.schemas import COMMITTED

INTERVAL_S = 30.0
# What makes a commit due before its time, and what may wait in all.
BYTES_A_COMMIT = 32 << 20
BYTES_HELD = 4 * BYTES_A_COMMIT
PIECES_MERGED = 256


class _Waiting:
    """Rows of one table, copied: a row that came in a message would hold all of the message.

    What came in many small pieces is put together now and then: a piece of two rows takes five
    times the bytes of its rows as it waits, and thirty times when it is read back.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._merged = schema, list[pa.Table]()
        self._open()

    def add(self, rows: pa.Table) -> None:
        self._stream.write_table(rows)
        self._pieces += 1
        if self._pieces >= PIECES_MERGED:
            self._merge()

    @property
    def size_bytes(self) -> int:
        return int(self._merged_bytes + self._buffer.tell())

    def rows(self) -> pa.Table:
        """All rows; nothing can be added any more."""
        self._merge()
        return pa.concat_tables(self._merged)

    def _open(self) -> None:
        self._buffer, self._pieces = pa.BufferOutputStream(), 0
        self._stream = pa.ipc.new_stream(self._buffer, self._schema)
        self._merged_bytes = sum(table.nbytes for table in self._merged)

    def _merge(self) -> None:
        self._stream.close()
        pieces = pa.ipc.open_stream(self._buffer.getvalue()).read_all()
        self._merged.append(pieces.combine_chunks())
        self._open()


class RunWriter:
    """Commits rows to a log while a run goes on; an async context."""

    def __init__(self, log: CommitLog, interval_s: float = INTERVAL_S) -> None:
        self._log, self._interval_s = log, interval_s
        self._waiting: dict[str, _Waiting] = {}
        self._due, self._has_room = asyncio.Event(), asyncio.Event()
        self._one_at_a_time, self._tasks = asyncio.Lock(), asyncio.TaskGroup()
        self._has_room.set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._clock = self._tasks.create_task(self._keep_committing())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clock.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # An error of the context itself leaves it as it is.
            if error is None or group.exceptions != (error,):
                raise
        finally:
            if not isinstance(error, StorageError):
                await self.commit()

    def add(self, name: str, rows: pa.Table) -> None:
        """Appends rows to a table; raises StorageError if they do not have its schema."""
        check_columns(name, rows, COMMITTED)
        if not len(rows):
            return
        if name not in self._waiting:
            self._waiting[name] = _Waiting(COMMITTED[name])
        self._waiting[name].add(rows)
        self._note_size()

    async def room(self) -> None:
        """Waits while too much waits to be written."""
        await self._has_room.wait()

    async def commit(self) -> None:
        """Writes all that waits, outside of the event loop; ends with what is written, always."""
        async with self._one_at_a_time:
            waiting, self._waiting = self._waiting, {}
            self._due.clear()
            if waiting:
                rows = {name: table.rows() for name, table in waiting.items()}
                await _to_its_end(asyncio.to_thread(self._log.commit, rows))
            self._note_size()

    @contextlib.asynccontextmanager
    async def kept_if_stopped(self) -> AsyncIterator[None]:
        """Commits at once if what is inside is cancelled: who stops a run may kill it seconds
        later, and replicas take longer to leave."""
        try:
            yield
        except asyncio.CancelledError:
            await self.commit()
            raise

    async def _keep_committing(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self._interval_s)
            await self.commit()

    def _note_size(self) -> None:
        held = sum(table.size_bytes for table in self._waiting.values())
        if held >= BYTES_A_COMMIT:
            self._due.set()
        if held < BYTES_HELD:
            self._has_room.set()
        else:
            self._has_room.clear()


async def _to_its_end(work: Coroutine[Any, Any, int]) -> None:
    """Waits for a thread also if this is cancelled meanwhile: the thread would go on unseen, and
    what it writes would not be there yet for who reads next."""
    writing = asyncio.ensure_future(work)
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        writing.result()
        raise


def check_columns(name: str, rows: pa.Table, schemas: dict[str, pa.Schema]) -> None:
    """Raises StorageError for rows that are not of this table."""
    if not rows.schema.equals(schemas[name]):
        raise StorageError(f"rows for the table {name!r} do not have its columns")


def joined(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """The tables one after the other; empty if there are none."""
    return pa.concat_tables([schema.empty_table(), *tables])
