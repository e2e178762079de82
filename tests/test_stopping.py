"""Stopping: rules by hand, replay equals the run, saved solutions go round in order."""

import asyncio
import math
import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.grading import Graders
from jobs.plan_searches import search_plans
from jobs.recipe import parse_recipe
from jobs.saved_budget import SavedBudget, divided
from jobs.search_plans import StoppingSearch, WeightedSearch
from jobs.stopping import Stopping, StopRule, settled_after
from search.config import SearchConfig
from search.partition import WorkUnit
from search.problem import Problem
from search.rewards import Reduction
from search.schemas import SOLUTIONS
from search.votes import Vote

pytestmark = pytest.mark.unit

MARGIN = Stopping(StopRule.VOTE_MARGIN, 0.5, at_least=4, every=2, vote=Vote.MAJORITY)
POSTERIOR = Stopping(StopRule.POSTERIOR, 0.95, at_least=4, every=2, vote=Vote.MAJORITY)
PROBLEM = Problem("p", "1 + 1", "2")
NONE = -1


def holds(stopping: Stopping, classes: Sequence[int], scores: Sequence[float] = ()) -> bool:
    score = np.array(scores or [1.0] * len(classes), np.float64)
    return stopping.holds(np.array(classes, np.int64), score)


@pytest.mark.parametrize(
    ("classes", "settled"),
    [
        ([], False),
        ([NONE, NONE], False),
        ([1, 1, 1, 2], True),  # (3 - 1) / 4
        ([1, 1, 2, 3], False),  # (2 - 1) / 4
        ([1, 1, 1, 2, NONE], True),  # no answer, no vote
        ([1, 2], False),
    ],
)
def test_the_margin_is_the_lead_over_all_votes(classes: list[int], settled: bool) -> None:
    assert holds(MARGIN, classes) is settled


@pytest.mark.parametrize(
    ("first", "second", "settled"),
    # 1 - I_1/2(f + 1, s + 1): 31/32, 15/16, 1 - 29/256 for (5, 2), 1 - 5/128 ... by the binomial.
    [(4, 0, True), (3, 0, False), (5, 1, False), (6, 1, True), (5, 5, False)],
)
def test_the_posterior_is_that_of_adaptive_consistency(
    first: int, second: int, settled: bool
) -> None:
    assert holds(POSTERIOR, [1] * first + [2] * second) is settled


def test_a_weighted_rule_counts_scores() -> None:
    weighted = Stopping(StopRule.VOTE_MARGIN, 0.5, 1, 1, Vote.WEIGHTED)
    classes = [1, 1, 1, 2]
    assert holds(weighted, classes, [0.9, 0.9, 0.9, 0.1])
    assert not holds(weighted, classes, [0.1, 0.1, 0.1, 0.9])


@pytest.mark.parametrize(
    ("n", "group", "looks"),
    [(8, 1, [4, 6, 8]), (9, 1, [4, 6, 8, 9]), (16, 4, [1, 2, 3, 4]), (2, 1, [2])],
)
def test_looks_are_at_whole_groups_and_the_last_at_all(
    n: int, group: int, looks: list[int]
) -> None:
    assert list(MARGIN.looks(n, group)) == looks


class World:
    """Units answered from a list of answer classes by sample, as a cluster and graders would."""

    def __init__(self, classes: Sequence[int], lost: Sequence[int] = ()) -> None:
        """lost: samples whose units fail."""
        self.classes, self.lost, self.ran = classes, lost, 0

    async def run(self, units: Sequence[WorkUnit]) -> pa.Table:
        await asyncio.sleep(0)
        subtrees = [place for unit in units for place in range(unit.first, unit.stop)]
        assert subtrees == list(range(self.ran, self.ran + len(subtrees)))
        self.ran += len(subtrees)
        came_back = [place for place in subtrees if place not in self.lost]
        rows = [{"subtree": place, "rewards": [0.5]} for place in came_back]
        return pa.Table.from_pylist(rows, SOLUTIONS)

    async def judge(self, problem: Problem, solutions: pa.Table) -> pa.Table:
        classes = [self.classes[place] for place in solutions["subtree"].to_pylist()]
        place = SOLUTIONS.get_field_index("answer_class")
        return solutions.set_column(place, SOLUTIONS.field(place), pa.array(classes, pa.int32()))


def search_of(world: World, n: int, audit: float = 0.0) -> StoppingSearch:
    config = SearchConfig("best_of_n", n, 1, n, Reduction.LAST, 3)
    return StoppingSearch(config, 2, MARGIN, audit, 0, world.judge)


async def searched(search: StoppingSearch, world: World, problem: Problem = PROBLEM) -> pa.Table:
    found = await world.run(search.first_units(problem))
    return await search.finish(problem, found, world.run)


