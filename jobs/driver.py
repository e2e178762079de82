"""One run from recipe to tables: the whole way on one screen.

Invariant: every problem of the data ends in the tables, as graded solutions, as error rows of
its units, or as a bad row with its reason. The driver holds only what is in flight.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
from rich.console import Console

from actors.spec import ModelSpec
from cluster.accelerators import gpu_names
from cluster.admission import Admission, admission_of
from cluster.capacity import check_capacity, uses_gpus
from cluster.connect import connected
from cluster.deploy import Deployed, Ready, deployed
from cluster.fanout import Site, run_units, warm_up
from cluster.logs import about
from jobs.commits import Commits
from jobs.curves import SOLUTION_COLUMNS, answers_in_parts
from jobs.data import BadProblem, load_problems
from jobs.dispatch import Dispatch
from jobs.fit import check_fit
from jobs.grading import Graders
from jobs.models import policy_spec, prm_spec
from jobs.partitions import RunName
from jobs.plan_searches import routed_solutions, search_plans, stops_table
from jobs.recall import PolicyRecall, Recall
from jobs.results import load_table, table_parts, write_table
from jobs.routed_checks import check_overlap
from jobs.routes_rows import routes_rows
from jobs.routes_table import routed_answers
from jobs.run_folders import OpenRun, check_named, open_run
from jobs.run_rows import write_run_row
from jobs.run_tables import of_recipe, write_parts, write_tables
from jobs.run_watch import RunWatch
from jobs.run_writer import RunWriter
from jobs.samples import SAMPLE_COLUMNS, samples_in_parts
from jobs.settings import Recipe
from jobs.storage import Storage
from search.errors import StorageError
from search.problem import Problem
from search.schemas import PROBLEMS

# Problems that can be searched and graded, and the rows that cannot.
Split: TypeAlias = tuple[list[Problem], list[BadProblem]]
# A model by its role, on the cluster of this run.
Serving: TypeAlias = (
    "Callable[[str, ModelSpec | None], AbstractAsyncContextManager[asyncio.Task[Deployed | None]]]"
)

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
    name: RunName | None = None,
    also_if_running: bool = False,
) -> RunOutcome:
    """Runs a recipe, or what is missing of it, and returns its folder.

    into, fresh, name, also_if_running: see `jobs.run_folders.open_run`. Raises BranchwiseError if
    it cannot start.
    """
    if name is not None:
        check_named(recipe, name)
    check_fit(recipe)
    work = recipe.work
    with Graders(work.grading_processes, work.grading_timeout_s).starting() as graders:
        loaded = load_problems(recipe.data)
        check_overlap(recipe, [row for row in loaded if isinstance(row, Problem)])
        opened = open_run(recipe, into, fresh, name, also_if_running)
        with opened as run, about(run=run.record.run_id):
            return asyncio.run(_run(recipe, run, address, loaded, graders, console))


async def _run(
    recipe: Recipe,
    run: OpenRun,
    address: str | None,
    loaded: list[Problem | BadProblem],
    graders: Graders,
    console: Console,
) -> RunOutcome:
    recall, commits = Recall(run.log), lambda: run.log.commits
    with RunWatch(run.record.run_id, run.folder, console, commits) as watch:
        async with RunWriter(run.log, recipe.work.checkpoint_interval_s) as writer, graders:
            searched = await _search_all(recipe, address, loaded, writer, recall, graders, watch)
        watch.begins("writing the tables")
        run.lease.check()
        write_table(run.folder, "problems", problems_table(searched.problems, searched.bad))
        write_tables(run.log, run.folder, of_recipe(recipe))
        _write_answers(run.folder, searched.problems, recipe)
        ended = run.ended()
        write_run_row(run.folder, ended, recipe, searched.gpus)
        run.finish(ended)
    return RunOutcome(run.folder, searched.failed_units, len(searched.bad))


@dataclass(frozen=True, slots=True)
class _Searched:
    """What was searched, how much could not be, and the cluster's GPUs as Ray names them."""

    problems: list[Problem]
    failed_units: int
    bad: list[BadProblem]
    gpus: frozenset[str]


