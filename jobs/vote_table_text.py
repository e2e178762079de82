"""A vote table to read: in the terminal, as Markdown, or as CSV (a row for each cell).

Invariant: all three show the same cells; equal run folders give equal text.
"""

import csv
import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.data import did_you_mean
from jobs.storage import Where
from jobs.vote_columns import vote_columns
from jobs.vote_table import MAJORITY, ROWS, SCORED_ROWS, Cell, Column, at_full_n, shown_rows
from search.compat_votes import VoteRule
from search.errors import RecipeError, StorageError
from search.votes import Vote

SUFFIXES = (".md", ".csv")
_CSV_HEAD = ("run", "prm", "policy", "strategy", "n", "branching", "row", "reduction", "vote")
_CSV_CELL = ("accuracy", "ci_low", "ci_high", "problems")
_NOTES = {
    None: "Answers that mean the same vote together; ties count with their expected correctness.",
    VoteRule.SEARCH_AND_LEARN: "As search-and-learn votes: the first N solutions, scored by their "
    "last reward; empty answers vote; the first of equals wins.",
    VoteRule.COMPUTE_OPTIMAL_TTS: "As compute-optimal-tts votes: by equal strings; empty answers "
    "are dropped; the first of equals wins.",
}


def print_votes(
    runs: Sequence[Where], compat: str | None, by_n: bool, to: Path | None, console: Console
) -> None:
    """Prints the vote table of one or several runs, or writes it; raises BranchwiseError."""
    if to is not None and to.suffix not in SUFFIXES:
        raise RecipeError(f"cannot write a vote table as {to.name!r}: end it in .md or .csv")
    rule = _rule_of(compat)
    columns = [column for run in runs for column in vote_columns(run, rule)]
    tables = _tables(columns, by_n)
    if to is None:
        for table in tables:
            console.print(_terminal_table(table))
        console.print(f"% of problems (95 % interval, by problem). {_NOTES[rule]}")
        return
    _write(to, as_csv(tables) if to.suffix == ".csv" else as_markdown(tables, rule))
    console.print(str(to), soft_wrap=True, highlight=False)


def _rule_of(compat: str | None) -> VoteRule | None:
    if compat is not None and compat not in list(VoteRule):
        hint = did_you_mean(compat, [str(rule) for rule in VoteRule])
        raise RecipeError(f"unknown --compat {compat!r}: {hint}")
    return None if compat is None else VoteRule(compat)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the vote table to {path}: {error}") from error


def _tables(columns: list[Column], by_n: bool) -> list[list[Column]]:
    """All searches at their full N in one table, or a table for each search with all its N."""
    if not by_n:
        return [at_full_n(columns)]
    ordered = sorted(columns, key=lambda column: (column.line, column.n))
    return [list(line) for _, line in groupby(ordered, key=lambda column: column.line)]


def as_markdown(tables: list[list[Column]], rule: VoteRule | None) -> str:
    """Every table under the note that says how it was voted."""
    parts = [
        "# Votes and reductions",
        f"Per cent of problems, with 95 % intervals by problem. {_NOTES[rule]}",
    ]
    return "\n\n".join([*parts, *map(_markdown_table, tables)]) + "\n"


def _markdown_table(columns: list[Column]) -> str:
    names = [" ".join(lines).replace("|", "\\|") for lines in _heads(columns)]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(columns)]
    for row in shown_rows(columns):
        cells = [_in_words(column.cells.get(row)) for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_csv(tables: list[list[Column]]) -> str:
    """Every cell on a line of its own, accuracies from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_CSV_HEAD, *_CSV_CELL))
    for column in (column for table in tables for column in table):
        place = (column.run, column.prm, column.policy, column.strategy, column.n, column.branching)
        for row in (row for row in ROWS if row in column.cells):
            cell = column.cells[row]
            values = (cell.accuracy, cell.low, cell.high, cell.problems)
            writer.writerow((*place, row, *_kind(row), *values))
    return text.getvalue()


def _kind(row: str) -> tuple[str, str]:
    """The reduction and the vote of a row, by the names of the table `answers`."""
    if row in SCORED_ROWS:
        reduction, vote = SCORED_ROWS[row]
        return str(reduction), str(vote)
    return "none", str(Vote.MAJORITY) if row == MAJORITY else "pass"


def _terminal_table(columns: list[Column]) -> Table:
    table = Table("", *("\n".join(lines) for lines in _heads(columns)), title="votes")
    for row in shown_rows(columns):
        table.add_row(row, *(_in_words(column.cells.get(row)) for column in columns))
    return table


def _heads(columns: list[Column]) -> list[list[str]]:
    """What names each column; run and PRM only where there are several."""
    runs = {(column.run, column.prm) for column in columns}
    return [
        ([column.run, column.prm] if len(runs) > 1 else [])
        + [column.policy, column.strategy, f"N = {column.n}"]
        + ([f"M = {column.branching}"] if column.branching > 1 else [])
        for column in columns
    ]


def _in_words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    interval = (
        ""
        if cell.low is None or cell.high is None
        else (f" ({100 * cell.low:.1f}-{100 * cell.high:.1f})")
    )
    return f"{100 * cell.accuracy:.1f}{interval}"
