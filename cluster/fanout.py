"""Work units as Ray tasks, spread over the machines, with a bound on how many are in flight.

Invariant: every unit that is admitted comes back exactly once, with its tables or with an
error row that says why; a unit that fails takes nothing else with it. Units whose task was lost
with its worker or machine, and units that failed, are run again: the seeds make them the same.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeAlias

import pyarrow as pa
import stamina

from actors.client import RemotePolicy, RemotePRM
from actors.garbage import uncollected
from actors.lines import CallsOf
from actors.spread import spread_policy, spread_prm
from cluster.admission import Admission, Bundle
from cluster.attempts import Attempts
from cluster.backlog import Backlog
from cluster.flight import Flight
from cluster.logs import about, about_units
from cluster.machines import Machines, this_machine
from cluster.routing import Balance, Keys, Route, address_of, with_others
from cluster.unit_tables import UnitTables
from cluster.worker_loop import run_in_worker_loop
from search.errors import ClusterError, first_cause, one_line
from search.growth import Growth
from search.partition import WorkUnit, run_unit
from search.rows import node_table, search_columns, solution_table, unit_costs
from search.schemas import NODES, SOLUTIONS, UNITS

# A task waits for replicas far more than it computes.
TASK_CPUS = 0.25
# As many as this machine starts at once; a large one has cores to start more when they are due.
WARM_WORKERS = min(4, os.cpu_count() or 1)
# Only the first tasks find workers that were started ahead. Workers for the others start when the
# first one is back, or after this time: until then they would take cores from the replicas.
FIRST_S = 2.0
# A task is lost with its worker or machine. On machines that may be taken away that is no fault of
# its units, but a unit that ends its worker each time must end too, and alone: after so many losses
# of a task with several units each of them starts in a task of its own.
STARTS_OF_A_TASK, STARTS_TOGETHER = 8, 2
LONGEST_WAIT_S = 10.0
# Replicas that came or went are taken note of after this time at the latest.
FOLLOW_S = 2.0

log = logging.getLogger("branchwise")

Grow: TypeAlias = "Callable[[WorkUnit], Awaitable[Growth]]"


@dataclass(frozen=True, slots=True)
class Site:
    """Where the units of one policy run: the applications to call, and what they cost.

    `prm` is empty when no search needs one. Keys: an affinity key for each replica.
    unit_attempts: how often a unit that fails is run in all. run: its id, for log lines.
    """

    policy_name: str
    policy: str
    prm: str
    policy_parameters: int
    prm_parameters: int
    unit_timeout_s: float
    policy_keys: tuple[str, ...] = ("",)
    prm_keys: tuple[str, ...] = ("",)
    unit_attempts: int = 1
    run: str = ""


async def run_units(
    units: Iterable[WorkUnit] | Backlog,
    site: Site,
    admission: Admission,
    keys_now: Callable[[], Keys] | None = None,
    flight: Flight | None = None,
) -> AsyncIterator[UnitTables]:
    """Runs the units, as many at once as are admitted, and yields each as it comes back.

    With a backlog it goes on until that is closed and empty. keys_now: asked for the affinity keys
    of the replicas that are ready, where they come and go; else those of the site stay. flight:
    shows what is under way.
    """
    backlog = units if isinstance(units, Backlog) else Backlog(units)
    attempts = Attempts(site.unit_attempts, backlog)
    fanout, bundle = _Fanout(site, admission, keys_now), backlog.take(admission.per_task)
    if flight is not None:
        flight.follow(fanout.running, attempts, fanout.machines, lambda: fanout.admission.solutions)
    try:
        while True:
            fanout.follow()
            while bundle and fanout.admits(bundle):
                fanout.start(bundle)
                bundle = backlog.take(admission.per_task)
            if not fanout.running and backlog.is_over and not attempts.waiting:
                return
            for tables in await fanout.finished(backlog):
                if not (tables.failed and attempts.tries_again(tables)):
                    yield tables.after(attempts.before(tables.unit))
            bundle = bundle or backlog.take(admission.per_task)
    finally:
        fanout.cancel()


class _Fanout:
    """The tasks under way, and the balance of their work over the replicas."""

    def __init__(
        self, site: Site, admission: Admission, keys_now: Callable[[], Keys] | None = None
    ) -> None:
        self._site, self.admission, self.machines = site, admission, Machines()
        self._keys_now = keys_now or (lambda: (site.policy_keys, site.prm_keys))
        self._policy = Balance(site.policy_keys, admission.batch)
        self._prm = Balance(site.prm_keys, admission.batch)
        self.running: dict[asyncio.Task[list[UnitTables]], Bundle] = {}
        self._first_until_s = time.monotonic() + FIRST_S

    def follow(self) -> None:
        """Takes note of replicas that came or left: work goes to those that are ready."""
        policy, prm = self._keys_now()
        if (policy, prm) == (self._site.policy_keys, self._site.prm_keys):
            return
        self._site = replace(self._site, policy_keys=policy, prm_keys=prm)
        self.admission = self.admission.of(len(policy))
        self._policy.follow(policy, self.admission.batch)
        self._prm.follow(prm, self.admission.batch)

    def admits(self, bundle: Bundle) -> bool:
        """Whether one more may start."""
        is_first = time.monotonic() < self._first_until_s
        admission = self.admission.first if is_first else self.admission
        return admission.admits(self.running.values(), bundle)

    def start(self, bundle: Bundle) -> None:
        """Starts a task."""
        bundle = self.admission.started(self.running.values(), bundle)
        self.running[asyncio.create_task(self._outcome(bundle))] = bundle

    async def finished(self, backlog: Backlog) -> list[UnitTables]:
        """Waits for a task, new units or a while; returns what tasks that ended have brought."""
        news = asyncio.create_task(backlog.news())
        try:
            await asyncio.wait(
                {*self.running, news}, timeout=FOLLOW_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()
        done = [task for task in self.running if task.done()]
        if done:
            self._first_until_s = 0.0
        for task in done:
            del self.running[task]
        return [tables for task in done for tables in task.result()]

    def cancel(self) -> None:
        for task in self.running:
            task.cancel()

    async def _outcome(self, bundle: Bundle) -> list[UnitTables]:
        solutions = bundle.solutions
        route = Route(self._policy.take(solutions), self._prm.take(solutions))
        try:
            return await _remote_outcome(bundle, self._site, route, self.machines)
        finally:
            self._policy.give_back(route.policy, solutions)
            self._prm.give_back(route.prm, solutions)


async def _remote_outcome(
    bundle: Bundle, site: Site, route: Route, machines: Machines
) -> list[UnitTables]:
    """The units' tables; a task that Ray could not finish becomes error rows here."""
    from ray.exceptions import RayError

    has_several = len(bundle.units) > 1
    most = STARTS_TOGETHER if has_several else STARTS_OF_A_TASK
    starts = stamina.retry_context(_was_lost, attempts=most, timeout=None, wait_max=LONGEST_WAIT_S)
    try:
        async for start in starts:
            with start:
                tables = await _asked(bundle, site, route, machines)
    except RayError as error:
        if has_several and _was_lost(error):
            alone = await _each_alone(bundle, site, route, machines)
            return [each.after(start.num) for each in alone]
        lost = ClusterError(f"the task was lost: {_cause(error)}")
        tables = [failed_unit(unit, site, lost, 0.0) for unit in bundle.units]
    return [each.after(start.num - 1) for each in tables]


