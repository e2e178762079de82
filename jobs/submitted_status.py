"""What a job server says of runs, as lines; and the end of one on request."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from jobs.following import EVERY_S, job_details
from jobs.job_server import JobServer
from jobs.submissions import DIGEST, DIGEST_CHARACTERS, ENDED, RECIPE, REVISION, SubmittedRun
from jobs.submit import STOP_WAIT_S
from search.errors import ClusterError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

# Ray's own steps around the end of a driver.
_STOP_MARGIN_S = 30.0
_HEADS = ("run", "state", "attempts", "started", "duration", "recipe", "digest")


def run_lines(runs: Sequence[SubmittedRun]) -> Iterator[str]:
    """A table of runs, oldest first."""
    rows = [_HEADS, *(_row(run) for run in runs)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADS))]
    for row in rows if runs else ():
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if not runs:
        yield "no runs"


def _row(run: SubmittedRun) -> tuple[str, ...]:
    digest = run.metadata(DIGEST)[:DIGEST_CHARACTERS]
    job, attempts = run.newest, str(len(run.attempts))
    times = (_started(job), _duration(job))
    return (run.run_id, run.state, attempts, *times, run.metadata(RECIPE), digest)


def attempt_lines(run: SubmittedRun) -> Iterator[str]:
    """One run in full."""
    yield f"{run.run_id}: {run.state}"
    yield f"recipe {run.metadata(RECIPE)}, digest {run.metadata(DIGEST)}"
    if revision := run.metadata(REVISION):
        yield f"git revision {revision}"
    for job in run.attempts:
        code = "" if job.driver_exit_code is None else f", exit code {job.driver_exit_code}"
        took = f"{_started(job)}, {_duration(job)}"
        yield f"{job.submission_id}: {job.status.value}, started {took}{code}"
    if run.state == "FAILED" and run.newest.driver_exit_code is None:
        yield f"reason: {one_line(run.newest.message)}"


def _started(job: "JobDetails") -> str:
    moment = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def _duration(job: "JobDetails") -> str:
    now_ms = datetime.now(UTC).timestamp() * 1000
    seconds = ((job.end_time or now_ms) - (job.start_time or now_ms)) / 1000
    return str(timedelta(seconds=round(max(0.0, seconds))))


def stopped(server: JobServer, run: SubmittedRun) -> str:
    """Stops a run, waits until it has, and says so; raises ClusterError if it does not."""
    submission_id = str(run.newest.submission_id)
    if run.has_ended:
        return f"{run.run_id} is not running: {run.state}"
    with server.asked():
        server.client.stop_job(submission_id)

    deadline = time.monotonic() + STOP_WAIT_S + _STOP_MARGIN_S
    while job_details(server, submission_id).status.value not in ENDED:
        if time.monotonic() > deadline:
            raise ClusterError(f"{run.run_id} has not stopped yet: look with branchwise status")
        time.sleep(EVERY_S)
    return f"{run.run_id} is stopped: submit its recipe again to go on with it"
