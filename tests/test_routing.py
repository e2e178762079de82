"""Work goes to the replica with the least of it, and tasks carry units up to a size."""

import asyncio
from typing import Any

import pytest

from actors.spec import ModelFacts
from cluster.fanout import Admission, Bundle, bundles
from cluster.routing import Balance, keys_of_replicas
from search.config import SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction

pytestmark = pytest.mark.unit


class HashedHandle:
    """A Serve handle whose keys are spread as unevenly as hashing may: most on one replica."""

    def __init__(self, replicas: int) -> None:
        self._replicas, self._key = replicas, ""

    def options(self, session_id: str) -> "HashedHandle":
        other = HashedHandle(self._replicas)
        other._key = session_id
        return other

    @property
    def facts(self) -> "HashedHandle":
        return self

    async def remote(self) -> ModelFacts:
        number = int(self._key)
        place = number // 5 % self._replicas if number % 5 == 0 else 0
        return ModelFacts(0, "none", f"replica-{place}")


def units(n: int, problems: int, strategy: str = "beam") -> list[WorkUnit]:
    config = SearchConfig(strategy, n, 4, n // 4, Reduction.LAST, 1)
    names = [Problem(f"p{place}", "1 + 1 =", "2") for place in range(problems)]
    return [unit for problem in names for unit in partition(problem, config, 64)]


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_every_replica_gets_a_key_of_its_own(replicas: int) -> None:
    keys = asyncio.run(keys_of_replicas(HashedHandle(replicas), replicas))
    assert len(set(keys)) == replicas
    answered = [asyncio.run(HashedHandle(replicas).options(key).remote()) for key in keys]
    assert len({facts.replica for facts in answered}) == replicas


def test_a_replica_that_no_key_reaches_is_done_without() -> None:
    assert len(asyncio.run(keys_of_replicas(HashedHandle(1), 3))) == 1


def test_work_goes_where_there_is_least() -> None:
    balance = Balance(("a", "b", "c"))
    assert [balance.take(64) for _ in range(3)] == ["a", "b", "c"]
    balance.give_back("b", 64)
    assert balance.take(16) == "b"
    assert balance.take(16) == "b"
    assert balance.take(64) == "b"
    assert balance.take(1) == "a"


def test_small_units_share_a_task_and_large_ones_have_their_own() -> None:
    small = [bundle.units for bundle in bundles(units(16, problems=6), 64)]
    assert [len(each) for each in small] == [4, 2]
    assert [unit for each in small for unit in each] == units(16, problems=6)
    assert [bundle.solutions for bundle in bundles(units(256, 1), 64)] == [256]
    assert [bundle.solutions for bundle in bundles(units(256, 1, "dvts"), 64)] == [64] * 4


@pytest.mark.parametrize(
    ("under_way", "bound", "admitted"),
    [([], {}, True), ([64], {}, True), ([64, 64], {}, False), ([64], {"tasks": 1}, False)],
)
def test_what_is_under_way_follows_the_batch(
    under_way: list[int], bound: dict[str, Any], admitted: bool
) -> None:
    [unit] = units(64, 1)
    running = [Bundle((unit,)) for _ in under_way]
    assert Admission(batch=64, per_task=64, **bound).admits(running, Bundle((unit,))) is admitted


def test_a_search_larger_than_the_batch_starts_alone() -> None:
    [unit] = units(512, 1)
    assert Admission(batch=64, per_task=64).admits([], Bundle((unit,)))


@pytest.mark.parametrize(("n", "room"), [(16, True), (64, True), (128, False)])
def test_only_what_leaves_room_may_speculate(n: int, room: bool) -> None:
    [unit] = units(n, 1)
    admission = Admission(batch=64, per_task=64)
    assert admission.leaves_room([Bundle((unit,))]) is room
    assert not Admission(64, 64, speculation=False).leaves_room([Bundle((unit,))])
