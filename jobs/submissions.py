"""Runs as jobs of a job server: their ids, their attempts, and what state they are in.

A run's id names it in results and on the cluster. A job server takes an id once, so the first
attempt has the run's id and later ones `<id>-2`, `<id>-3`. (With a dot there, Ray's loggers, whose
names are made of these ids, write what belongs to a later attempt into the first one's log too.)
Invariant: of two who submit the same
run at once, one is refused.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from search.errors import ClusterError, RecipeError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

# The options of `branchwise run` that a submitted run is told with.
RUN_AS, RUN_DATE = "--as", "--date"
# Metadata of a job that is a run; all of its values are text.
RUN_ID, RECIPE, DIGEST, REVISION = "run_id", "recipe", "recipe_digest", "git_revision"
DIGEST_CHARACTERS = 10
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_NEAR = 3
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def run_id_of(name: str, digest: str, *, fresh: bool = False, date: str | None = None) -> str:
    """What a run is called; the same for the same recipe unless it is to be fresh.

    Raises RecipeError for a date that is none.
    """
    if date is not None:
        if fresh:
            raise RecipeError("--date names one run for each day: remove --fresh, or --date")
        return f"{name}/date={_checked_day(date)}"
    stable = f"{name}-{digest[:DIGEST_CHARACTERS]}"
    return f"{stable}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if fresh else stable


def _checked_day(text: str) -> str:
    try:
        if _DAY.fullmatch(text):
            return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).strftime("%Y-%m-%d")
    except ValueError:
        pass
    raise RecipeError(f"--date {text} is no day: write it as 2026-01-31")


def submission_id_of(run_id: str, attempt: int) -> str:
    """The id of a job, which stands in URLs."""
    name = run_id.replace("/", ".")
    return name if attempt == 1 else f"{name}-{attempt}"


@dataclass(frozen=True, slots=True)
class SubmittedRun:
    """All jobs that are attempts at one run, the newest last."""

    run_id: str
    attempts: tuple["JobDetails", ...]

    @property
    def newest(self) -> "JobDetails":
        return self.attempts[-1]

    @property
    def state(self) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return str(self.newest.status.value)

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def metadata(self, key: str) -> str:
        return (self.newest.metadata or {}).get(key, "")


def runs_in(jobs: Iterable["JobDetails"]) -> list[SubmittedRun]:
    """The runs among the jobs of a cluster, oldest first."""
    attempts: dict[str, list[JobDetails]] = {}
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        metadata = job.metadata or {}
        if job.submission_id and metadata.get(RUN_ID) and metadata.get(DIGEST):
            attempts.setdefault(metadata[RUN_ID], []).append(job)
    found = [SubmittedRun(run_id, tuple(each)) for run_id, each in attempts.items()]
    return sorted(found, key=lambda run: run.newest.start_time or 0)


def next_submission_id(run_id: str, runs: Sequence[SubmittedRun]) -> str:
    """For one more attempt at a run; raises ClusterError if one is under way."""
    run = next((run for run in runs if run.run_id == run_id), None)
    if run is None:
        return submission_id_of(run_id, 1)
    if not run.has_ended:
        raise is_running(run_id)
    taken = {job.submission_id for job in run.attempts}
    attempt = len(run.attempts) + 1
    while submission_id_of(run_id, attempt) in taken:
        attempt += 1
    return submission_id_of(run_id, attempt)


def is_running(run_id: str) -> ClusterError:
    """What a second submitter is told."""
    # Only a dated run has a slash in its id; --fresh is refused with a date.
    another = "another --date" if "/" in run_id else "--fresh"
    return ClusterError(
        f"{run_id} is running already: follow it with branchwise logs {run_id} --follow, or give "
        f"{another} for another run"
    )


def found_run(name: str, runs: Sequence[SubmittedRun], address: str) -> SubmittedRun:
    """The run of a run id, or of a submission id with that attempt as its newest; ClusterError."""
    for run in runs:
        if name == run.run_id:
            return run
        for place, job in enumerate(run.attempts, 1):
            if name == job.submission_id:
                return SubmittedRun(run.run_id, run.attempts[:place])
    near = difflib.get_close_matches(name, [run.run_id for run in runs], n=_NEAR, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else "branchwise status lists all"
    raise ClusterError(f"there is no run {name} at {address}: {hint}")