@given(st.lists(st.sampled_from([NONE, 1, 2, 3]), min_size=8, max_size=14), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_full_run_replayed_stops_where_the_run_did(classes: list[int], audited: bool) -> None:
    world, n = World(classes), len(classes)
    search = search_of(world, n, audit=float(audited))
    found = asyncio.run(searched(search, world))
    whole = np.arange(n, dtype=np.int64)
    labels = np.array(classes, np.int64)
    replayed = settled_after(MARGIN, whole, labels, np.ones(n), n, 1)
    [stop] = search.stops
    assert stop.decided_at == replayed
    assert stop.audited is audited
    assert found.num_rows == (n if audited or replayed is None else replayed)


@pytest.mark.parametrize("lost", [[], [0], [0, 1]])
def test_an_undecided_problem_gets_what_another_saved(lost: list[int]) -> None:
    worlds = {"a": World([1] * 16, lost), "b": World([1, 2] * 16)}

    async def judge(problem: Problem, solutions: pa.Table) -> pa.Table:
        return await worlds[problem.problem_id].judge(problem, solutions)

    async def run() -> list[int]:
        config = SearchConfig("best_of_n", 8, 1, 8, Reduction.LAST, 3)
        search = StoppingSearch(config, 2, MARGIN, 0.0, 6, judge)
        async with asyncio.TaskGroup() as tasks:
            both = [
                tasks.create_task(searched(search, world, Problem(name, "", "")))
                for name, world in worlds.items()
            ]
        assert {stop.problem_id: stop.solutions for stop in search.stops} == {"a": 4, "b": 8}
        return [each.result().num_rows for each in both]

    # The first stops at 4 of 8, whatever came back of them, so the second may have 4 more.
    assert asyncio.run(run()) == [4 - len(lost), 12]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=8), st.integers()
)
@settings(max_examples=60, deadline=None)
def test_who_gets_what_does_not_depend_on_who_is_first(
    problems: list[tuple[bool, int]], seed: int
) -> None:
    async def granted(order: Sequence[int]) -> list[int]:
        pool, got = SavedBudget(group=4), [0] * len(problems)

        async def take(place: int) -> None:
            settled, solutions = problems[place]
            if settled:
                pool.save(place, solutions)
            else:
                got[place] = await pool.grant(place, solutions)

        async with asyncio.TaskGroup() as tasks:
            for place in order:
                tasks.create_task(take(place))
        return [*got, pool.left]

    order = list(range(len(problems)))
    random.Random(seed).shuffle(order)
    in_order = asyncio.run(granted(range(len(problems))))
    assert asyncio.run(granted(order)) == in_order
    assert all(each % 4 == 0 for each in in_order[:-1])
    assert sum(in_order) == sum(solutions for settled, solutions in problems if settled)


@given(st.integers(0, 500), st.lists(st.floats(0, 10), min_size=1, max_size=9))
def test_a_budget_is_divided_to_the_last_group(whole: int, weights: list[float]) -> None:
    shares = divided(whole, weights)
    assert sum(shares) == whole
    assert min(shares) >= 0
    total = math.fsum(weights)
    if total > 0:
        exact = [whole * weight / total for weight in weights]
        assert all(abs(a - b) < 1.001 for a, b in zip(shares, exact, strict=True))


def test_a_weighted_search_spends_the_whole_budget_where_the_weight_is() -> None:
    worlds = {"a": World([1] * 40), "b": World([1, 2] * 20), "c": World([1, 1, 1, 2] * 10)}
    config = SearchConfig("best_of_n", 8, 1, 8, Reduction.LAST, 3)

    async def judge(problem: Problem, solutions: pa.Table) -> pa.Table:
        return await worlds[problem.problem_id].judge(problem, solutions)

    def weight(probe: pa.Table) -> float:
        assert probe.num_rows == 4
        return {1: 0.0, 2: 2.0}.get(len(set(probe["answer_class"].to_pylist())), 1.0)

    async def run(names: str) -> dict[str, int]:
        for world in worlds.values():
            world.ran = 0
        search = WeightedSearch(config, 2, 4, 3, judge, weight)
        units = {name: search.first_units(Problem(name, "", "")) for name in "abc"}

        async def one(name: str) -> int:
            world = worlds[name]
            found = await world.run(units[name])
            return (await search.finish(Problem(name, "", ""), found, world.run)).num_rows

        async with asyncio.TaskGroup() as tasks:
            found = {name: tasks.create_task(one(name)) for name in names}
        return {name: task.result() for name, task in sorted(found.items())}

    # 3 x 8 in all, 3 x 4 for the probes; a is sure and gets nothing more, b and c the same.
    assert asyncio.run(run("abc")) == {"a": 4, "b": 10, "c": 10}
    assert asyncio.run(run("cba")) == {"a": 4, "b": 10, "c": 10}


@pytest.mark.parametrize("success", ["agreement", "graded"])
def test_a_probe_that_failed_weighs_as_one_that_is_never_solved(success: str) -> None:
    allocation = {"rule": "max_entropy", "probe": 4, "success": success}
    recipe = parse_recipe(
        {
            "name": "divided",
            "data": {"source": "reasoning_gym:chain_sum", "size": 1},
            "policies": [{"name": "small", "model": "fake", "engine": "fake"}],
            "searches": [{"strategy": "majority", "n": 8, "allocation": allocation}],
        }
    )
    [search] = search_plans(recipe, "small", 1, Graders(1, 60.0))
    assert isinstance(search, WeightedSearch)
    assert search.weight(SOLUTIONS.empty_table()) == pytest.approx(0.5)
