"""Retry lives in transport only: a lost replica costs the open items of a call, nothing else.

Lost is also one that says nothing any more: a machine whose network is cut refuses no call.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import stamina
from ray.exceptions import RayActorError

from actors.batching import answer_as_finished
from actors.client import BatchingCaller
from actors.wire import LONGEST_SILENCE_S, SIGN_OF_LIFE_S, TICK_S, Failure
from search.errors import EngineLostError, PolicyError
from search.virtual_time import run_virtually

pytestmark = pytest.mark.unit


class LosingReplicas:
    """Answers one item a call and is then lost, as often as told; after that answers all."""

    def __init__(self, losses: int) -> None:
        self._losses = losses
        self.calls: list[list[str]] = []

    def remote(self, items: Sequence[str]) -> AsyncIterator[list[tuple[int, str | Failure]]]:
        self.calls.append(list(items))
        return self._answer(items, lost=len(self.calls) <= self._losses)

    async def _answer(
        self, items: Sequence[str], lost: bool
    ) -> AsyncIterator[list[tuple[int, str | Failure]]]:
        for place, item in enumerate(items):
            yield [(place, item.upper())]
            if lost:
                raise RayActorError


async def ask_all(replicas: LosingReplicas, items: str) -> list[str]:
    caller: BatchingCaller[str, str] = BatchingCaller(replicas, PolicyError)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(caller.call(item)) for item in items]
    return [task.result() for task in asked]


def test_only_the_open_items_are_asked_again() -> None:
    replicas = LosingReplicas(losses=2)
    with stamina.set_testing(True, attempts=5):
        assert asyncio.run(ask_all(replicas, "abcd")) == list("ABCD")
    assert replicas.calls == [list("abcd"), list("bcd"), list("cd")]


def test_replicas_that_are_always_lost_are_a_policy_error() -> None:
    replicas = LosingReplicas(losses=9)
    with stamina.set_testing(True, attempts=3), pytest.raises(ExceptionGroup) as caught:
        asyncio.run(ask_all(replicas, "abcdef"))
    assert caught.group_contains(PolicyError, match="the replica failed")
    assert len(replicas.calls) == 3


def test_what_was_lost_goes_to_another_replica_and_stays_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    home, other = LosingReplicas(losses=9), LosingReplicas(losses=0)

    async def ask_twice() -> list[str]:
        caller: BatchingCaller[str, str] = BatchingCaller(home, PolicyError, others=[other])
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(caller.call(item)) for item in "abc"]
        return [*(task.result() for task in asked), await caller.call("d")]

    with stamina.set_testing(True, attempts=3):
        assert asyncio.run(ask_twice()) == list("ABCD")
    [line] = [record.getMessage() for record in caplog.records if record.name == "branchwise"]
    assert line.startswith("a policy replica was lost, its calls are sent again: ")
    assert home.calls == [list("abc")]
    assert other.calls == [list("bc"), ["d"]]


class StoppedReplica:
    """Takes calls and loses them all at once, when told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.dies = asyncio.Event()

    async def remote(self, items: Sequence[str]) -> AsyncIterator[list[tuple[int, str | Failure]]]:
        self.calls.append(list(items))
        await self.dies.wait()
        raise RayActorError
        yield []


def test_calls_that_are_lost_together_leave_their_replica_once() -> None:
    home, one, two = StoppedReplica(), LosingReplicas(losses=0), LosingReplicas(losses=0)

    async def ask_in_two_calls() -> list[str]:
        caller: BatchingCaller[str, str] = BatchingCaller(home, PolicyError, others=[one, two])
        first = asyncio.create_task(caller.call("a"))
        await asyncio.sleep(10 * TICK_S)
        second = asyncio.create_task(caller.call("b"))
        await asyncio.sleep(10 * TICK_S)
        home.dies.set()
        return [await first, await second]

    with stamina.set_testing(True, attempts=3):
        assert asyncio.run(ask_in_two_calls()) == list("AB")
    assert home.calls == [["a"], ["b"]]
    assert sorted(one.calls) == [["a"], ["b"]]
    assert two.calls == []


class DyingEngines(LosingReplicas):
    """The replica lives and says of what it still had that its engine died."""

    async def _answer(
        self, items: Sequence[str], lost: bool
    ) -> AsyncIterator[list[tuple[int, str | Failure]]]:
        dead = Failure(EngineLostError("the engine of 0.1m died"))
        for place, item in enumerate(items):
            yield [(place, dead if lost and place else item.upper())]


def test_what_a_dead_engine_left_is_asked_again() -> None:
    replicas = DyingEngines(losses=2)
    with stamina.set_testing(True, attempts=5):
        assert asyncio.run(ask_all(replicas, "abcd")) == list("ABCD")
    assert replicas.calls == [list("abcd"), list("bcd"), list("cd")]


def test_an_engine_that_always_dies_is_named() -> None:
    replicas = DyingEngines(losses=9)
    with stamina.set_testing(True, attempts=3), pytest.raises(ExceptionGroup) as caught:
        asyncio.run(ask_all(replicas, "abcdef"))
    assert caught.group_contains(EngineLostError, match="the engine of 0.1m died")


class SilentReplicas(LosingReplicas):
    """Answers one item a call and then says nothing more, as often as told; answers all after."""

    def __init__(self, losses: int) -> None:
        super().__init__(losses)
        self.cancelled = 0

    async def _answer(
        self, items: Sequence[str], lost: bool
    ) -> AsyncIterator[list[tuple[int, str | Failure]]]:
        for place, item in enumerate(items):
            yield [(place, item.upper())]
            if lost:
                await self._silence()

    async def _silence(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def test_what_a_silent_replica_was_asked_is_asked_again() -> None:
    replicas = SilentReplicas(losses=2)
    with stamina.set_testing(True, attempts=5):
        results, seconds = run_virtually(ask_all(replicas, "abcd"))
    assert results == list("ABCD")
    assert replicas.calls == [list("abcd"), list("bcd"), list("cd")]
    assert replicas.cancelled == 2
    assert 2 * LONGEST_SILENCE_S <= seconds < 3 * LONGEST_SILENCE_S


def test_a_replica_that_is_always_silent_is_named() -> None:
    with stamina.set_testing(True, attempts=3), pytest.raises(ExceptionGroup) as caught:
        run_virtually(ask_all(SilentReplicas(losses=9), "abcdef"))
    assert caught.group_contains(EngineLostError, match="a replica said nothing for 15 s")


class SlowReplicas(LosingReplicas):
    """Computes for minutes, as a large model may."""

    minutes = 5

    async def _answer(
        self, items: Sequence[str], lost: bool
    ) -> AsyncIterator[list[tuple[int, str | Failure]]]:
        async for reply in answer_as_finished(items, self._compute):
            yield reply

    async def _compute(self, item: str) -> str:
        await asyncio.sleep(60 * self.minutes)
        return item.upper()


def test_a_replica_that_takes_long_is_not_taken_for_lost() -> None:
    replicas = SlowReplicas(losses=0)
    results, seconds = run_virtually(ask_all(replicas, "ab"))
    assert results == list("AB")
    assert seconds == pytest.approx(60 * replicas.minutes, abs=1)
    assert replicas.calls == [list("ab")]


def test_signs_of_life_come_while_nothing_finishes() -> None:
    async def replies() -> list[list[tuple[int, str | Failure]]]:
        async def compute(item: str) -> str:
            await asyncio.sleep(2.5 * SIGN_OF_LIFE_S)
            return item

        return [reply async for reply in answer_as_finished(["a"], compute)]

    assert run_virtually(replies())[0] == [[], [], [(0, "a")]]
