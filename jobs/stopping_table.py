"""`branchwise stopping`: replayed rules as a table."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from jobs.data import did_you_mean
from jobs.stopping import Stopping, StopRule
from jobs.stopping_replay import Replay, replays
from jobs.storage import Where, folder_to_read
from search.errors import RecipeError
from search.rewards import Reduction
from search.votes import Vote

Name = TypeVar("Name", bound=StrEnum)
_HEADS = ("search", "threshold", "solutions saved", "tokens saved", "accuracy", "change", "95 %")


def rules_of(
    rule: str, thresholds: Sequence[float], at_least: int, every: int, vote: str
) -> list[Stopping]:
    """One rule at several thresholds; raises RecipeError for a word or number it cannot take."""
    if at_least < 1 or every < 1:
        raise RecipeError("--at-least and --every are numbers of solutions: give 1 or more")
    if wrong := [each for each in thresholds if not 0 < each <= 1]:
        raise RecipeError(f"--threshold {wrong[0]} must lie between 0 and 1")
    kind, ballot = _named(StopRule, "--rule", rule), _named(Vote, "--vote", vote)
    if ballot is Vote.MAX:
        raise RecipeError("--vote max has no votes to count: use weighted or majority")
    return [Stopping(kind, threshold, at_least, every, ballot) for threshold in thresholds]


def print_replays(run: Where, rules: Sequence[Stopping], reduction: str, console: Console) -> None:
    """Replays every rule on every search of a run that splits."""
    folder = folder_to_read(run)
    found = list(replays(folder, rules, _named(Reduction, "--reduction", reduction)))
    table = Table(*_HEADS, title=f"{rules[0].rule} on {folder.name}, {rules[0].vote} vote")
    for replay in found:
        table.add_row(*_row(replay))
    console.print(table)
    console.print(
        "change: percentage points against the vote of all solutions of the same run, paired by "
        "problem; tokens: those of the solutions."
    )


def _row(replay: Replay) -> tuple[str, ...]:
    search, (mean, low, high) = replay.search, replay.difference()
    name = f"{search.policy} {search.strategy} N={search.n}"
    return (
        f"{name} M={search.branching}" if search.branching > 1 else name,
        f"{replay.stopping.threshold:g}",
        f"{replay.solutions_saved:.1%}",
        f"{replay.tokens_saved:.1%}",
        f"{replay.full:.1%}",
        f"{100 * mean:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
    )


def _named(kind: type[Name], option: str, name: str) -> Name:
    try:
        return kind(name)
    except ValueError:
        raise RecipeError(f"{option} {name!r}: {did_you_mean(name, list(kind))}") from None
