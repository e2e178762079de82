"""Commands for runs on a cluster's job server: submit, status, logs, stop."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.job_server import JobServer

app = typer.Typer()
Address = Annotated[
    str | None,
    typer.Option(help="http://HOST:8265; else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS."),
]
RunName = Annotated[str, typer.Argument(help="A run id, or the submission id of an attempt.")]
log = logging.getLogger("branchwise")


@app.command()
def submit(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as jobs/recipes/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, as key.path=value.")
    ] = None,
    address: Address = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="A new run of the same recipe.")] = False,
    date: Annotated[
        str | None, typer.Option(help="The run of a day, as 2026-01-31; done once.")
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option(help="A folder that the cluster's machines see too: not sent."),
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="A YAML file with keys of Ray's runtime_env.")
    ] = None,
) -> None:
    """Run a recipe on a cluster, by its job server; go on with it if it was begun.

    The exit code is that of the run. Ctrl-C leaves the run running.
    """
    from jobs.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [], elsewhere=True)
    from jobs.job_server import job_server
    from jobs.submit import prepare, send

    sent = prepare(checked, shared=shared or (), runtime_env=runtime_env, fresh=fresh, date=date)
    server = job_server(address)
    submission_id = send(sent, server)
    if not wait:
        typer.echo(sent.run_id)
        return
    _follow_to_end(server, submission_id, sent.run_id)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="A run id; else all runs.")] = None,
    address: Address = None,
) -> None:
    """List the runs on a cluster, or the attempts at one."""
    from jobs.job_server import job_server
    from jobs.submissions import found_run, runs_in
    from jobs.submitted_status import attempt_lines, run_lines

    server = job_server(address)
    with server.asked():
        runs = runs_in(server.client.list_jobs())
    lines = attempt_lines(found_run(run, runs, server.address)) if run else run_lines(runs)
    for line in lines:
        typer.echo(line)


@app.command()
def logs(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the run ends, with its exit code.")
    ] = False,
    address: Address = None,
) -> None:
    """Print the log of a run."""
    from jobs.following import job_log
    from jobs.job_server import job_server
    from jobs.submissions import found_run, runs_in

    server = job_server(address)
    with server.asked():
        found = found_run(run, runs_in(server.client.list_jobs()), server.address)
    submission_id = str(found.newest.submission_id)
    if follow:
        _follow_to_end(server, submission_id, found.run_id)
    else:
        _write(job_log(server, submission_id))


@app.command()
def stop(run: RunName, address: Address = None) -> None:
    """Stop a run; submitting its recipe again goes on with it."""
    from jobs.job_server import job_server
    from jobs.submissions import found_run, runs_in
    from jobs.submitted_status import stopped

    server = job_server(address)
    with server.asked():
        found = found_run(run, runs_in(server.client.list_jobs()), server.address)
    typer.echo(stopped(server, found))


def _follow_to_end(server: "JobServer", submission_id: str, run_id: str) -> None:
    """Leaves with the exit code of the run."""
    from jobs.following import exit_code, follow

    try:
        details = follow(server, submission_id, _write)
    except KeyboardInterrupt:
        print(
            f"{run_id} goes on: branchwise logs {run_id} --follow, or branchwise stop {run_id}",
            file=sys.stderr,
        )
        raise
    raise typer.Exit(exit_code(details))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
