"""Retry lives in transport only: a lost replica costs the open items of a call, nothing else."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import stamina
from ray.exceptions import RayActorError

from actors.client import BatchingCaller
from actors.wire import Failure
from search.errors import EngineLostError, PolicyError

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
