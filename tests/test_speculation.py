"""Speculation: the same tree as without, within its slots, and nothing left behind."""

import asyncio
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.client import RemotePolicy
from actors.policy import PolicyReplica
from actors.spec import ModelSpec
from actors.wire import GiveUp
from search.config import Limits, SearchConfig
from search.errors import PolicyError, first_cause
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import PRM, Expansion, Policy, PolicyPath, PRMPath, Sampling, Score
from search.rewards import Reduction
from search.rows import node_table, solution_table, unit_costs
from search.scripted import SeededPolicy, SeededPRM
from search.simulated import EngineTiming, SimulatedEngine, SimulatedPolicy, SimulatedPRM
from search.speculation import CERTAIN, Candidate, Widths, chances, wishes
from search.tree import ROOT
from search.virtual_time import run_virtually

pytestmark = pytest.mark.unit

PROBLEM = Problem("p", "1 + 1 =", "2")
TREE_COSTS = (
    "solutions",
    "generations",
    "generated_policy_tokens",
    "prefix_policy_tokens",
    "discarded_policy_tokens",
    "minimal_prm_tokens",
)


@dataclass(slots=True)
class Watched:
    """A policy and a PRM that take random times; keeps how many sequences were under way."""

    policy: Policy
    prm: PRM
    random: random.Random
    failing: frozenset[str] = frozenset()
    writing: int = 0
    most: int = 0
    begun: int = 0
    cancelled: int = 0
    failed: list[str] = field(default_factory=list)

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        self.writing += n
        self.begun += n
        self.most = max(self.most, self.writing)
        try:
            await asyncio.sleep(
                self.random.choice([0.0, 0.0, 1.0, 2.5, 30.0]) * self.random.random()
            )
            expansion = await self.policy.expand(path, n, sampling, max_tokens, seed, first)
        except asyncio.CancelledError:
            self.cancelled += n
            raise
        finally:
            self.writing -= n
        for completion in expansion.completions:
            if completion.text in self.failing:
                self.failed.append(completion.text)
                raise PolicyError(f"no good: {completion.text}")
        return expansion

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        await asyncio.sleep(self.random.random())
        return await self.prm.score(paths)


async def _alone(unit_run: "asyncio.Future[Growth]") -> tuple[Growth, int]:
    """A search, and the tasks it left behind."""
    growth = await unit_run
    return growth, len(asyncio.all_tasks()) - 1


def search(config: SearchConfig, policy: Policy, prm: PRM, slots: int = 0) -> Growth:
    [unit] = partition(PROBLEM, config, config.n)
    (growth, left), _ = run_virtually(_alone(run_unit(unit, policy, prm, slots)))
    assert left == 0
    return growth


def tables(config: SearchConfig, growth: Growth) -> tuple[object, ...]:
    [unit] = partition(PROBLEM, config, config.n)
    return node_table(unit, "x", growth.tree), solution_table(unit, "x", growth)


def columns(growth: Growth) -> tuple[object, ...]:
    """Everything in a tree; rewards as text, for one that is missing equals itself there."""
    return (replace(growth.tree, rewards=[]), list(map(str, growth.tree.rewards)))


