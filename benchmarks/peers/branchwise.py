"""Branchwise itself: the engines of this process without Ray, and the whole path through Serve."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from benchmarks.peers.engines import Engines
from benchmarks.peers.measured import (
    Candidate,
    Found,
    MeteredPolicy,
    MeteredReplica,
    Task,
    candidates_of,
    side_by_side,
)
from cluster.fanout import Site, run_units
from cluster.unit_tables import UnitTables
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import PRMPath

UNIT_TIMEOUT_S = 3600.0


async def in_process(task: Task, engines: Engines) -> list[Found]:
    """All work units of all problems at once in this event loop."""
    policy = MeteredPolicy(engines.policy, task.meter)
    prm = MeteredReplica(engines.prm, task.meter)

    async def search(problem: Problem) -> list[Candidate]:
        units = partition(problem, task.config, engines.setting.solutions_per_unit)
        async with asyncio.TaskGroup() as tasks:
            grown = [tasks.create_task(run_unit(unit, policy, prm)) for unit in units]
        return [each for growth in grown for each in _candidates(growth.result())]

    return await side_by_side(task.problems, search)


def _candidates(growth: Growth) -> list[Candidate]:
    return candidates_of(growth, [solution.node for solution in growth.tree.solutions])


async def through_serve(task: Task, engines: Engines) -> list[Found]:
    """Driver, Ray tasks, Serve replicas and tables; as many units in flight as a run has."""
    setting = engines.setting
    site = Site("policy", "policy", "prm", 0, 0, UNIT_TIMEOUT_S)
    per_unit = setting.solutions_per_unit
    units = (unit for each in task.problems for unit in partition(each, task.config, per_unit))
    done: dict[str, list[tuple[float, UnitTables]]] = defaultdict(list)
    async for tables in run_units(units, site, setting.admission):
        done[tables.unit.problem.problem_id].append((time.perf_counter(), tables))
    for ended in done.values():
        _count(task, [tables for _, tables in ended])
    return [_found(problem, done[problem.problem_id]) for problem in task.problems]


def _count(task: Task, units: Sequence[UnitTables]) -> None:
    """The meters, from the tables: nothing of a unit passes through this process."""
    for tables in units:
        sampled = ("generated_policy_tokens", "wasted_policy_tokens")
        task.meter.policy_tokens += sum(tables.units[name][0].as_py() or 0 for name in sampled)
        task.meter.prm_tokens += tables.units["computed_prm_tokens"][0].as_py() or 0
        task.meter.scored += _scored_paths(tables, task.config.sampling.delimiter)


def _scored_paths(tables: UnitTables, delimiter: str) -> list[PRMPath]:
    """What the unit had scored, read off its nodes; a parent stands before its children."""
    steps: dict[tuple[int, str], tuple[str, ...]] = {}
    paths = []
    for node in sorted(tables.nodes.to_pylist(), key=lambda node: node["depth"]):
        before = steps.get((node["subtree"], node["parent_id"]), ())
        text = node["text"]
        path = steps[node["subtree"], node["node_id"]] = (*before, text.removesuffix(delimiter))
        if node["reward"] is not None:
            paths.append(PRMPath(tables.unit.problem.text, path, text.endswith(delimiter)))
    return paths


def _found(problem: Problem, ended: Sequence[tuple[float, UnitTables]]) -> Found:
    """Seconds from the start of the problem's first unit to the end of its last."""
    starts = [end - tables.units["seconds"][0].as_py() for end, tables in ended]
    seconds = max(end for end, _ in ended) - min(starts)
    errors = [tables.units["error"][0].as_py() for _, tables in ended if tables.failed]
    candidates = tuple(each for _, tables in ended for each in _rows(tables.solutions))
    return Found(problem.problem_id, seconds, () if errors else candidates, "; ".join(errors))


def _rows(solutions: pa.Table) -> list[Candidate]:
    rows = solutions.select(["text", "rewards"]).to_pylist()
    return [Candidate(row["text"], row["rewards"][-1] if row["rewards"] else 0.0) for row in rows]
