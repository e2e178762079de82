"""`branchwise run` as a scheduler sees it: what is started, what is left alone, and the exit code.

Invariant: a run that was named is done once however often it is started, and every start of it ends
with the exit code of what was done.
"""

import logging
from dataclasses import dataclass

from rich.console import Console

from jobs.driver import run_recipe
from jobs.history import nights_at
from jobs.nights import checked_home, unfinished_before
from jobs.partitions import RunName
from jobs.regression import judge
from jobs.report import report_at
from jobs.run_folders import runs_of
from jobs.run_rows import load_run_row
from jobs.settings import Recipe
from jobs.storage import Storage
from jobs.summary import print_summary
from search.errors import RecipeError, RunEndedError, StillRunningError

EXIT_DONE, EXIT_PARTIAL, EXIT_WORSE = 0, 1, 3
log = logging.getLogger("branchwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the command line asked for; at most one of name, into and fresh."""

    name: RunName | None = None
    into: str | None = None
    fresh: bool = False
    also_if_running: bool = False
    catch_up: bool = False


def run_to_exit_code(recipe: Recipe, address: str | None, start: Start, console: Console) -> int:
    """Runs what was asked for and reports it; raises BranchwiseError if that cannot start."""
    if start.catch_up and start.name:
        _catch_up(recipe, address, start, start.name, console)
    try:
        code = _run(recipe, address, start, console)
    except RunEndedError as error:
        console.print(f"{error}: nothing was started", soft_wrap=True, highlight=False)
        code = _code_of(_home(recipe, start.name))
    return EXIT_WORSE if _is_worse(recipe, start.name, console) else code


def _run(recipe: Recipe, address: str | None, start: Start, console: Console) -> int:
    outcome = run_recipe(
        recipe,
        address,
        console,
        into=start.into,
        fresh=start.fresh,
        name=start.name,
        also_if_running=start.also_if_running,
    )
    files = report_at([outcome.place], outcome.place)
    print_summary(outcome, files, console)
    return EXIT_PARTIAL if outcome.failed_units or outcome.bad_problems else EXIT_DONE


def _catch_up(
    recipe: Recipe, address: str | None, start: Start, name: RunName, console: Console
) -> None:
    """Finishes earlier partitions. One that was begun with another recipe, that is being run now
    or that has ended meanwhile is left as it is: what was asked for is the night after them."""
    for date in unfinished_before(runs_of(recipe), name):
        log.info("catching up with %s of %s", date, name.name)
        earlier = Start(name=RunName(name.name, date), also_if_running=start.also_if_running)
        try:
            _run(recipe, address, earlier, console)
        except (RecipeError, StillRunningError, RunEndedError) as error:
            log.warning("%s is left as it is: %s", date, error)


def _is_worse(recipe: Recipe, name: RunName | None, console: Console) -> bool:
    """Whether a dated run is worse than its recipe allows; says in one line what was found."""
    if name is None or not name.date or recipe.regression is None:
        return False
    home = runs_of(recipe).child(name.name)
    nights = [night for night in nights_at(home) if night.date <= name.date]
    verdict = judge(nights, recipe.regression)
    console.print(verdict.line, soft_wrap=True, highlight=False)
    return verdict.is_worse


def _home(recipe: Recipe, name: RunName | None) -> Storage:
    runs = runs_of(recipe)
    return runs if name is None else checked_home(runs, name)


def _code_of(folder: Storage) -> int:
    """What the run in a folder ended with."""
    row = load_run_row(folder)
    return EXIT_PARTIAL if row["failed_units"] or row["bad_problems"] else EXIT_DONE