@st.composite
def configs(draw: st.DrawFn) -> SearchConfig:
    branching = draw(st.integers(1, 4))
    n = branching * draw(st.integers(1, 6))
    limits = Limits(
        max_steps=draw(st.integers(1, 6)),
        max_step_tokens=draw(st.integers(3, 60)),
        max_solution_tokens=draw(st.integers(1, 200)),
        stop_at_boxed=draw(st.booleans()),
    )
    reduction = draw(st.sampled_from(Reduction))
    seed = draw(st.integers(0, 2**32))
    return SearchConfig("beam", n, branching, n // branching, reduction, seed, limits)


POLICIES = st.builds(
    SeededPolicy,
    p=st.sampled_from([0.2, 0.5, 0.9]),
    mean_steps=st.integers(1, 5),
    spread=st.integers(0, 3),
)
PRMS = st.builds(SeededPRM, auc=st.sampled_from([0.3, 0.7, 0.95]), seed=st.integers(0, 3))
SLOTS = st.sampled_from([1, 2, 3, 5, 8, 16, 64])


@settings(max_examples=150, deadline=None)
@given(configs(), POLICIES, PRMS, SLOTS, st.integers(0, 2**20))
def test_the_tree_is_the_one_without_speculation(
    config: SearchConfig, policy: SeededPolicy, prm: SeededPRM, slots: int, delays: int
) -> None:
    plain = search(config, policy, prm)
    watched = Watched(policy, prm, random.Random(delays))
    growth = search(config, watched, watched, slots)
    assert columns(growth) == columns(plain)
    assert tables(config, growth) == tables(config, plain)
    assert watched.most <= slots
    ours, theirs = unit_costs(growth, 1, 1), unit_costs(plain, 1, 1)
    assert [ours[name] for name in TREE_COSTS] == [theirs[name] for name in TREE_COSTS]


@settings(max_examples=60, deadline=None)
@given(configs(), POLICIES, PRMS, SLOTS, st.integers(0, 2**20))
def test_every_sequence_is_in_the_tree_or_wasted_or_aborted(
    config: SearchConfig, policy: SeededPolicy, prm: SeededPRM, slots: int, delays: int
) -> None:
    watched = Watched(policy, prm, random.Random(delays))
    growth = search(config, watched, watched, slots)
    budget = growth.budget
    assert budget.generations == len(growth.tree)
    assert watched.cancelled <= budget.aborted_generations  # some are aborted before they begin
    finished = watched.begun - watched.cancelled - budget.generations
    assert (finished == 0) == (budget.wasted_policy_tokens == 0)
    assert budget.wasted_policy_tokens <= budget.speculated_policy_tokens


@pytest.mark.parametrize("seed", range(6))
def test_an_error_counts_only_if_its_step_is_needed(seed: int) -> None:
    """Every step that the plain search does not know fails; then one that it does know."""
    config = SearchConfig("beam", 24, 4, 6, Reduction.LAST, seed, Limits())
    policy, prm = SeededPolicy(mean_steps=5), SeededPRM(auc=0.7)
    plain = search(config, policy, prm)
    needed = set(plain.tree.texts)

    class FailsBesides(frozenset):
        def __contains__(self, text: object) -> bool:
            return text not in needed

    watched = Watched(policy, prm, random.Random(seed), FailsBesides())
    assert columns(search(config, watched, watched, 24)) == columns(plain)
    assert watched.failed
    last = frozenset([plain.tree.texts[len(plain.tree) - 1]])
    failing = Watched(policy, prm, random.Random(seed), last)
    with pytest.raises((PolicyError, ExceptionGroup)) as caught:
        search(config, failing, failing, 24)
    assert isinstance(first_cause(caught.value), PolicyError)
    assert failing.writing == 0


def test_a_search_that_is_cancelled_leaves_no_task_behind() -> None:
    config = SearchConfig("beam", 16, 4, 4, Reduction.LAST, 1, Limits())
    watched = Watched(SeededPolicy(), SeededPRM(), random.Random(1))

    async def cancel_in_the_middle() -> int:
        [unit] = partition(PROBLEM, config, config.n)
        task = asyncio.create_task(run_unit(unit, watched, watched, 16))
        await asyncio.sleep(12.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks()) - 1

    left, _ = run_virtually(cancel_in_the_middle())
    assert (left, watched.writing) == (0, 0)
    assert watched.begun > config.n


def _simulated(slots: int, seed: int) -> tuple[Growth, float, SimulatedEngine]:
    config = SearchConfig("beam", 64, 4, 16, Reduction.LAST, seed, Limits(max_solution_tokens=4096))
    engine = SimulatedEngine(EngineTiming(iteration_s=0.02, max_batch=64))
    policy = SimulatedPolicy(SeededPolicy(p=0.8, mean_steps=6, step_tokens=48.0), engine)
    prm = SimulatedPRM(SeededPRM(), SimulatedEngine(EngineTiming(iteration_s=0.004, max_batch=64)))
    [unit] = partition(PROBLEM, config, config.n)
    growth, seconds = run_virtually(run_unit(unit, policy, prm, slots))
    assert not engine._running
    assert not engine._waiting
    return growth, seconds, engine


@pytest.mark.parametrize("seed", [1, 2])
def test_in_virtual_time_it_is_faster_and_wastes_little(seed: int) -> None:
    plain, lock_step_s, _ = _simulated(0, seed)
    growth, seconds, engine = _simulated(64, seed)
    assert columns(growth) == columns(plain)
    assert lock_step_s / seconds >= 1.5
    assert engine.tokens - growth.budget.policy_tokens <= 0.3 * engine.tokens
    assert growth.budget.policy_tokens + growth.budget.wasted_policy_tokens <= engine.tokens


# ---- the rule


def exact_chance(known: int, missing: int, keep: int, rank: int) -> float:
    """By counting: which of all ranks the known ones may have."""
    total = known + missing
    places = list(itertools.combinations(range(total), known))
    return sum(each[rank] < keep for each in places) / len(places)


@given(st.integers(1, 5), st.integers(0, 5), st.integers(1, 6))
def test_chances_are_those_found_by_counting(known: int, missing: int, keep: int) -> None:
    found = chances(known, missing, keep)
    wanted = [exact_chance(known, missing, keep, rank) for rank in range(known)]
    assert found == pytest.approx(tuple(wanted), abs=1e-12)
    assert all(
        (chance == CERTAIN) == (wish == 1.0) for chance, wish in zip(found, wanted, strict=True)
    )


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 600))
def test_chances_of_wide_rounds_are_chances(known: int, missing: int, keep: int) -> None:
    found = chances(known, missing, keep)
    assert len(found) == known
    assert all(0.0 <= chance <= 1.0 for chance in found)
    assert sorted(found, reverse=True) == list(found)
    assert all(math.isfinite(chance) for chance in found)


