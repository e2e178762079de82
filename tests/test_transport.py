"""Retry lives in transport only: a lost replica costs the open items of a call, nothing else."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import stamina
from ray.exceptions import RayActorError

from actors.client import BatchingCaller
from search.errors import PolicyError

pytestmark = pytest.mark.unit


class LosingReplicas:
    """Answers one item a call and is then lost, as often as told; after that answers all."""

    def __init__(self, losses: int) -> None:
        self._losses = losses
        self.calls: list[list[str]] = []

    def remote(self, items: Sequence[str]) -> AsyncIterator[list[tuple[int, str]]]:
        self.calls.append(list(items))
        return self._answer(items, lost=len(self.calls) <= self._losses)

    async def _answer(
        self, items: Sequence[str], lost: bool
    ) -> AsyncIterator[list[tuple[int, str]]]:
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
