"""Work units as Ray tasks, spread over the machines, with a bound on how many are in flight.

Invariant: every unit that is admitted comes back exactly once, with its tables or with an
error row that says why; a unit that fails takes nothing else with it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from actors.client import RemotePolicy, RemotePRM
from search.errors import ClusterError, first_cause
from search.partition import WorkUnit, run_unit
from search.rows import node_table, search_columns, solution_table, unit_costs
from search.schemas import NODES, SOLUTIONS, UNITS

TASK_CPUS = 1
# Ray starts a task again when its worker or machine is lost; the seeds make it the same task.
TASK_RETRIES = 3


@dataclass(frozen=True, slots=True)
class Site:
    """Where the units of one policy run: the applications to call, and what they cost.

    `prm` is empty when no search needs one.
    """

    policy_name: str
    policy: str
    prm: str
    policy_parameters: int
    prm_parameters: int
    unit_timeout_s: float


@dataclass(frozen=True, slots=True)
class UnitTables:
    """What a work unit leaves: nodes and solutions (none if it failed), and one `units` row."""

    unit: WorkUnit
    nodes: pa.Table
    solutions: pa.Table
    units: pa.Table

    @property
    def failed(self) -> bool:
        return bool(self.units["status"][0].as_py() == "error")


async def run_units(
    units: Iterable[WorkUnit], site: Site, in_flight: int
) -> AsyncIterator[UnitTables]:
    """Runs the units, at most `in_flight` at once, and yields each as it comes back."""
    task = _remote_task()
    waiting = iter(units)
    running: set[asyncio.Task[UnitTables]] = set()
    try:
        while True:
            while len(running) < in_flight and (unit := next(waiting, None)) is not None:
                running.add(asyncio.create_task(_outcome(task, unit, site)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for finished in done:
                yield finished.result()
    finally:
        for task_left in running:
            task_left.cancel()


async def _outcome(task: Any, unit: WorkUnit, site: Site) -> UnitTables:
    """A unit's tables; a task that Ray could not finish becomes an error row here."""
    import ray

    reference = task.remote(unit, site)
    try:
        return await reference  # type: ignore[no-any-return]
    except asyncio.CancelledError:
        ray.cancel(reference)
        raise
    except ray.exceptions.RayError as error:
        return failed_unit(unit, site, ClusterError(f"the task was lost: {_cause(error)}"), 0.0)


@lru_cache(maxsize=1)
def _remote_task() -> Any:
    import ray

    spread = ray.remote(num_cpus=TASK_CPUS, max_retries=TASK_RETRIES, scheduling_strategy="SPREAD")
    return spread(work_unit_task)


def work_unit_task(unit: WorkUnit, site: Site) -> UnitTables:
    """What runs on a worker: one search over one unit. The one broad `except` stands here."""
    started = time.perf_counter()
    try:
        return asyncio.run(_search(unit, site, started))
    except Exception as error:
        return failed_unit(unit, site, _cause(error), time.perf_counter() - started)


async def _search(unit: WorkUnit, site: Site, started: float) -> UnitTables:
    policy = RemotePolicy(_method(site.policy, "expand_batch", unit.unit_id))
    prm = RemotePRM(_method(site.prm, "score_batch", unit.unit_id)) if site.prm else None
    async with asyncio.timeout(site.unit_timeout_s):
        growth = await run_unit(unit, policy, prm)
    costs = unit_costs(growth, site.policy_parameters, site.prm_parameters)
    return UnitTables(
        unit,
        node_table(unit, site.policy_name, growth.tree),
        solution_table(unit, site.policy_name, growth),
        _unit_row(unit, site, time.perf_counter() - started, costs | {"status": "done"}),
    )


def _method(application: str, method: str, affinity: str) -> Any:
    """A streaming method of a deployment, bound to the replica of the affinity key."""
    handle = _handle(application).options(stream=True, session_id=affinity)
    return getattr(handle, method)


@lru_cache(maxsize=8)
def _handle(application: str) -> Any:
    """Handles stay warm for the life of a worker: a new one costs 50 ms."""
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
    """Which machine ran the unit. Attempts are the driver's; Ray's own restarts are not seen."""
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
