"""Sending a run to a cluster: checked here, sent once, followed to its end.

Invariant: nothing is sent that could have been refused here, and who stops following a run does
not stop the run.
"""

import logging
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.data import DataSource, SourceKind, find_path, load_problems, source_kind
from jobs.fit import check_fit
from jobs.job_server import JobServer
from jobs.recipe import recipe_digest
from jobs.routed_checks import check_overlap
from jobs.settings import Recipe
from jobs.staging import STAGED_RECIPE, Staging, mib, staged
from jobs.store_uris import shown
from jobs.submissions import (
    DIGEST,
    RECIPE,
    REVISION,
    RUN_AS,
    RUN_DATE,
    RUN_ID,
    is_running,
    next_submission_id,
    run_id_of,
    runs_in,
)
from jobs.yaml_files import read_yaml
from search.errors import ClusterError, RecipeError, one_line
from search.problem import Problem

# How long Ray waits between SIGTERM and SIGKILL when a job is stopped; without it, 3 s. Read in
# the job's own environment.
STOP_WAIT, STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 60
# Progress bars of libraries would fill a log.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
_TAKEN = "already exists"
log = logging.getLogger("branchwise")


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that is ready to be sent."""

    run_id: str
    staging: Staging
    runtime_env: dict[str, Any]
    metadata: dict[str, str]
    date: str | None

    @property
    def entrypoint(self) -> str:
        name = [RUN_DATE, self.date] if self.date else [RUN_AS, self.run_id]
        return shlex.join(["python", "-m", "jobs", "run", STAGED_RECIPE, *name])


def prepare(
    recipe: Recipe,
    *,
    shared: Sequence[str] = (),
    runtime_env: Path | None = None,
    fresh: bool = False,
    date: str | None = None,
) -> Submission:
    """Checks all that can be checked before anything is sent; raises RecipeError."""
    from jobs.results import git_revision

    check_fit(recipe)
    _check_problems(recipe)
    staging = staged(recipe, shared)
    digest = digest_of(staging.recipe)
    run_id = run_id_of(recipe.name, digest, fresh=fresh, date=date)
    described = {RUN_ID: run_id, RECIPE: recipe.name, DIGEST: digest, REVISION: git_revision()}
    return Submission(run_id, staging, _environment(runtime_env), described, date)


def digest_of(recipe: Recipe) -> str:
    """As `run.json` will say it: of the recipe as it is sent, without credentials."""
    return recipe_digest(recipe.model_copy(update={"runs_folder": shown(recipe.runs_folder)}))


def send(submission: Submission, server: JobServer) -> str:
    """Sends a run and returns its submission id; raises ClusterError if it is running already."""
    with server.asked():
        runs = runs_in(server.client.list_jobs())
    submission_id = next_submission_id(submission.run_id, runs)
    with tempfile.TemporaryDirectory(prefix="branchwise-") as folder:
        submission.staging.write(Path(folder))
        size = mib(submission.staging.size_bytes)
        log.info("sending %s (%s) to %s", submission.run_id, size, server.address)
        try:
            with server.asked():
                server.client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission_id,
                    runtime_env=submission.runtime_env | {"working_dir": folder},
                    metadata=submission.metadata,
                )
        except ClusterError as error:
            # Another submitter was faster between the list and this.
            if _TAKEN in str(error):
                raise is_running(submission.run_id) from error
            raise
    return submission_id


def _check_problems(recipe: Recipe) -> None:
    """Reads the problems that are here; those of the hub, and of the cluster, are read there."""
    loaded = load_problems([source for source in recipe.data if _is_here(source)])
    check_overlap(recipe, [row for row in loaded if isinstance(row, Problem)])


def _is_here(source: DataSource) -> bool:
    kind = source_kind(source.source)
    if kind is SourceKind.REASONING_GYM:
        return True
    is_far = Path(source.source).is_absolute() and find_path(source.source) is None
    return kind is not SourceKind.HUB and not is_far


def _environment(path: Path | None) -> dict[str, Any]:
    """Ray's runtime environment: what a file says, and what every run needs."""
    given = _read_environment(path) if path else {}
    own = {STOP_WAIT: str(STOP_WAIT_S), **QUIET}
    return given | {"env_vars": own | (given.get("env_vars") or {})}


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        document = read_yaml(path)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path} is not a mapping: write keys of Ray's runtime_env, as env_vars")
    if "working_dir" in document:
        raise RecipeError(f"{path} has a working_dir: remove it, Branchwise brings its own")
    variables = document.get("env_vars") or {}
    if not isinstance(variables, dict) or not all(isinstance(v, str) for v in variables.values()):
        raise RecipeError(f"{path}: env_vars should map names to text: put numbers in quotes")
    return document
