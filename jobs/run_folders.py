"""Which folder a run writes to: one of its own, or the one of a run that was not finished.

Invariant: a run that was begun with another recipe is never written to, nor one that another
process is writing to.
"""

import json
import logging
import os
import socket
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Self

import psutil

from jobs.commit_log import CommitLog
from jobs.recipe import recipe_digest
from jobs.recipe_changes import changes
from jobs.record_checks import record_fault
from jobs.results import RunRecord, library_versions, new_record
from jobs.settings import Recipe
from jobs.storage import Storage, storage_at
from search.errors import RecipeError, StorageError
from search.schemas import SCHEMA_VERSION

RECORD, WRITER = "run.json", "writer.json"
_SHOWN = 6
log = logging.getLogger("branchwise")


@dataclass(slots=True)
class OpenRun:
    """A run folder that this process writes to, for as long as the context lasts.

    One in which nothing was finished is removed: there is nothing to go on with.
    """

    folder: Storage
    record: RunRecord
    log: CommitLog
    _ended: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.log.is_empty and not self._ended:
            self.folder.remove()
        else:
            self.folder.delete(WRITER)

    def finish(self) -> None:
        """Notes that everything that belongs to the run has been written."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _write_json(self.folder, RECORD, asdict(self.record) | {"finished_at": now})
        self.log.delete()
        self._ended = True


def open_run(recipe: Recipe, into: str | None = None, fresh: bool = False) -> OpenRun:
    """The folder for a recipe; raises RecipeError or StorageError before anything starts.

    into: a run folder to be continued, even if it was finished. fresh: a new one in any case.
    """
    if into is not None:
        return _continued(storage_at(into), recipe)
    runs = storage_at(recipe.runs_folder)
    unfinished = None if fresh else _unfinished(runs, recipe.name)
    return _continued(unfinished, recipe) if unfinished else _new(runs, recipe)


def _new(runs: Storage, recipe: Recipe) -> OpenRun:
    record = new_record(recipe.name, recipe.model_dump(mode="json"), recipe_digest(recipe))
    folder = runs.child(record.run_id)
    if folder.has(RECORD):
        raise StorageError(f"{folder.where} is there already: wait a second and run again")
    return _claimed(folder, record)


def _continued(folder: Storage, recipe: Recipe) -> OpenRun:
    held = _record(folder)
    document = recipe.model_dump(mode="json")
    found = changes(held["recipe"], document)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RecipeError(
            f"{folder.where} was begun with another recipe ({'; '.join(found[:_SHOWN])}{more}): "
            "run that again, or give --fresh for a new run"
        )
    _check_versions(folder, held)
    record = replace(
        RunRecord(**held), recipe=document, recipe_digest=recipe_digest(recipe), finished_at=""
    )
    log.info("%s is continued", folder.where)
    return _claimed(folder, record)


def _unfinished(runs: Storage, name: str) -> Storage | None:
    """The newest run of a recipe that has not ended."""
    for run_id in reversed(runs.names()):
        folder = runs.child(run_id)
        if run_id.startswith(f"{name}-") and folder.has(RECORD):
            held = _record(folder)
            if held["recipe"].get("name") == name:
                return None if held["finished_at"] else folder
    return None


def _claimed(folder: Storage, record: RunRecord) -> OpenRun:
    """Writes down who writes; raises StorageError if another process still does.

    A store that nothing can be written to is found out here, at once and not after hours.
    """
    writer = _writer(folder)
    if writer and _is_alive(writer):
        raise StorageError(
            f"{folder.where} is being written to by process {writer['pid']} on "
            f"{writer['host']}: wait for it, or end it"
        )
    at_once = replace(folder, patience_s=0.0)
    _write_json(at_once, WRITER, _this_process())
    _write_json(at_once, RECORD, asdict(record))
    return OpenRun(folder, record, CommitLog(folder))


def _this_process() -> dict[str, Any]:
    own = psutil.Process()
    return {"host": socket.gethostname(), "pid": own.pid, "started": own.create_time()}


def _is_alive(writer: dict[str, Any]) -> bool:
    """Only a process of this machine can be asked."""
    if writer["host"] != socket.gethostname() or writer["pid"] == os.getpid():
        return False
    try:
        found = psutil.Process(writer["pid"])
        return bool(found.create_time() == writer["started"])
    except psutil.Error:
        return False


def _record(folder: Storage) -> dict[str, Any]:
    try:
        record = json.loads(folder.read(RECORD).to_pybytes())
    except (ValueError, RecursionError):
        record = None
    names = [field.name for field in fields(RunRecord)]
    if not isinstance(record, dict):
        raise StorageError(f"{folder.where} is not a run folder: no readable {RECORD} there")
    if fault := record_fault(record, tuple(names)):
        raise StorageError(f"{folder.where}/{RECORD} is not as a run writes it: {fault}")
    return {name: record[name] for name in names}


def _writer(folder: Storage) -> dict[str, Any] | None:
    """Who writes, or wrote until it was killed."""
    if not folder.has(WRITER):
        return None
    try:
        found = json.loads(folder.read(WRITER).to_pybytes())
        return {name: found[name] for name in ("host", "pid", "started")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # left by a process that was killed while it wrote this


def _check_versions(folder: Storage, held: dict[str, Any]) -> None:
    if held.get("schema_version") != SCHEMA_VERSION:
        raise StorageError(
            f"{folder.where} has tables of version {held.get('schema_version')}, this Branchwise "
            f"writes version {SCHEMA_VERSION}: give --fresh for a new run"
        )
    for name, version in library_versions().items():
        if held["versions"].get(name, "") != version:
            was = held["versions"].get(name) or "missing"
            log.warning("%s was %s when %s began and is %s now", name, was, folder.name, version)


def _write_json(folder: Storage, name: str, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    folder.write(name, text.encode())
