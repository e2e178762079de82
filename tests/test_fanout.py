"""How many tasks are under way: few until the first one is back, then what the replicas hold."""

import asyncio

import pytest
import stamina
from ray.exceptions import WorkerCrashedError
from test_attempts import done_unit, site, units

from cluster import fanout
from cluster.admission import Admission, Bundle
from cluster.fanout import Site, _remote_outcome, run_units
from cluster.machines import Machines
from cluster.routing import Route
from cluster.unit_tables import UnitTables

pytestmark = pytest.mark.unit

PROBLEMS = "abcdefghijklmnopqrst"
# Eight tasks fill the room, four what is admitted at first.
ADMISSION = Admission(batch=8, per_task=4)


class Tasks:
    """In the place of Ray: notes how many run whenever one starts; the first one ends first."""

    def __init__(self) -> None:
        self.running, self.ended = 0, 0
        self.at_once: dict[bool, list[int]] = {False: [], True: []}

    async def __call__(
        self, bundle: Bundle, site: Site, route: Route, machines: Machines
    ) -> list[UnitTables]:
        self.running += 1
        self.at_once[self.ended > 0].append(self.running)
        await asyncio.sleep(0.01 * self.running)
        self.running, self.ended = self.running - 1, self.ended + 1
        return [done_unit(unit) for unit in bundle.units]


def run_with(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_asked", tasks)

    async def run() -> None:
        found = run_units(units(PROBLEMS), site(1), ADMISSION)
        assert len([done async for done in found]) == len(PROBLEMS)

    asyncio.run(run())


def test_more_tasks_start_when_the_first_one_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks()
    run_with(tasks, monkeypatch)
    assert (max(tasks.at_once[False]), max(tasks.at_once[True])) == (4, 8)


def test_they_start_after_a_while_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks()
    monkeypatch.setattr(fanout, "FIRST_S", 0.0)
    run_with(tasks, monkeypatch)
    assert max(tasks.at_once[False]) == 8


def test_units_of_a_task_that_was_lost_twice_share_its_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots: list[int] = []

    async def asked(
        bundle: Bundle, site: Site, route: Route, machines: Machines
    ) -> list[UnitTables]:
        slots.append(bundle.slots)
        if len(bundle.units) > 1:
            raise WorkerCrashedError
        return [done_unit(unit) for unit in bundle.units]

    async def run() -> list[int]:
        bundle = Bundle(tuple(units("abcd")), slots=8)
        found = await _remote_outcome(bundle, site(1), Route(), Machines())
        return [each.attempts for each in found]

    monkeypatch.setattr(fanout, "_asked", asked)
    with stamina.set_testing(True, attempts=8, cap=True):
        assert asyncio.run(run()) == [3] * 4
    assert slots == [8, 8, 2, 2, 2, 2]