async def _search_all(
    recipe: Recipe,
    address: str | None,
    loaded: list[Problem | BadProblem],
    writer: RunWriter,
    recall: Recall,
    graders: Graders,
    watch: RunWatch,
) -> _Searched:
    """What takes long starts side by side: workers, then the PRM and a policy."""
    policies, prm = [policy_spec(policy) for policy in recipe.policies], prm_spec(recipe.prm)
    autoscales = recipe.cluster.autoscales
    with connected(address, packs_replicas=uses_gpus(policies, prm)) as is_shared:
        check_capacity(policies, prm, autoscales)
        timeout_s = recipe.cluster.machines_timeout_s if autoscales else None
        serving = partial(deployed, is_shared=is_shared, machines_timeout_s=timeout_s)
        warm_up(admission(recipe, policies[0].name, len(loaded)))
        splitting = asyncio.create_task(_split_gradable(loaded, graders))
        failed = await _climb(recipe, serving, splitting, writer, recall, graders, watch)
        gpus = gpu_names() if uses_gpus(policies, prm) else frozenset[str]()
    problems, bad = await splitting
    return _Searched(problems, failed, bad, gpus)


async def _climb(
    recipe: Recipe,
    serving: Serving,
    splitting: "asyncio.Task[Split]",
    writer: RunWriter,
    recall: Recall,
    graders: Graders,
    watch: RunWatch,
) -> int:
    """Every policy of the ladder in turn, with the PRM deployed once; how many units failed."""
    policies, failed = [policy_spec(policy) for policy in recipe.policies], 0
    async with serving("prm", prm_spec(recipe.prm)) as prm_replicas:
        for place, policy in enumerate(policies):
            watch.deploying([each.name for each in policies], place)
            async with serving("policy", policy) as policy_replicas:
                replicas = asyncio.gather(policy_replicas, prm_replicas, splitting)
                policy_model, prm_model, (problems, _) = await replicas
                ready, known = Ready(policy_model, prm_model), PolicyRecall(recall, policy.name)
                failed += await _search(
                    recipe, policy, ready, problems, writer, known, graders, watch
                )
    return failed


async def _search(
    recipe: Recipe,
    policy: ModelSpec,
    ready: Ready,
    problems: list[Problem],
    writer: RunWriter,
    recall: PolicyRecall,
    graders: Graders,
    watch: RunWatch,
) -> int:
    """One policy's searches over all problems: fan out, grade, commit."""
    commits = Commits(writer, graders, 2 * recipe.work.grading_processes)
    site = _site(recipe, watch.run_id, policy, ready)
    plans = search_plans(recipe, policy.name, len(problems), graders)
    bound = admission(recipe, policy.name, len(problems)).of(len(site.policy_keys))

    async def commit(problem: Problem, solutions: pa.Table) -> None:
        checked = await commits.commit(problem, solutions)
        writer.add("routes", routes_rows(plans, policy.name, problem, checked))
        search.display.finish_problem(checked)

    each = sum(len(plan.first_units(problem)) for problem in problems[:1] for plan in plans)
    first_units = max(1, each * len(problems) - recall.units)
    with watch.searching(site, len(problems), first_units) as search:
        async with writer.kept_if_stopped(), asyncio.TaskGroup() as tasks:
            skip = search.display.skip_problem
            dispatch = Dispatch(problems, plans, writer, commit, tasks, recall, skip)
            async for done in run_units(dispatch.backlog, site, bound, ready.keys, search.flight):
                await commits.ready()
                await writer.room()
                search.display.add_unit(done.units, first_units + dispatch.later_units)
                dispatch.deliver(done)
    writer.add("stops", stops_table(plans, policy.name))
    return search.display.tally.units_failed


def admission(recipe: Recipe, policy: str, problems: int) -> Admission:
    """What a policy's replicas can hold, and how much of it a task carries."""
    [settings] = [each for each in recipe.policies if each.name == policy]
    each = sum(config.n for config in recipe.search_configs(policy))
    solutions = problems * (each + routed_solutions(recipe, policy))
    work = recipe.work
    return admission_of(
        solutions,
        replicas=settings.most_replicas,
        max_batch=settings.max_batch,
        solutions_per_unit=work.solutions_per_unit,
        tasks=work.units_in_flight,
        speculation=work.speculation,
    )


async def _split_gradable(loaded: list[Problem | BadProblem], graders: Graders) -> Split:
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
        log.warning("left out: %s", problem.error, extra={"problem": problem.problem_id})
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


def _site(recipe: Recipe, run: str, spec: ModelSpec, ready: Ready) -> Site:
    policy, prm = ready.policy, ready.prm
    policy_keys, prm_keys = ready.keys()
    return Site(
        run=run,
        policy_name=spec.name,
        policy=policy.application if policy else "",
        prm=prm.application if prm else "",
        policy_parameters=policy.facts.parameters if policy else 0,
        prm_parameters=prm.facts.parameters if prm else 0,
        unit_timeout_s=recipe.work.unit_timeout_s,
        unit_attempts=recipe.work.unit_attempts,
        policy_keys=policy_keys,
        prm_keys=prm_keys,
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
