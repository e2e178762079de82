"""The commands that read runs against each other: `compare` and `history`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EXIT_WORSE = 3


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run folder: a path or a URI.")],
    second: Annotated[str, typer.Argument(help="The one that is held against it.")],
    every_vote: Annotated[
        bool, typer.Option("--all", help="Every vote with every reduction.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(help="A .csv file for all rows; else the terminal.")
    ] = None,
) -> None:
    """Compare two runs, paired by problem: accuracy with an interval, and cost.

    docs/nightly.md shows an example.
    """
    from rich.console import Console

    from jobs.compare import compare as compared
    from jobs.compare_text import print_comparison, write_comparison

    found = compared(first, second)
    if to is None:
        print_comparison(found, every_vote, Console())
        return
    write_comparison(found, to)
    typer.echo(to)


@app.command()
def history(
    folder: Annotated[str, typer.Argument(help="Where the nights are, such as runs/NAME.")],
    to: Annotated[
        str | None, typer.Option(help="Where to draw; else into the folder itself.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            help="Draw nothing; exit code 3 if the last night is worse than its recipe allows."
        ),
    ] = False,
) -> None:
    """Show accuracy, cost and speed of a recipe over its nights, as a table and a figure."""
    from rich.console import Console

    from jobs.history import nights_at
    from jobs.history_text import print_history

    nights = nights_at(folder)
    if check:
        from jobs.regression import judge_recorded

        verdict = judge_recorded(nights)
        typer.echo(verdict.line)
        raise typer.Exit(EXIT_WORSE if verdict.is_worse else 0)
    print_history(nights, Console())
    from jobs.history_files import write_history

    for path in write_history(nights, to or folder):
        typer.echo(path)
