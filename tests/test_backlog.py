"""The backlog: every unit once, what is under way first, and nobody waits for nothing."""

import asyncio
from collections.abc import Iterator

import pytest

from cluster.backlog import Backlog
from search.config import SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction

pytestmark = pytest.mark.unit

HANG_S = 20


def units(names: str, n: int = 4) -> list[WorkUnit]:
    config = SearchConfig("best_of_n", n, 1, n, Reduction.LAST, 0)
    return [unit for name in names for unit in partition(Problem(name, "", ""), config, n)]


def taken(backlog: Backlog, solutions: int) -> list[str]:
    bundle = backlog.take(solutions)
    return [unit.problem.problem_id for unit in bundle.units] if bundle else []


def test_units_come_in_order_as_many_as_fit() -> None:
    backlog = Backlog(units("abc"))
    assert taken(backlog, 8) == ["a", "b"]
    assert not backlog.is_over
    assert taken(backlog, 8) == ["c"]
    assert backlog.is_over
    assert taken(backlog, 8) == []


def test_only_the_last_bundle_says_that_it_is() -> None:
    backlog = Backlog(units("ab"), is_open=True)
    bundles = [backlog.take(4), backlog.take(4)]
    assert [bundle.is_last for bundle in bundles if bundle] == [False, False]
    backlog.add(units("c"))
    backlog.close()
    last = backlog.take(4)
    assert last is not None
    assert last.is_last


def test_what_is_added_goes_first_and_units_are_drawn_when_they_are_needed() -> None:
    drawn: list[str] = []

    def source() -> Iterator[WorkUnit]:
        for unit in units("abcd"):
            drawn.append(unit.problem.problem_id)
            yield unit

    backlog = Backlog(source(), is_open=True)
    assert taken(backlog, 4) == ["a"]
    assert drawn == ["a", "b"]  # one more, to see that it does not fit
    backlog.add(units("x"))
    assert [taken(backlog, 4) for _ in range(4)] == [["b"], ["x"], ["c"], ["d"]]
    assert not backlog.is_over


def test_who_waits_hears_of_units_and_of_the_end() -> None:
    async def run() -> None:
        backlog = Backlog(is_open=True)
        waiting = asyncio.create_task(backlog.news())
        await asyncio.sleep(0)
        assert not waiting.done()
        backlog.add(units("a"))
        await waiting
        assert taken(backlog, 4) == ["a"]
        waiting = asyncio.create_task(backlog.news())
        await asyncio.sleep(0)
        assert not waiting.done()
        backlog.close()
        await waiting
        assert backlog.is_over

    asyncio.run(asyncio.wait_for(run(), HANG_S))
