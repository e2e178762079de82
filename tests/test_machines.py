"""Tasks on lost machines: given up when Ray knows, and no other is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from ray.exceptions import NodeDiedError

from cluster.machines import LOOK_INTERVAL_S, Dead, Machines
from search.virtual_time import run_virtually

pytestmark = pytest.mark.unit


class Cluster:
    """Tasks that begin and end when told; machines that are dead when told."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.fails, self.looks = False, 0
        self.started: list[Task] = []
        self.cancelled: list[Any] = []
        self.machines = Machines(self._look, self.cancelled.append)

    async def _look(self) -> Dead:
        self.looks += 1
        if self.fails:
            raise NodeDiedError("the head does not answer")
        return frozenset(self.dead)

    def run(self) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.machines.answer(self._start))

    def _start(self) -> "Task":
        self.started.append(Task())
        return self.started[-1]


class Task:
    """As Ray's generator of references."""

    def __init__(self) -> None:
        self.replies: list[asyncio.Future[Any]] = [asyncio.Future(), asyncio.Future()]
        self._next = iter(self.replies)

    def __aiter__(self) -> AsyncIterator[Awaitable[Any]]:
        return self

    async def __anext__(self) -> Awaitable[Any]:
        return next(self._next)

    def begin(self, machine: str) -> None:
        self.replies[0].set_result(machine)

    def end(self, answer: object) -> None:
        self.replies[1].set_result(answer)


async def some_looks() -> None:
    await asyncio.sleep(3 * LOOK_INTERVAL_S)


def test_a_task_is_given_up_when_its_machine_is_lost() -> None:
    async def lose_one_of_two() -> list[Any]:
        cluster = Cluster()
        answers = [cluster.run(), cluster.run()]
        await asyncio.sleep(0)
        for task, machine in zip(cluster.started, ("a", "b"), strict=True):
            task.begin(machine)
        await some_looks()
        cluster.dead.add("b")
        await some_looks()
        cluster.started[0].end("done")
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert cluster.cancelled == [cluster.started[1]]
        assert len(cluster.started) == 2
        return results

    (done, lost), _ = run_virtually(lose_one_of_two())
    assert done == "done"
    assert isinstance(lost, NodeDiedError)
    assert str(lost) == "machine b was lost"


def test_a_task_that_had_not_begun_is_started_again() -> None:
    async def lose_before_the_beginning() -> Any:
        cluster = Cluster()
        answer = cluster.run()
        await some_looks()
        cluster.dead.add("b")
        await some_looks()
        first, second = cluster.started
        assert cluster.cancelled == [first]
        second.begin("a")
        second.end("done")
        return await answer

    assert run_virtually(lose_before_the_beginning())[0] == "done"


def test_machines_that_were_lost_before_take_nothing_with_them() -> None:
    async def begin_late() -> Any:
        cluster = Cluster()
        cluster.dead.add("b")
        answer = cluster.run()
        await some_looks()
        [task] = cluster.started
        task.begin("a")
        await some_looks()
        task.end("done")
        return await answer

    assert run_virtually(begin_late())[0] == "done"


def test_a_head_that_does_not_answer_is_asked_again() -> None:
    async def lose_after_a_silence() -> Any:
        cluster = Cluster()
        answer = cluster.run()
        await asyncio.sleep(0)
        cluster.started[0].begin("b")
        cluster.fails = True
        await some_looks()
        cluster.fails = False
        cluster.dead.add("b")
        return await answer

    with pytest.raises(NodeDiedError, match="machine b was lost"):
        run_virtually(lose_after_a_silence())


def test_what_a_task_raises_is_raised() -> None:
    async def fail() -> Any:
        cluster = Cluster()
        answer = cluster.run()
        await asyncio.sleep(0)
        cluster.started[0].begin("a")
        cluster.started[0].replies[1].set_exception(ValueError("no"))
        return await answer

    with pytest.raises(ValueError, match="no"):
        run_virtually(fail())


def test_a_task_that_nobody_waits_for_is_cancelled() -> None:
    async def leave() -> tuple[list[Any], list[Task]]:
        cluster = Cluster()
        answer = cluster.run()
        await some_looks()
        answer.cancel()
        await asyncio.wait([answer])
        assert answer.cancelled()
        return cluster.cancelled, cluster.started

    cancelled, started = run_virtually(leave())[0]
    assert cancelled == started


def test_nothing_looks_for_machines_when_no_task_is_left() -> None:
    async def scenario() -> int:
        cluster = Cluster()
        running = cluster.run()
        await asyncio.sleep(LOOK_INTERVAL_S / 2)
        [task] = cluster.started
        task.begin("a")
        task.end("answer")
        assert await running == "answer"
        looks = cluster.looks
        await some_looks()
        return cluster.looks - looks

    looks_later, _ = run_virtually(scenario())
    assert looks_later == 0
