"""The command line. Nothing heavy is imported before a command needs it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from actors.garbage import uncollected
from jobs import cli_history, cli_submitted, cli_watch
from jobs.ending import Ending
from search.errors import (
    BranchwiseError,
    RecipeError,
    StillRunningError,
    first_cause,
    one_line,
)

EXIT_REFUSED = 2
EXIT_PARTIAL = 1
# EX_TEMPFAIL of sysexits.h: somebody else is at it, which a scheduler may take for fine.
EXIT_STILL_RUNNING = 75

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as jobs/recipes/demo.yaml.")]
RunFolders = Annotated[list[str], typer.Argument(help="Run folders: paths or URIs.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to it, as key.path=value.")]

app = typer.Typer(
    help="Test-time search for language models on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for more in (cli_submitted, cli_watch, cli_history):
    app.add_typer(more.app)


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster; else RAY_ADDRESS; else a local one is started."),
    ] = None,
    into: Annotated[
        str | None, typer.Option(help="A run folder to go on with, also if it has ended.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="A new run, even if one is not finished.")
    ] = False,
    run_id: Annotated[
        str | None, typer.Option("--as", help="Name of the run: begun, continued, or done already.")
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(help="Its partition: today (UTC), YYYY-MM-DD or YYYY-MM-DDTHH; done once."),
    ] = None,
    also_if_running: Annotated[
        bool, typer.Option("--also-if-running", help="Even while an earlier date is running.")
    ] = False,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="First finish earlier dates that were given up.")
    ] = False,
) -> None:
    """Run a recipe: search, grade, write tables and the report.

    A run of the recipe that was not finished is continued. Exit codes are in docs/nightly.md.
    """
    from jobs.partitions import chosen_name
    from jobs.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    name = chosen_name(checked.name, run_id, date, into, fresh)
    if (also_if_running or catch_up) and not (name and name.date):
        raise RecipeError("--also-if-running and --catch-up are for runs with --date: give one")
    from rich.console import Console

    with uncollected():
        from jobs.scheduled import Start, run_to_exit_code

    start = Start(
        name=name, into=into, fresh=fresh, also_if_running=also_if_running, catch_up=catch_up
    )
    if code := run_to_exit_code(checked, address, start, Console()):
        raise typer.Exit(code)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="Predict time and cost on so many GPUs.")] = None,
    gpu_type: Annotated[str | None, typer.Option(help="Such as h100, a100-80, l4.")] = None,
    gpu_price: Annotated[
        float | None, typer.Option(help="USD of a GPU hour; an assumption if not given.")
    ] = None,
    from_run: Annotated[
        str | None, typer.Option(help="A run folder whose steps are like those to come.")
    ] = None,
    step_tokens: Annotated[float | None, typer.Option(help="Tokens of a step on average.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a solution on average.")] = None,
) -> None:
    """Say what a recipe needs and costs, without starting anything; with --gpus how long it takes.

    The prediction simulates a part of the run; docs/planning.md says what it assumes.
    """
    from jobs.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from jobs.fit import check_fit
    from jobs.plan import plan_run, print_plan

    if gpus is None:
        if any(x is not None for x in (gpu_type, gpu_price, from_run, step_tokens, steps)):
            raise RecipeError("a prediction needs --gpus: say how many")
        print_plan(plan_run(checked), Console())
        check_fit(checked)
        return
    from jobs.forecast import forecast, print_forecast, question
    from jobs.splits import with_memory

    asked = question(gpus, gpu_type, gpu_price, from_run, step_tokens, steps)
    found = forecast(checked, asked)
    print_plan(plan_run(with_memory(checked, asked.gpu)), Console())
    print_forecast(found, Console())


@app.command()
def report(
    runs: RunFolders,
    to: Annotated[
        str | None, typer.Option(help="Where to write; else the first run's folder.")
    ] = None,
) -> None:
    """Draw accuracy against N, tokens and FLOPs and write a summary, from the tables alone."""
    from jobs.report import report_at

    for path in report_at(runs, to or runs[0]):
        typer.echo(path)


@app.command()
def fit(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs on a development split.")],
    to: Annotated[Path, typer.Option(help="The file to write, such as routes.yaml.")],
    probe: Annotated[int, typer.Option(help="Samples drawn before a problem is routed.")] = 4,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Such as '64 solutions', '2e5 tokens', '1e12 flops'; several times."),
    ] = None,
    easy: Annotated[float, typer.Option(help="Pass@1 from which a problem is easy.")] = 0.5,
    hard: Annotated[float, typer.Option(help="Pass@1 below which it is hard.")] = 0.1,
    standard_errors: Annotated[
        float, typer.Option(help="Prefer a cheaper search that is behind by so many at most.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides the two folds.")] = 0,
) -> None:
    """Learn which search is best by difficulty and budget; print how good the choice is.

    docs/compute-optimal.md says how, and what the numbers mean.
    """
    from jobs.budgets import parse_budget
    from jobs.difficulty import Thresholds
    from jobs.fit_report import fit_report
    from jobs.fitting import FitSettings
    from jobs.fitting import fit as learn
    from jobs.routes import save_artifact

    budgets = tuple(parse_budget(text) for text in budget or [])
    thresholds = Thresholds(easy, hard)
    settings = FitSettings(probe, thresholds, seed, standard_errors, budgets)
    artifact = learn(runs, settings)
    save_artifact(artifact, to)
    typer.echo(fit_report(artifact))
    typer.echo(to)


@app.command()
def votes(
    runs: RunFolders,
    compat: Annotated[
        str | None,
        typer.Option(help="Vote as search_and_learn or compute_optimal_tts does."),
    ] = None,
    by_n: Annotated[bool, typer.Option("--by-n", help="A table a search, a column an N.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="A .md or .csv file to write; else the terminal.")
    ] = None,
) -> None:
    """Compare all votes with all reductions, from the tables alone."""
    from rich.console import Console

    from jobs.vote_table_text import print_votes

    print_votes(runs, compat, by_n, to, Console())


@app.command()
def contamination(
    problems: Annotated[str, typer.Argument(help="A recipe, or a data source as in a recipe.")],
    corpus: Annotated[
        list[Path], typer.Option(help="Text, JSONL or Parquet files, or folders of them.")
    ],
    more_corpus: Annotated[
        list[Path] | None, typer.Argument(help="More files, behind --corpus.", metavar="FILES")
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="Field with the text; else text, content, ...")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Words of an n-gram.")] = 10,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of n-grams that is still no contamination.")
    ] = 0.0,
    to: Annotated[
        Path | None, typer.Option(help="Write a row a problem to this .parquet or .csv.")
    ] = None,
) -> None:
    """Look for problems in a text corpus, by n-grams of words; exit code 1 if any is there."""
    from rich.console import Console

    from jobs.contamination import check_contamination, check_target, problems_of, write_overlaps
    from jobs.contamination_summary import print_overlaps
    from jobs.corpus import Corpus

    if to:
        check_target(to)
    read = Corpus([*corpus, *(more_corpus or [])], field)
    overlaps = check_contamination(problems_of(problems), read, n, threshold)
    if to:
        write_overlaps(overlaps, to)
    print_overlaps(overlaps, read.notes, n, threshold, Console())
    if any(overlap.finding == "contaminated" for overlap in overlaps):
        raise typer.Exit(EXIT_PARTIAL)


@app.command()
def stopping(
    run: Annotated[str, typer.Argument(help="The folder of a run that was not stopped.")],
    rule: Annotated[
        str, typer.Option(help="posterior or vote_margin; docs/stopping.md.")
    ] = "posterior",
    threshold: Annotated[
        list[float] | None, typer.Option(help="When the rule holds; may be given several times.")
    ] = None,
    at_least: Annotated[int, typer.Option(help="Solutions before the first look.")] = 16,
    every: Annotated[int, typer.Option(help="Solutions between two looks.")] = 16,
    vote: Annotated[str, typer.Option(help="weighted or majority.")] = "weighted",
    reduction: Annotated[str, typer.Option(help="last, min, mean or prod.")] = "last",
) -> None:
    """Replay a stopping rule on a full run: tokens saved, and accuracy lost with its interval."""
    from rich.console import Console

    from jobs.stopping_table import print_replays, rules_of

    rules = rules_of(rule, threshold or [0.8, 0.9, 0.95, 0.99], at_least, every, vote)
    print_replays(run, rules, reduction, Console())


@app.command()
def models() -> None:
    """List the models that ship with the repository."""
    from jobs.catalogue import embedded_models

    for line in embedded_models():
        typer.echo(line)


@app.command()
def strategies() -> None:
    """List the search strategies."""
    from search.config import COMPUTE_OPTIMAL
    from search.strategies import STRATEGIES

    for name, strategy in STRATEGIES.items():
        typer.echo(f"{name:15} {strategy.summary}")
    typer.echo(f"{COMPUTE_OPTIMAL:15} one of these for each problem, by a probe of it")


def main() -> None:
    """Runs a command; a mistake of the user's ends in one line, not in a traceback."""
    from cluster.logs import set_up_logging

    ending = Ending()
    ending.listen()
    try:
        set_up_logging()
        app()
    except (KeyboardInterrupt, SystemExit) as left:
        ending.leave(left)
        raise
    except Exception as error:
        ending.leave(error)
        cause = first_cause(error)
        if not isinstance(cause, BranchwiseError):
            raise
        if isinstance(cause, StillRunningError):
            print(f"left alone: {one_line(cause)}", file=sys.stderr)
            sys.exit(EXIT_STILL_RUNNING)
        print(f"error: {one_line(cause)}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
