"""One run from recipe to tables: the whole way on one screen.

Invariant: every problem of the data ends in the tables, as graded solutions, as error rows of
its units, or as a bad row with its reason. The driver holds only what is in flight.
"""

import asyncio
import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from actors.spec import ModelSpec
from cluster.admission import Admission, admission_of
from cluster.connect import connected
from cluster.deploy import Deployed, check_capacity, deployed, uses_gpus
from cluster.fanout import Site, run_units, warm_up
from jobs.commits import Commits
from jobs.curves import SOLUTION_COLUMNS, answers_in_parts
from jobs.data import BadProblem, load_problems
from jobs.dispatch import Dispatch
from jobs.fit import check_fit
from jobs.grading import Graders
from jobs.models import policy_spec, prm_spec
from jobs.plan_searches import routed_solutions, search_plans, stops_table
from jobs.progress import ProgressDisplay
from jobs.recall import PolicyRecall, Recall
from jobs.results import load_table, table_parts, write_table
from jobs.routed_checks import check_overlap
from jobs.routes_rows import routes_rows
from jobs.routes_table import routed_answers
from jobs.run_folders import OpenRun, open_run
from jobs.run_tables import of_recipe, write_parts, write_tables
from jobs.run_writer import RunWriter
from jobs.samples import SAMPLE_COLUMNS, samples_in_parts
from jobs.settings import Recipe
from jobs.storage import Storage
from search.errors import StorageError
from search.problem import Problem
from search.schemas import PROBLEMS

log = logging.getLogger("branchwise")


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Where a run is, and what in it failed."""

    place: Storage
    failed_units: int
    bad_problems: int

    @property
    def folder(self) -> Path:
        """Its folder on this machine; raises StorageError if it lies on a store."""
        if self.place.here is None:
            raise StorageError(f"{self.place} is no folder of this machine: use its `place`")
        return self.place.here


def run_recipe(
    recipe: Recipe,
    address: str | None,
    console: Console,
    *,
    into: str | None = None,
    fresh: bool = False,
) -> RunOutcome:
    """Runs a recipe, or what is missing of it, and returns its folder.

    into, fresh: see `jobs.run_folders.open_run`. Raises BranchwiseError if it cannot start.
    """
    check_fit(recipe)
    loaded = load_problems(recipe.data)
    check_overlap(recipe, [row for row in loaded if isinstance(row, Problem)])
    with open_run(recipe, into, fresh) as run:
        return asyncio.run(_run(recipe, run, address, loaded, console))


async def _run(
    recipe: Recipe,
    run: OpenRun,
    address: str | None,
    loaded: list[Problem | BadProblem],
    console: Console,
) -> RunOutcome:
    recall = Recall(run.log)
    async with RunWriter(run.log, recipe.work.checkpoint_interval_s) as writer:
        searched = await _search_all(recipe, address, loaded, writer, recall, console)
    run.lease.check()
    write_table(run.folder, "problems", problems_table(searched.problems, searched.bad))
    write_tables(run.log, run.folder, of_recipe(recipe))
    _write_answers(run.folder, searched.problems, recipe)
    run.finish()
    return RunOutcome(run.folder, searched.failed_units, len(searched.bad))


@dataclass(frozen=True, slots=True)
class _Searched:
    """What was searched, and how much could not be."""

    problems: list[Problem]
    failed_units: int
    bad: list[BadProblem]


async def _search_all(
    recipe: Recipe,
    address: str | None,
    loaded: list[Problem | BadProblem],
    writer: RunWriter,
    recall: Recall,
    console: Console,
) -> _Searched:
    """Every policy of the ladder in turn, with the PRM deployed once."""
    policies = [policy_spec(policy) for policy in recipe.policies]
    prm, failed, work = prm_spec(recipe.prm), 0, recipe.work
    with connected(address, packs_replicas=uses_gpus(policies, prm)):
        check_capacity(policies, prm)
        warm_up(admission(recipe, policies[0].name, len(loaded)))
        # What takes long to start is started first: the PRM and a policy load side by side.
        async with (
            deployed("prm", prm) as prm_replicas,
            Graders(work.grading_processes, work.grading_timeout_s) as graders,
        ):
            problems, bad = await _split_gradable(loaded, graders)
            for policy in policies:
                log.info("deploying %s", policy.name)
                async with deployed("policy", policy) as policy_replicas:
                    ready = await asyncio.gather(policy_replicas, prm_replicas)
                    site = _site(recipe, policy, *ready)
                    known = PolicyRecall(recall, policy.name)
                    failed += await _search(recipe, site, problems, writer, known, graders, console)
    return _Searched(problems, failed, bad)


async def _search(
    recipe: Recipe,
    site: Site,
    problems: list[Problem],
    writer: RunWriter,
    recall: PolicyRecall,
    graders: Graders,
    console: Console,
) -> int:
    """One policy's searches over all problems: fan out, grade, commit."""
    commits = Commits(writer, graders, 2 * recipe.work.grading_processes)
    plans = search_plans(recipe, site.policy_name, len(problems), graders)
    bound = admission(recipe, site.policy_name, len(problems))

    async def commit(problem: Problem, solutions: pa.Table) -> None:
        checked = await commits.commit(problem, solutions)
        writer.add("routes", routes_rows(plans, site.policy_name, problem, checked))
        progress.finish_problem(checked)

    each = sum(len(plan.first_units(problem)) for problem in problems[:1] for plan in plans)
    first_units = max(1, each * len(problems) - recall.units)
    display = ProgressDisplay(site.policy_name, len(problems), first_units, console)
    with display as progress:
        async with writer.kept_if_stopped(), asyncio.TaskGroup() as tasks:
            skip = progress.skip_problem
            dispatch = Dispatch(problems, plans, writer, commit, tasks, recall, skip)
            async for done in run_units(dispatch.backlog, site, bound):
                await commits.ready()
                await writer.room()
                progress.add_unit(done.units, first_units + dispatch.later_units)
                dispatch.deliver(done)
    writer.add("stops", stops_table(plans, site.policy_name))
    return progress.tally.failed