async def _each_alone(
    bundle: Bundle, site: Site, route: Route, machines: Machines
) -> list[UnitTables]:
    """The same by a task for each unit: one that ends its worker takes no other with it."""
    alone = [Bundle((unit,), slots=bundle.slots_of(unit)) for unit in bundle.units]
    async with asyncio.TaskGroup() as tasks:
        outcomes = [tasks.create_task(_remote_outcome(one, site, route, machines)) for one in alone]
    return [tables for outcome in outcomes for tables in outcome.result()]


async def _asked(bundle: Bundle, site: Site, route: Route, machines: Machines) -> list[UnitTables]:
    """What a task on some machine answers."""
    from ray.exceptions import RayError

    start = partial(_remote(work_units_task).remote, bundle, site, route)
    try:
        return await machines.answer(start)  # type: ignore[no-any-return]
    except RayError as error:
        machines.tasks_lost += 1
        line = "a task of %d work units was lost: %s"
        log.warning(line, len(bundle.units), one_line(error), extra=about_units(*bundle.units))
        raise


def _was_lost(error: Exception) -> bool:
    """Not what the task itself raised, nor what no machine can ever run."""
    from ray.exceptions import RayError, RayTaskError, TaskUnschedulableError

    for_good = RayTaskError | TaskUnschedulableError
    return isinstance(error, RayError) and not isinstance(error, for_good)


@lru_cache(maxsize=2)
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    # Ray's own retries would be as good, but neither counted nor told.
    spread = ray.remote(num_cpus=TASK_CPUS, max_retries=0, scheduling_strategy="SPREAD")
    return spread(function)