def test_the_missing_children_of_kept_steps_are_certain_and_come_first() -> None:
    widths = Widths(4, 2, 2)
    root = [Candidate(ROOT, 0.0, False)]
    written = {(ROOT, 0): Candidate(0, 0.9, False), (ROOT, 2): Candidate(1, 0.2, False)}
    wished = list(wishes(root, written, widths))
    assert [wish.place for wish in wished[:2]] == [(ROOT, 1), (ROOT, 3)]
    assert [wish.chance for wish in wished[:2]] == [CERTAIN, CERTAIN]
    # The best of two known out of four is among the two best of all in 5 of 6 orders.
    assert [wish.place for wish in wished[2:]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [wish.chance for wish in wished[2:]] == pytest.approx([5 / 6, 5 / 6, 1 / 6, 1 / 6])


def test_finished_steps_are_never_wished_and_a_finished_round_wishes_nothing() -> None:
    kept = [Candidate(3, 0.9, True), Candidate(4, 0.8, True)]
    assert list(wishes(kept, {}, Widths(4, 2, 2))) == []
    growing = [Candidate(3, 0.9, True), Candidate(4, 0.8, False)]
    assert [wish.place for wish in wishes(growing, {}, Widths(4, 2, 2))] == [(4, 0), (4, 1)]


# ---- on its way to the engine


def test_one_item_of_a_batch_is_given_up_in_the_engine_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.replica.replica_name", lambda: "here")  # without Serve
    options = {"iteration_s": 1.0, "step_tokens": 60.0, "step_cv": 0.1}
    spec = ModelSpec("fake", "fake", "fake", "float64", options=options)
    replica = PolicyReplica(spec)
    batches: list[list[object]] = []

    class Method:
        def remote(self, items: list[object]) -> object:
            batches.append(items)
            return replica.expand_batch(items)

    async def work() -> tuple[Expansion, int]:
        policy, path = RemotePolicy(Method(), gives_up=True), PolicyPath("p", b"")
        calls = [
            asyncio.create_task(policy.expand(path, 1, Sampling(), 200, 1, first))
            for first in range(2)
        ]
        await asyncio.sleep(20.0)
        calls[0].cancel()
        await asyncio.sleep(5.0)
        running = len(replica._engine._policy.engine._running)
        return await calls[1], running

    (expansion, running), _ = run_virtually(work())
    assert len(expansion.completions) == 1
    assert running == 1
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[1] == [GiveUp(batches[0][0].ticket)]
    assert not replica._may_be_given_up
