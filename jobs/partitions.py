"""Names of runs: one that a user gives, or a recipe's partition by date.

A partition is the folder `<recipe name>/date=<day>` in `runs_folder`, as readers of Parquet data
sets know it. Invariant: a name says the same to whoever starts it, whenever that is, so what is
started twice is done once. Nothing heavy is imported here.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from search.errors import RecipeError

TODAY = "today"
KEY = "date="
# As in jobs.settings.Name.
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
_LONGEST_NAME = 100
_FORMS = {10: "%Y-%m-%d", 13: "%Y-%m-%dT%H"}


@dataclass(frozen=True, slots=True)
class RunName:
    """Where a run lies in `runs_folder`. date: of a partition, such as 2026-11-21; else empty."""

    name: str
    date: str = ""

    @property
    def run_id(self) -> str:
        """What names the run, and its path in `runs_folder`."""
        return f"{self.name}/{KEY}{self.date}" if self.date else self.name


def chosen_name(
    recipe_name: str, run_id: str | None, date: str | None, into: str | None, fresh: bool
) -> RunName | None:
    """The run that `--as` or `--date` names, None without either; raises RecipeError."""
    given = {"--as": run_id, "--date": date, "--into": into, "--fresh": fresh or None}
    several = [option for option, value in given.items() if value is not None]
    if len(several) > 1:
        raise RecipeError(f"{several[0]} and {several[1]} each name the run: give one of them")
    if date is not None:
        return RunName(recipe_name, checked_date(date))
    return None if run_id is None else _named(recipe_name, run_id)


def checked_date(date: str) -> str:
    """A day, or an hour of one, as its folder has it; `today` in UTC. Raises RecipeError."""
    if date == TODAY:
        return f"{datetime.now(UTC):%Y-%m-%d}"
    form = _FORMS.get(len(date))
    try:
        if form and f"{datetime.strptime(date, form).replace(tzinfo=UTC):{form}}" == date:
            return date
    except ValueError:
        pass
    raise RecipeError(
        f"--date {date!r} is no day: write {TODAY}, YYYY-MM-DD, or YYYY-MM-DDTHH for an hour"
    )


def date_of(folder_name: str) -> str:
    """The date of a partition by its folder's name; "" for a folder that is none."""
    date = folder_name.removeprefix(KEY)
    if date in (folder_name, TODAY):
        return ""
    try:
        return checked_date(date)
    except RecipeError:
        return ""


def _named(recipe_name: str, run_id: str) -> RunName:
    name, slash, partition = run_id.partition("/")
    if slash and name == recipe_name and (date := date_of(partition)):
        return RunName(name, date)
    if slash or len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise RecipeError(
            f"--as {run_id!r} names no run: write letters, digits, '_', '-' and '.', at most "
            f"{_LONGEST_NAME}, or {recipe_name}/{KEY}YYYY-MM-DD"
        )
    return RunName(name)
