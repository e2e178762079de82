"""Which folder a run writes to: one of its own, or the one of a run that was not finished.

Invariant: a run that was begun with another recipe is never written to, nor one that another
process is writing to.
"""

import contextlib
import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Self

from jobs.commit_log import CommitLog
from jobs.recipe import recipe_digest
from jobs.recipe_changes import changes
from jobs.results import RECORD, RunRecord, checked_record, library_versions, new_record
from jobs.settings import Recipe
from jobs.storage import PATIENCE_S, Storage, folder_to_read
from jobs.store_uris import shown
from jobs.submitted_home import lasting
from jobs.writer_lease import WriterLease
from search.errors import RecipeError, StorageError
from search.schemas import SCHEMA_VERSION

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
    lease: WriterLease
    _ended: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.lease.stop()
        if self.log.is_empty and not self._ended and not self.lease.is_lost:
            with contextlib.suppress(StorageError):  # a store that is away keeps an empty run
                self.folder.at_once.remove()
        self.lease.release()

    def finish(self) -> None:
        """Notes that everything that belongs to the run has been written."""
        self.lease.check()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _write_json(self.folder, RECORD, asdict(self.record) | {"finished_at": now})
        self.log.delete()
        self._ended = True


def open_run(recipe: Recipe, into: str | None = None, fresh: bool = False) -> OpenRun:
    """The folder for a recipe; raises RecipeError or StorageError before anything starts.

    into: a run folder to be continued, even if it was finished. fresh: a new one in any case.
    """
    shareable = recipe.model_copy(update={"runs_folder": shown(recipe.runs_folder)})
    if into is not None:
        return _continued(folder_to_read(lasting(into)), shareable)
    runs, recipe = folder_to_read(lasting(recipe.runs_folder)), shareable
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
    """From here on this process writes, and waits for a store that is away."""
    lasting = replace(folder, patience_s=PATIENCE_S)
    lease = WriterLease(lasting).take()
    try:
        _write_json(folder, RECORD, asdict(record))
        return OpenRun(lasting, record, CommitLog(lasting, lease.check), lease)
    except BaseException:
        lease.release()
        raise


def _record(folder: Storage) -> dict[str, Any]:
    names = [field.name for field in fields(RunRecord)]
    record = checked_record(folder, folder.read(RECORD), names)
    return {name: record[name] for name in names}


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
