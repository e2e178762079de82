"""Units that failed, or whose task was lost, are run again; nothing is run for ever."""

import asyncio
from dataclasses import replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pytest
import stamina
from ray.exceptions import RayTaskError, TaskUnschedulableError, WorkerCrashedError

from cluster import attempts, fanout
from cluster.admission import Admission, Bundle, admission_of
from cluster.fanout import Site, failed_unit, run_units
from cluster.machines import Machines
from cluster.routing import Route
from cluster.unit_tables import UnitTables
from search.config import SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction
from search.rows import search_columns
from search.schemas import NODES, SOLUTIONS, UNITS

pytestmark = pytest.mark.unit

CONFIG = SearchConfig("best_of_n", 4, 1, 4, Reduction.LAST, 0)
ADMISSION = admission_of(12, replicas=1, max_batch=64, solutions_per_unit=4, speculation=False)


def site(unit_attempts: int) -> Site:
    return Site("p", "policy", "", 0, 0, 60.0, unit_attempts=unit_attempts)


def units(names: str) -> list[WorkUnit]:
    return [unit for name in names for unit in partition(Problem(name, "", ""), CONFIG, 4)]


def done_unit(unit: WorkUnit) -> UnitTables:
    row = search_columns(unit, "p") | {"status": "done", "attempts": 1, "seconds": 0.0}
    return UnitTables(
        unit, NODES.empty_table(), SOLUTIONS.empty_table(), pa.Table.from_pylist([row], UNITS)
    )


class Tasks:
    """Answers instead of Ray: problems fail as often as told, or the task is lost."""

    def __init__(self, failures: dict[str, int], lost: list[Exception] | None = None) -> None:
        self.left, self.lost = dict(failures), list(lost or [])
        self.bundles: list[list[str]] = []

    async def __call__(
        self, bundle: Bundle, site: Site, route: Route, machines: Machines
    ) -> list[UnitTables]:
        self.bundles.append([unit.problem.problem_id for unit in bundle.units])
        if self.lost:
            raise self.lost.pop(0)
        return [self._one(unit, site) for unit in bundle.units]

    def _one(self, unit: WorkUnit, site: Site) -> UnitTables:
        name = unit.problem.problem_id
        if self.left.get(name, 0):
            self.left[name] -= 1
            return failed_unit(unit, site, ValueError("not now"), 0.0)
        return done_unit(unit)


class Deadly(Tasks):
    """A task ends with its worker whenever problem b is in it."""

    async def __call__(
        self, bundle: Bundle, site: Site, route: Route, machines: Machines
    ) -> list[UnitTables]:
        answer = await super().__call__(bundle, site, route, machines)
        if "b" in self.bundles[-1]:
            raise WorkerCrashedError
        return answer


def rows(
    monkeypatch: pytest.MonkeyPatch,
    tasks: Tasks,
    unit_attempts: int = 3,
    admission: Admission = ADMISSION,
) -> list[dict[str, Any]]:
    """The rows of `units` of three problems, in the order in which they came."""
    monkeypatch.setattr(fanout, "_asked", tasks)
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.001)

    async def run() -> list[dict[str, Any]]:
        found = run_units(units("abc"), site(unit_attempts), admission)
        return [row async for each in found for row in each.units.to_pylist()]

    with stamina.set_testing(True, attempts=4, cap=True):
        return asyncio.run(run())


def test_a_unit_that_fails_is_run_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks({"b": 2})
    found = {row["problem_id"]: row for row in rows(monkeypatch, tasks)}
    assert [row["status"] for row in found.values()] == ["done"] * 3
    assert {name: row["attempts"] for name, row in found.items()} == {"a": 1, "b": 3, "c": 1}
    assert sorted(chain(*tasks.bundles)) == ["a", "b", "b", "b", "c"]


def test_others_do_not_wait_for_a_unit_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["problem_id"] for row in rows(monkeypatch, Tasks({"a": 1}))] == ["b", "c", "a"]


def test_a_unit_that_always_fails_is_an_error_row_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = Tasks({"b": 99})
    found = {row["problem_id"]: row for row in rows(monkeypatch, tasks)}
    assert (found["b"]["status"], found["b"]["attempts"]) == ("error", 3)
    assert found["b"]["error"] == "ValueError: not now"
    assert tasks.left["b"] == 96


def test_with_one_attempt_nothing_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks({"b": 1})
    found = {row["problem_id"]: row["status"] for row in rows(monkeypatch, tasks, 1)}
    assert found == {"a": "done", "b": "error", "c": "done"}
    assert sum(map(len, tasks.bundles)) == 3


def test_a_lost_task_is_started_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks({}, lost=[WorkerCrashedError()])
    found = rows(monkeypatch, tasks)
    assert {row["status"] for row in found} == {"done"}
    assert max(row["attempts"] for row in found) == 2
    assert tasks.bundles[0] in tasks.bundles[1:]


def test_a_task_that_is_always_lost_ends_as_error_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks({}, lost=[WorkerCrashedError() for _ in range(99)])
    found = rows(monkeypatch, tasks, 1)
    assert {row["status"] for row in found} == {"error"}
    assert all(row["error"].startswith("ClusterError: the task was lost") for row in found)
    assert {row["attempts"] for row in found} == {4}


def test_a_unit_that_ends_its_worker_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = Deadly({})
    found = rows(monkeypatch, tasks, 2, replace(ADMISSION, per_task=12))
    assert {row["problem_id"]: (row["status"], row["attempts"]) for row in found} == {
        "a": ("done", 3),
        "b": ("error", 10),  # twice with the others, then four times alone in each attempt
        "c": ("done", 3),
    }
    assert tasks.bundles[:2] == [["a", "b", "c"]] * 2
    assert sorted(tasks.bundles[2:]) == [["a"], *[["b"]] * 8, ["c"]]


@pytest.mark.parametrize(
    "error",
    [RayTaskError("work", "traceback", ValueError("wrong")), TaskUnschedulableError("no CPU")],
    ids=["its own error", "no machine"],
)
def test_what_would_fail_again_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tasks = Tasks({}, lost=[error])
    found = rows(monkeypatch, tasks, 1)
    assert [row["attempts"] for row in found if row["status"] == "error"] == [1]
    assert len(tasks.bundles) == len({tuple(each) for each in tasks.bundles})
