"""The partitions of a recipe beside one that is to be run: who writes to them, which were given up.

Invariant: a partition is looked at, never changed, on behalf of another one.
"""

import logging

from jobs.partitions import KEY, RunName, date_of
from jobs.results import RECORD, load_record, partitions_of
from jobs.storage import Storage
from jobs.writer_lease import WriterLease
from search.errors import RecipeError, StillRunningError, StorageError

# How many partitions before one are looked at: a store is asked several times for each.
LOOKED_BACK = 30
log = logging.getLogger("branchwise")


def checked_home(runs: Storage, name: RunName) -> Storage:
    """The folder of a named run; raises RecipeError where partitions and a run would meet."""
    home = runs.child(name.name)
    if name.date and home.has(RECORD):
        raise RecipeError(
            f"{home.where} is a run, so no partitions can lie there: give the recipe another name"
        )
    if not name.date and any(map(date_of, home.names())):
        raise RecipeError(f"{home.where} holds partitions by date: give --as another name")
    return runs.child(name.run_id)


def unfinished_before(runs: Storage, name: RunName) -> dict[str, Storage]:
    """Partitions of earlier dates that were begun and did not end, oldest first."""
    held = partitions_of(runs.child(name.name))
    before = [date for date in held if date < name.date][-LOOKED_BACK:]
    return {date: held[date] for date in before if _is_unfinished(held[date])}


def check_nights_before(runs: Storage, name: RunName, lease: WriterLease) -> None:
    """Raises StillRunningError if a partition of an earlier date is being written to; says in one
    line each which have been given up. lease: that of the partition that is to be run."""
    given_up = []
    for date, folder in unfinished_before(runs, name).items():
        if writer := lease.writer_of(folder):
            raise StillRunningError(
                f"{folder.where} is still being written to by {writer}: {KEY}{name.date} was not "
                "started; --also-if-running runs both"
            )
        given_up.append((date, folder))
    for date, folder in given_up:
        log.warning(
            "%s was begun and has not ended: --date %s goes on with it, --catch-up does so "
            "before this one",
            folder.where,
            date,
        )


def _is_unfinished(folder: Storage) -> bool:
    try:
        return folder.has(RECORD) and not load_record(folder, "finished_at")["finished_at"]
    except StorageError as error:
        log.warning("%s is passed over: %s", folder.where, error)
        return False
