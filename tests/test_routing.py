"""Work goes to the replica with the least of it, and tasks carry units up to a size."""

import asyncio
from typing import Any

import pytest

from cluster.admission import Admission, Bundle, task_size
from cluster.backlog import bundles
from cluster.routing import Balance, keys_of_replicas, with_others
from search.config import SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction

pytestmark = pytest.mark.unit


class HashedHandle:
    """A Serve handle whose sessions are spread as unevenly as hashing may: most on one replica."""

    def __init__(self, replicas: int) -> None:
        self._replicas, self._session = replicas, ""

    def options(self, session_id: str) -> "HashedHandle":
        other = HashedHandle(self._replicas)
        other._session = session_id
        return other

    @property
    def address(self) -> "HashedHandle":
        return self

    async def remote(self) -> str:
        number = int(self._session)
        place = number // 5 % self._replicas if number % 5 == 0 else 0
        return f"ws://replica:secret@10.0.0.{place}:1234"


def units(n: int, problems: int, strategy: str = "beam") -> list[WorkUnit]:
    config = SearchConfig(strategy, n, 4, n // 4, Reduction.LAST, 1)
    names = [Problem(f"p{place}", "1 + 1 =", "2") for place in range(problems)]
    return [unit for problem in names for unit in partition(problem, config, 64)]


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_every_replica_gets_a_key_of_its_own(replicas: int) -> None:
    keys = asyncio.run(keys_of_replicas(HashedHandle(replicas), replicas))
    wanted = {f"ws://replica:secret@10.0.0.{place}:1234" for place in range(replicas)}
    assert set(keys) == wanted
    assert len(keys) == replicas


def test_a_replica_that_no_session_reaches_is_done_without() -> None:
    assert len(asyncio.run(keys_of_replicas(HashedHandle(1), 3))) == 1


def test_work_goes_where_there_is_least() -> None:
    balance = Balance(("a", "b", "c"), batch=192)
    assert [balance.take(64) for _ in range(3)] == [("a",), ("b",), ("c",)]
    balance.give_back(("b",), 64)
    assert balance.take(16) == ("b",)
    assert balance.take(16) == ("b",)
    assert balance.take(64) == ("b",)
    assert balance.take(1) == ("a",)


def test_what_one_replica_cannot_hold_is_spread_over_as_many_as_can() -> None:
    balance = Balance(("a", "b", "c"), batch=192)
    assert balance.take(65) == ("a", "b")
    assert balance.take(64) == ("c",)
    assert set(balance.take(512)) == {"a", "b", "c"}
    balance.give_back(("a", "b"), 65)
    assert balance.take(1) == ("a",)


def test_small_units_share_a_task_and_large_ones_have_their_own() -> None:
    small = [bundle.units for bundle in bundles(units(16, problems=6), 64)]
    assert [len(each) for each in small] == [4, 2]
    assert [unit for each in small for unit in each] == units(16, problems=6)
    assert [bundle.solutions for bundle in bundles(units(256, 1), 64)] == [256]
    assert [bundle.solutions for bundle in bundles(units(256, 1, "dvts"), 64)] == [64] * 4


@pytest.mark.parametrize(
    ("under_way", "bound", "admitted"),
    [([], {}, True), ([64] * 3, {}, True), ([64] * 4, {}, False), ([64], {"tasks": 1}, False)],
)
def test_what_is_under_way_follows_the_batch(
    under_way: list[int], bound: dict[str, Any], admitted: bool
) -> None:
    [unit] = units(64, 1)
    running = [Bundle((unit,)) for _ in under_way]
    assert Admission(batch=64, per_task=64, **bound).admits(running, Bundle((unit,))) is admitted


@pytest.mark.parametrize(("others", "admitted"), [(1, True), (2, False)])
def test_at_first_less_is_under_way(others: int, admitted: bool) -> None:
    [unit] = units(64, 1)
    running, first = [Bundle((unit,))] * others, Admission(batch=64, per_task=64).first
    assert first.admits(running, Bundle((unit,))) is admitted


@pytest.mark.parametrize(("others", "admitted"), [(0, True), (1, True), (2, False)])
def test_two_searches_larger_than_all_batches_are_under_way(others: int, admitted: bool) -> None:
    [unit] = units(512, 1)
    running = [Bundle((unit,))] * others
    assert Admission(batch=64, per_task=64).admits(running, Bundle((unit,))) is admitted


@pytest.mark.parametrize(
    ("others", "n", "slots"),
    [(0, 16, 16), (0, 64, 64), (0, 128, 64), (1, 32, 32), (1, 64, 0)],
)
def test_the_last_bundle_writes_ahead_in_what_stays_empty(others: int, n: int, slots: int) -> None:
    [last], [other] = units(n, 1), units(32, 1)
    admission, under_way = Admission(batch=64, per_task=64), [Bundle((other,))] * others
    assert admission.slots(under_way, Bundle((last,))) == slots
    assert not Admission(64, 64, speculation=False).slots(under_way, Bundle((last,)))


@pytest.mark.parametrize(
    ("solutions", "replicas", "size"),
    [(100_000, 4, 256), (512, 4, 64), (8192, 4, 128), (10, 1, 64), (100_000, 1, 256)],
)
def test_a_task_is_as_large_as_a_batch_if_there_is_enough(
    solutions: int, replicas: int, size: int
) -> None:
    assert task_size(solutions, replicas, max_batch=256, solutions_per_unit=64) == size


def test_units_of_a_bundle_share_its_slots() -> None:
    bundle = Bundle(tuple(units(16, problems=4)), slots=32)
    assert [bundle.slots_of(unit) for unit in bundle.units] == [8] * 4


def test_each_key_comes_with_keys_of_other_replicas() -> None:
    keys = ("a", "b", "c", "d")
    found = dict(with_others(("b", "d"), keys))
    assert found == {"b": ("c", "d"), "d": ("a", "b")}
    assert dict(with_others(("",), ("",))) == {"": ()}
