"""Which folder a run writes to: its own, that of a run that was not finished, or a named one.

Invariants: a run that was begun with another recipe is never written to, nor one that another
process is writing to, nor one that was named and has ended. While run.json says that a run has
ended, its tables are whole, and commits that are still there are not read.
"""

import contextlib
import json
import logging
import re
import time
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Self

from jobs.commit_log import FOLDER as COMMITS
from jobs.commit_log import CommitLog
from jobs.nights import check_nights_before, checked_home
from jobs.partitions import RunName
from jobs.recipe import recipe_digest
from jobs.recipe_changes import changes, growth
from jobs.results import (
    LATER_KEYS,
    RECORD,
    RunRecord,
    checked_record,
    library_versions,
    new_record,
)
from jobs.settings import Recipe
from jobs.storage import PATIENCE_S, Storage, folder_to_read
from jobs.store_uris import shown
from jobs.submitted_home import lasting
from jobs.writer_lease import WriterLease
from search.errors import RecipeError, RunEndedError, StorageError
from search.schemas import SCHEMA_VERSION

_SHOWN = 6
# What begins another run where one cannot go on; a run that was named takes no --fresh.
_FRESH = "give --fresh for a new run"
_NOT_INTO = "give --fresh in place of --into for a new run"
_ANOTHER_NAME = "give the run another name (--as, or --fresh where it is submitted)"
_ANOTHER_DATE = "give the run another date, or the recipe another name"
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
    _begun: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.lease.stop()
        if self.log.is_empty and not self._ended and not self.lease.is_lost:
            with contextlib.suppress(StorageError):  # a store that is away keeps an empty run
                self.folder.at_once.remove()
        elif not self._ended and not self.lease.is_lost:
            with contextlib.suppress(StorageError):  # its time is then told by its last commit
                _write_json(self.folder.at_once, RECORD, asdict(self._worked()))
        self.lease.release()

    def ended(self) -> RunRecord:
        """The record of the run, had it ended now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self._worked(), finished_at=now)

    def finish(self, ended: RunRecord | None = None) -> None:
        """Notes that everything that belongs to the run has been written.

        The run has ended then, whether its commits can be removed or not.
        """
        self.lease.check()
        _write_json(self.folder, RECORD, asdict(ended or self.ended()))
        self._ended = True
        try:
            self.log.delete()
        except StorageError as error:
            log.warning("%s; the run has ended and needs no commits: remove them by hand", error)

    def _worked(self) -> RunRecord:
        """The record with the seconds of this process."""
        seconds = self.record.seconds + time.monotonic() - self._begun
        return replace(self.record, seconds=round(seconds, 3))


def open_run(
    recipe: Recipe,
    into: str | None = None,
    fresh: bool = False,
    name: RunName | None = None,
    also_if_running: bool = False,
) -> OpenRun:
    """The folder for a recipe; raises RecipeError or StorageError before anything starts.

    into: a run folder to be continued, even if it was finished. fresh: a new one in any case.
    name: the run to begin or to continue; raises RunEndedError if it has ended, and
    StillRunningError if another process writes to it or, unless also_if_running, to a partition of
    an earlier date.
    """
    shareable = recipe.model_copy(update={"runs_folder": shown(recipe.runs_folder)})
    if into is not None:
        return _continued(folder_to_read(lasting(into)), shareable, _NOT_INTO)
    runs, recipe = runs_of(recipe), shareable
    if name is not None:
        return _named(runs, name, recipe, also_if_running)
    unfinished = None if fresh else _unfinished(runs, recipe.name)
    return _continued(unfinished, recipe, _FRESH) if unfinished else _new(runs, recipe)


def runs_of(recipe: Recipe) -> Storage:
    """The folder of a recipe's runs, for one who does not wait for a store that is away."""
    return folder_to_read(lasting(recipe.runs_folder))


def check_named(recipe: Recipe, name: RunName) -> None:
    """Raises what `open_run` raises for a named run that has ended or had another recipe."""
    shareable = recipe.model_copy(update={"runs_folder": shown(recipe.runs_folder)})
    _record_of(checked_home(runs_of(recipe), name), name, shareable)


def _named(runs: Storage, name: RunName, recipe: Recipe, also_if_running: bool) -> OpenRun:
    """Looked at before it is claimed, and again: another process may have come first and ended."""
    folder = checked_home(runs, name)
    _record_of(folder, name, recipe)
    patient = replace(folder, patience_s=PATIENCE_S)
    lease = WriterLease(patient).take()
    try:
        if name.date and not also_if_running:
            check_nights_before(runs, name, lease)
        is_begun, record = folder.has(RECORD), _record_of(folder, name, recipe)
        if is_begun:
            log.info("%s is continued", folder.where)
        _write_json(patient, RECORD, asdict(record))
        commits = CommitLog(patient, lease.check, _another(name))
        return OpenRun(patient, record, commits, lease)
    except BaseException:
        lease.release()
        with contextlib.suppress(StorageError):
            folder.remove_if_empty()
        raise