def warm_up(admission: Admission) -> None:
    """Starts the first tasks' workers now, while models load: each needs a second of a core."""
    for _ in range(min(WARM_WORKERS, admission.tasks_at_once)):
        _remote(_get_ready).remote()


def _get_ready() -> None:
    """What tasks need is imported, and the worker's loop runs."""
    run_in_worker_loop(asyncio.sleep(0))


def work_units_task(bundle: Bundle, site: Site, route: Route) -> Iterator[str | list[UnitTables]]:
    """What runs on a worker: it says where, then the searches of a bundle's units, side by side."""
    yield this_machine()
    yield run_in_worker_loop(_run_bundle(bundle, site, route))


async def _run_bundle(bundle: Bundle, site: Site, route: Route) -> list[UnitTables]:
    gives_up = bundle.slots > 0
    policies = [
        RemotePolicy(first, gives_up, others)
        for first, *others in _replicas(site.policy, route.policy, site.policy_keys)
    ]
    prms = [
        RemotePRM(first, others)
        for first, *others in _replicas(site.prm, route.prm, site.prm_keys)
        if site.prm
    ]
    policy, prm = spread_policy(policies), spread_prm(prms) if prms else None

    def grow(unit: WorkUnit) -> Awaitable[Growth]:
        return run_unit(unit, policy, prm, bundle.slots_of(unit))

    with about(run=site.run, policy=site.policy_name):
        async with asyncio.TaskGroup() as tasks:
            units = [tasks.create_task(_run_unit(unit, site, grow)) for unit in bundle.units]
    return [unit.result() for unit in units]


async def _run_unit(unit: WorkUnit, site: Site, grow: Grow) -> UnitTables:
    """One search over one unit. The one broad `except` stands here."""
    started = time.perf_counter()
    try:
        return await _search(unit, site, grow, started)
    except Exception as error:
        return failed_unit(unit, site, _cause(error), time.perf_counter() - started)


async def _search(unit: WorkUnit, site: Site, grow: Grow, started: float) -> UnitTables:
    async with asyncio.timeout(site.unit_timeout_s):
        growth = await grow(unit)
    costs = unit_costs(growth, site.policy_parameters, site.prm_parameters)
    return UnitTables(
        unit,
        node_table(unit, site.policy_name, growth.tree),
        solution_table(unit, site.policy_name, growth),
        _unit_row(unit, site, time.perf_counter() - started, costs | {"status": "done"}),
    )


def _replicas(
    application: str, keys: Sequence[str], of_replicas: Sequence[str]
) -> Iterator[list[CallsOf]]:
    """The replica of each key; then others to go on with, and at last whichever Serve knows of."""
    for key, others in with_others(keys, of_replicas):
        known = filter(None, (key, *others))
        yield [*map(replica_at, known), replica_of(application, key)]


def replica_at(key: str) -> CallsOf:
    """Calls to the replica with this affinity key."""

    async def find() -> str:
        return key

    return CallsOf(find)


def replica_of(application: str, session: str) -> CallsOf:
    """Calls to the replica that Serve finds for a session, asked when it is needed."""

    async def find() -> str:
        return await address_of(_handle(application), session)

    return CallsOf(find)


@lru_cache(maxsize=8)
def _handle(application: str) -> Any:
    """Handles stay warm for the life of a worker: a new one costs 50 ms."""
    with uncollected():
        from ray import serve

    return serve.get_app_handle(application)


def failed_unit(unit: WorkUnit, site: Site, error: BaseException, seconds: float) -> UnitTables:
    """A unit without solutions and with its reason."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    row = _unit_row(unit, site, seconds, {"status": "error", "error": reason, "solutions": 0})
    return UnitTables(unit, NODES.empty_table(), SOLUTIONS.empty_table(), row)


def _unit_row(unit: WorkUnit, site: Site, seconds: float, columns: dict[str, Any]) -> pa.Table:
    row = search_columns(unit, site.policy_name) | {"seconds": seconds, **_place()} | columns
    return pa.Table.from_pylist([row], UNITS)


def _place() -> dict[str, Any]:
    """Which machine ran the unit."""
    import ray

    if not ray.is_initialized():
        return {"attempts": 1}
    context = ray.get_runtime_context()
    return {
        "attempts": 1,
        "node_ip": ray.util.get_node_ip_address(),
        "ray_node_id": context.get_node_id(),
    }


def _cause(error: BaseException) -> BaseException:
    """The error to report: out of its groups, and a time limit by its name in the recipe."""
    error = first_cause(error)
    if isinstance(error, TimeoutError) and not str(error):
        return TimeoutError("the work unit ran longer than work.unit_timeout_s")
    return error