def admission(recipe: Recipe, policy: str, problems: int) -> Admission:
    """What a policy's replicas can hold, and how much of it a task carries."""
    [settings] = [each for each in recipe.policies if each.name == policy]
    each = sum(config.n for config in recipe.search_configs(policy))
    solutions = problems * (each + routed_solutions(recipe, policy))
    work = recipe.work
    return admission_of(
        solutions,
        replicas=settings.replicas,
        max_batch=settings.max_batch,
        solutions_per_unit=work.solutions_per_unit,
        tasks=work.units_in_flight,
        speculation=work.speculation,
    )


async def _split_gradable(
    loaded: list[Problem | BadProblem], graders: Graders
) -> tuple[list[Problem], list[BadProblem]]:
    """Problems that can be searched and graded, and the rows that cannot, with their reason."""
    good: list[Problem] = []
    bad: list[BadProblem] = []
    for row in loaded:
        if isinstance(row, BadProblem):
            bad.append(row)
        elif await graders.parses(row.reference_answer):
            good.append(row)
        else:
            reason = f"the reference answer {row.reference_answer!r} cannot be read as mathematics"
            bad.append(
                BadProblem(row.problem_id, row.text, row.reference_answer, row.metadata, reason)
            )
    for problem in bad:
        log.warning("problem %s is left out: %s", problem.problem_id, problem.error)
    return good, bad


def problems_table(good: list[Problem], bad: list[BadProblem]) -> pa.Table:
    """The `problems` table: rows that run have a null error."""
    problems: list[Problem | BadProblem] = [*good, *bad]
    errors: list[str | None] = [*([None] * len(good)), *(problem.error for problem in bad)]
    columns = {
        "problem_id": [problem.problem_id for problem in problems],
        "text": [problem.text for problem in problems],
        "reference_answer": [problem.reference_answer for problem in problems],
        "metadata": [problem.metadata for problem in problems],
        "error": errors,
    }
    return pa.table(columns, schema=PROBLEMS)


def _site(recipe: Recipe, spec: ModelSpec, policy: Deployed | None, prm: Deployed | None) -> Site:
    return Site(
        policy_name=spec.name,
        policy="policy",
        prm="prm" if prm else "",
        policy_parameters=policy.facts.parameters if policy else 0,
        prm_parameters=prm.facts.parameters if prm else 0,
        unit_timeout_s=recipe.work.unit_timeout_s,
        unit_attempts=recipe.work.unit_attempts,
        policy_keys=policy.keys if policy else ("",),
        prm_keys=prm.keys if prm else ("",),
    )


def _write_answers(folder: Storage, problems: list[Problem], recipe: Recipe) -> None:
    """Samples, votes and curves, from the tables alone."""
    ids = [problem.problem_id for problem in problems]
    parts = table_parts(folder, "solutions", SAMPLE_COLUMNS)
    write_parts(folder, "samples", samples_in_parts(parts, ids, recipe.max_entropy_lambda))
    parts = table_parts(folder, "solutions", SOLUTION_COLUMNS)
    answers = answers_in_parts(parts, ids, recipe.seed)
    routed = routed_answers(load_table(folder, "routes"))
    write_parts(folder, "answers", chain(answers, [routed]))