def _record_of(folder: Storage, name: RunName, recipe: Recipe) -> RunRecord:
    """The record with which a named run begins or goes on; raises RunEndedError if it has ended."""
    if not folder.has(RECORD):
        document = recipe.model_dump(mode="json")
        return new_record(recipe.name, document, recipe_digest(recipe), name.run_id)
    held, record = _record(folder), _continuing(folder, recipe, _another(name))
    if not held["finished_at"]:
        return record
    more = growth(held["recipe"], record.recipe)
    hint = f"; the recipe has another {more[0]} now: --into {folder.where} runs it" if more else ""
    raise RunEndedError(f"{folder.where} has ended at {held['finished_at']}{hint}")


def _another(name: RunName) -> str:
    return _ANOTHER_DATE if name.date else _ANOTHER_NAME


def _new(runs: Storage, recipe: Recipe) -> OpenRun:
    record = new_record(recipe.name, recipe.model_dump(mode="json"), recipe_digest(recipe))
    folder = runs.child(record.run_id)
    if folder.has(RECORD):
        raise StorageError(f"{folder.where} is there already: wait a second and run again")
    return _claimed(folder, record, _FRESH)


def _continued(folder: Storage, recipe: Recipe, otherwise: str) -> OpenRun:
    record = _continuing(folder, recipe, otherwise)
    log.info("%s is continued", folder.where)
    return _claimed(folder, record, otherwise)


def _continuing(folder: Storage, recipe: Recipe, otherwise: str) -> RunRecord:
    """The record with which a run goes on; raises RecipeError if the recipe is another one.

    otherwise: what the reader can do if it cannot go on.
    """
    held = _record(folder)
    document = recipe.model_dump(mode="json")
    found = changes(held["recipe"], document)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RecipeError(
            f"{folder.where} was begun with another recipe ({'; '.join(found[:_SHOWN])}{more}): "
            f"run that again, or {otherwise}"
        )
    _check_versions(folder, held, otherwise)
    now = {"recipe": document, "recipe_digest": recipe_digest(recipe), "finished_at": ""}
    return RunRecord(**held | now | {"seconds": _seconds_before(folder, held)})


def _seconds_before(folder: Storage, held: dict[str, Any]) -> float:
    """Seconds that earlier processes worked on a run; of a killed one up to its last commit.

    Such a process wrote run.json as it began: both times are told by the clock of the store.
    """
    seconds = float(held["seconds"])
    if held["finished_at"]:
        return seconds
    begun = folder.written_at().get(RECORD, 0.0)
    last = max(folder.child(COMMITS).written_at().values(), default=begun)
    return seconds + max(0.0, last - begun)


def _unfinished(runs: Storage, name: str) -> Storage | None:
    """The newest run of a recipe that has not ended; those that were given a name are left out."""
    for run_id in reversed(runs.names()):
        folder = runs.child(run_id)
        if re.fullmatch(rf"{re.escape(name)}-\d{{8}}-\d{{6}}", run_id) and folder.has(RECORD):
            held = _record(folder)
            if held["recipe"].get("name") == name:
                return None if held["finished_at"] else folder
    return None


def _claimed(folder: Storage, record: RunRecord, otherwise: str) -> OpenRun:
    """From here on this process writes, and waits for a store that is away."""
    patient = replace(folder, patience_s=PATIENCE_S)
    lease = WriterLease(patient).take()
    try:
        _remove_old_commits(folder)
        _write_json(folder, RECORD, asdict(record))
        return OpenRun(patient, record, CommitLog(patient, lease.check, otherwise), lease)
    except BaseException:
        lease.release()
        raise


def _remove_old_commits(folder: Storage) -> None:
    """Removes what an ended run still has of them; some files of a commit may be gone already."""
    if folder.has(RECORD) and _record(folder)["finished_at"]:
        folder.delete(COMMITS)


def _record(folder: Storage) -> dict[str, Any]:
    names = [each.name for each in fields(RunRecord) if each.name not in LATER_KEYS]
    record = checked_record(folder, folder.read(RECORD), names)
    return {name: record[name] for name in names} | {"seconds": record.get("seconds", 0.0)}


def _check_versions(folder: Storage, held: dict[str, Any], otherwise: str) -> None:
    if held.get("schema_version") != SCHEMA_VERSION:
        raise StorageError(
            f"{folder.where} has tables of version {held.get('schema_version')}, this Branchwise "
            f"writes version {SCHEMA_VERSION}: {otherwise}"
        )
    for name, version in library_versions().items():
        if held["versions"].get(name, "") != version:
            was = held["versions"].get(name) or "missing"
            log.warning("%s was %s when %s began and is %s now", name, was, folder.name, version)


def _write_json(folder: Storage, name: str, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    folder.write(name, text.encode())
