"""The commands that look at runs. Nothing heavy is imported before a command needs it."""

from typing import Annotated

import typer

EXIT_NOT_RUNNING = 1

app = typer.Typer()


@app.command()
def top(
    run: Annotated[str, typer.Argument(help="A run folder: a path or a URI.")],
    once: Annotated[bool, typer.Option("--once", help="Print it once and leave.")] = False,
) -> None:
    """Show a run while it goes on, from any terminal; exit code 1 if it stopped before its end."""
    from rich.console import Console

    from jobs.top import show_run

    if not show_run(run, once, Console()):
        raise typer.Exit(EXIT_NOT_RUNNING)
