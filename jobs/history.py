"""The nights of a recipe: the partitions by date of one folder, each with its row of `runs`.

Invariant: everything comes from the tables and run.json of the partitions; a night that cannot be
read is named and left out, for one bad folder must not hide all others.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.results import RECORD, load_record, partitions_of
from jobs.run_rows import load_run_row
from jobs.storage import Storage, Where, folder_to_read
from search.config import COMPUTE_OPTIMAL
from search.errors import StorageError

Row = dict[str, Any]
# What makes one headline the same search as another.
HEADLINE = ("policy", "strategy", "variant", "n", "branching", "reduction", "vote")
log = logging.getLogger("branchwise")


@dataclass(frozen=True, slots=True)
class Night:
    """One partition. row: of the table `runs`; None for a night that has not ended."""

    date: str
    folder: Storage
    row: Row | None

    @property
    def time(self) -> datetime:
        """When its partition begins."""
        return time_of(self.date)

    @property
    def headline(self) -> tuple[Any, ...]:
        """What its accuracy is of, without the N of a budget in tokens: it differs each night."""
        row = self.row or {}
        budget = row.get("strategy") == COMPUTE_OPTIMAL and "budget=" in row["variant"]
        return tuple(None if budget and name == "n" else row.get(name) for name in HEADLINE)

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries, and of the code, that it ran with."""
        row = self.row or {}
        found: dict[str, str] = json.loads(row.get("versions") or "{}")
        return found | {"git": row.get("git_revision") or ""}


def time_of(date: str) -> datetime:
    """The beginning of a day, or of an hour, in UTC."""
    return datetime.fromisoformat(date if "T" not in date else f"{date}:00").replace(tzinfo=UTC)


def nights_at(where: Where) -> list[Night]:
    """All partitions of a folder in order; raises StorageError if there are none."""
    home = folder_to_read(where)
    nights = [
        each for date, folder in partitions_of(home).items() if (each := _night(date, folder))
    ]
    if not nights:
        raise StorageError(
            f"{home.where} holds no nights: give the folder with date=... in it, such as runs/NAME"
        )
    return nights


def ended(nights: Sequence[Night]) -> list[Night]:
    """Those that have a row."""
    return [night for night in nights if night.row is not None]


def _night(date: str, folder: Storage) -> Night | None:
    """None for a folder in which nothing was begun, or that cannot be read."""
    try:
        if not folder.has(RECORD):
            return None
        is_over = load_record(folder, "finished_at")["finished_at"]
        return Night(date, folder, load_run_row(folder) if is_over else None)
    except StorageError as error:
        log.warning("%s is passed over: %s", folder.where, error)
        return None


def changes_between(before: Night, after: Night) -> list[str]:
    """What is other than the night before: the recipe, and versions by name."""
    found = []
    if (before.row or {}).get("recipe_digest") != (after.row or {}).get("recipe_digest"):
        found.append("recipe")
    names = dict.fromkeys((*before.versions, *after.versions))
    return found + [
        f"{name} {before.versions.get(name) or '-'} -> {after.versions.get(name) or '-'}"
        for name in names
        if before.versions.get(name, "") != after.versions.get(name, "")
    ]


def missing_between(before: Night, after: Night) -> int:
    """How many nights, or hours, are not there between two."""
    step = _step(before, after)
    return max(0, round((after.time - before.time) / step) - 1)


def _step(before: Night, after: Night) -> timedelta:
    hourly = "T" in before.date and "T" in after.date
    return timedelta(hours=1) if hourly else timedelta(days=1)


def cost_of(row: Row) -> Iterator[tuple[str, float]]:
    """What a problem cost, in each measure that is known, the most telling one first."""
    problems = max(1, row["problems"] - row["bad_problems"])
    for name in ("usd", "flops", "tokens"):
        if row[name]:
            yield name, row[name] / problems
