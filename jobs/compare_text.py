"""A comparison of two runs to read: in the terminal, or all of its rows as CSV.

Invariant: what is left out of the terminal is counted there; the CSV has all rows.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.compare import Compared, Comparison, ratio
from jobs.plan import PLAIN_WIDTH
from jobs.reported_run import Choice, count_in_words
from search.errors import RecipeError, StorageError
from search.rewards import Reduction
from search.votes import Vote

_SHOWN = Choice(Reduction.LAST, Vote.WEIGHTED)
_MOST_CHANGES = 6
_COSTS = (
    ("seconds", "seconds"),
    ("policy_tokens_per_second", "policy tokens a second"),
    ("tokens", "tokens"),
    ("flops", "FLOPs"),
    ("gpu_seconds", "GPU seconds"),
    ("usd", "USD"),
    ("retries", "retries"),
    ("failed_units", "failed units"),
)
_SEARCH = ("policy", "strategy", "variant", "n", "branching", "reduction", "vote")
_RATIOS = ("tokens_ratio", "flops_ratio", "unit_seconds_ratio")


def print_comparison(found: Comparison, every_vote: bool, console: Console) -> None:
    """Problems, searches and costs. every_vote: also the rows that a report does not show first."""
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    for line in _lines(found):
        console.print(line, soft_wrap=True, highlight=False)
    shown = [each for each in found.searches if every_vote or _is_shown(each)]
    console.print(_search_table(shown))
    console.print(_cost_table(found))
    for note in _notes(found, len(shown)):
        console.print(note, soft_wrap=True, highlight=False)


def write_comparison(found: Comparison, path: Path) -> None:
    """All rows, every vote and reduction; raises BranchwiseError."""
    if path.suffix != ".csv":
        raise RecipeError(f"cannot write a comparison as {path.name!r}: end it in .csv")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_csv(found), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None


def as_csv(found: Comparison) -> str:
    """A row for each search, N and vote; shares from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sides = [field.name for field in fields(found.searches[0].difference)]
    writer.writerow([*_SEARCH, *sides, "difference", *_RATIOS])
    for each in found.searches:
        named = [getattr(each, name) for name in _SEARCH]
        values = [getattr(each.difference, name) for name in sides]
        ratios = [getattr(each, name) for name in _RATIOS]
        writer.writerow([*named, *values, each.difference.value, *ratios])
    return text.getvalue()


def _is_shown(each: Compared) -> bool:
    return (each.reduction, each.vote) == _SHOWN.cell(each.strategy)


def _lines(found: Comparison) -> Iterator[str]:
    shared = found.shared
    yield f"first   {found.runs[0]}"
    yield f"second  {found.runs[1]}"
    yield (
        f"{len(shared.ids)} problems in both; {shared.only_first} only in the first, "
        f"{shared.only_second} only in the second, {shared.changed} with another text or answer"
    )
    if found.changes:
        more = len(found.changes) - _MOST_CHANGES
        end = f"; and {more} more" if more > 0 else ""
        yield f"recipes differ: {'; '.join(found.changes[:_MOST_CHANGES])}{end}"


def _search_table(shown: list[Compared]) -> Table:
    title = "accuracy in %, second minus first in points"
    heads = ("policy", "search", "N", "vote", "first", "second", "difference (95 %)", "problems")
    table = Table(*heads, "tokens", "FLOPs", "unit s", title=title)
    for each in shown:
        table.add_row(*_cells(each))
    return table


def _cells(each: Compared) -> Iterator[str]:
    found = each.difference
    yield each.policy
    yield f"{each.strategy} {each.variant}".rstrip()
    yield str(each.n)
    yield each.vote if each.reduction == "none" else f"{each.reduction} {each.vote}"
    yield f"{100 * found.first:.1f}"
    yield f"{100 * found.second:.1f}"
    known = not math.isnan(found.low)
    interval = f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})" if known else ""
    yield f"{100 * found.value:+.1f}{interval}{' *' if found.is_clear else ''}"
    yield str(found.problems)
    for name in _RATIOS:
        yield _times(getattr(each, name))


def _cost_table(found: Comparison) -> Table:
    table = Table("whole runs", "first", "second", "second / first")
    for name, label in _COSTS:
        values = [row[name] for row in found.rows]
        if any(value is not None for value in values):
            table.add_row(label, *map(_number, values), _times(ratio(values[0], values[1])))
    return table


def _notes(found: Comparison, shown: int) -> Iterator[str]:
    yield (
        "* the interval of the paired differences excludes zero; of 20 rows without any "
        "difference one is marked by chance. Ratios: second over first, same problems."
    )
    hidden = len(found.searches) - shown
    if hidden > 0:
        yield f"{hidden} more rows, of other votes and reductions: --all, or --to FILE.csv"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return count_in_words(value) if value >= 1000 else f"{value:.4g}"


def _times(value: float | None) -> str:
    return "" if value is None else f"x {value:.3g}"
