"""The history of a recipe to read: a row for each night in the terminal, and all rows as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from jobs.history import Night, Row, changes_between, cost_of, ended, missing_between
from jobs.plan import PLAIN_WIDTH
from jobs.reported_run import count_in_words
from search.schemas import RUNS

_COST = {"usd": "USD", "flops": "FLOPs", "tokens": "tokens"}
_WIDTH = PLAIN_WIDTH + 20


def print_history(nights: Sequence[Night], console: Console) -> None:
    """A row for each night, and one for nights that are not there."""
    if not console.is_terminal:
        console.width = _WIDTH
    heads = ("night", "accuracy %", "95 % interval", "problems", "cost a problem", "minutes")
    table = Table(*heads, "tokens/s", "failed", "changed", title=_title(nights))
    for before, night in zip([None, *nights], nights, strict=False):
        if before and (missing := missing_between(before, night)):
            table.add_row(f"({missing} missing)")
        table.add_row(*_cells(_last_ended(nights, night), night))
    console.print(table)


def as_csv(nights: Sequence[Night]) -> str:
    """The table `runs` of all nights that have ended, with their date."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["date", *RUNS.names], lineterminator="\n")
    writer.writeheader()
    for night in nights:
        if night.row is not None:
            writer.writerow({"date": night.date} | night.row)
    return text.getvalue()


def headline_in_words(row: Row) -> str:
    """The search that an accuracy is of."""
    if row["policy"] is None:
        return "no headline"
    rule = f"{row['strategy']} {row['variant']}".rstrip()
    vote = row["vote"] if row["reduction"] == "none" else f"{row['reduction']} {row['vote']}"
    return f"{row['policy']}, {rule} at N = {row['n']}, {vote}"


def _title(nights: Sequence[Night]) -> str:
    """The last night's headline, with a warning if earlier ones had another."""
    over = ended(nights)
    if not over or over[-1].row is None:
        return "no night has ended"
    row = over[-1].row
    others = sum(night.headline != over[-1].headline for night in over)
    more = f" ({others} nights show another search)" if others else ""
    return f"{row['recipe']}: {headline_in_words(row)}{more}"


def _last_ended(nights: Sequence[Night], night: Night) -> Night | None:
    before = ended(nights[: list(nights).index(night)])
    return before[-1] if before else None


def _cells(before: Night | None, night: Night) -> Iterator[str]:
    yield night.date
    row = night.row
    if row is None:
        yield "not ended"
        return
    known = row["accuracy"] is not None
    yield f"{100 * row['accuracy']:.1f}" if known else "none"
    sides = (row["ci_low"], row["ci_high"])
    yield f"{100 * sides[0]:.1f} to {100 * sides[1]:.1f}" if None not in sides else ""
    yield f"{row['problems'] - row['bad_problems']}"
    name, cost = next(cost_of(row), ("", 0.0))
    yield f"{count_in_words(cost)} {_COST[name]}" if name else ""
    yield f"{row['seconds'] / 60:.1f}"
    speed = row["policy_tokens_per_second"]
    yield count_in_words(speed) if speed else ""
    yield f"{row['failed_units']}"
    yield "; ".join(changes_between(before, night)) if before else ""
