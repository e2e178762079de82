"""Simulated engines in virtual time: what a batch takes, written out by hand."""

import asyncio
import statistics
import time

import pytest

from actors.engines import load_policy_engine
from actors.spec import ModelSpec
from search.config import Limits, SearchConfig
from search.errors import RecipeError
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import PolicyPath, Sampling
from search.rewards import Reduction
from search.scripted import SeededPolicy, SeededPRM
from search.simulated import EngineTiming, SimulatedEngine, SimulatedPolicy, SimulatedPRM
from search.token_ids import count_ids
from search.virtual_time import run_virtually

pytestmark = pytest.mark.unit

TIMING = EngineTiming(iteration_s=1.0, sequence_s=0.5, prompt_token_s=0.25, max_batch=2)


async def _finished(engine: SimulatedEngine, name: str, new_tokens: int, ends: dict) -> None:
    await engine.run(0, new_tokens)
    ends[name] = asyncio.get_running_loop().time()


def _run(lengths: dict[str, int], timing: EngineTiming = TIMING) -> dict[str, float]:
    async def work() -> dict[str, float]:
        engine, ends = SimulatedEngine(timing), {}
        async with asyncio.TaskGroup() as tasks:
            for name, length in lengths.items():
                tasks.create_task(_finished(engine, name, length, ends))
        return ends

    return run_virtually(work())[0]


def test_time_jumps_instead_of_passing() -> None:
    started = time.monotonic()
    result, seconds = run_virtually(asyncio.sleep(10_000.0, "woken"))
    assert (result, seconds) == ("woken", 10_000.0)
    assert time.monotonic() - started < 5_000.0


def test_a_deadlock_is_said() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing can wake it"):
        run_virtually(forever())


@pytest.mark.parametrize(
    ("late_s", "ends"), [(0.3, {"a": 8.3, "b": 11.3}), (5.0, {"a": 13.0, "b": 19.0})]
)
def test_an_engine_that_is_woken_late_has_gone_on_for_an_iteration_at_most(
    monkeypatch: pytest.MonkeyPatch, late_s: float, ends: dict[str, float]
) -> None:
    pass_until = SimulatedEngine._pass_until

    async def pass_until_late(engine: SimulatedEngine, end_s: float) -> None:
        await pass_until(engine, end_s + late_s)

    monkeypatch.setattr(SimulatedEngine, "_pass_until", pass_until_late)
    assert _run({"a": 4, "b": 6}) == pytest.approx(ends)


def test_a_sequence_alone_takes_its_iterations() -> None:
    assert _run({"a": 4}) == {"a": 4 * 1.5}


def test_two_sequences_share_iterations_until_one_ends() -> None:
    assert _run({"a": 2, "b": 5}) == {"a": 2 * 2.0, "b": 2 * 2.0 + 3 * 1.5}


def test_a_full_batch_makes_the_next_one_wait() -> None:
    ends = _run({"a": 2, "b": 3, "c": 1})
    assert ends == {"a": 4.0, "b": 6.0, "c": 6.0}


def test_who_comes_in_the_middle_of_an_iteration_joins_at_its_end() -> None:
    async def work() -> dict[str, float]:
        engine, ends = SimulatedEngine(TIMING), {}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_finished(engine, "a", 3, ends))
            await asyncio.sleep(2.0)  # in a's second iteration, from 1.5 to 3.0
            tasks.create_task(_finished(engine, "b", 1, ends))
        return ends

    assert run_virtually(work())[0] == {"b": 5.0, "a": 5.0}


def test_tokens_to_be_read_delay_the_batch_and_count_as_busy() -> None:
    async def work() -> SimulatedEngine:
        engine = SimulatedEngine(TIMING)
        await engine.run(prompt_tokens=8, new_tokens=1)
        return engine

    engine, seconds = run_virtually(work())
    assert seconds == 8 * 0.25 + 1.5
    assert engine.busy_s == seconds


def test_a_cancelled_sequence_leaves_the_batch() -> None:
    async def work() -> dict[str, float]:
        engine, ends = SimulatedEngine(TIMING), {}
        gone = asyncio.create_task(_finished(engine, "gone", 100, ends))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_finished(engine, "stays", 6, ends))
            await asyncio.sleep(0.5)
            gone.cancel()
        return ends

    ends = run_virtually(work())[0]
    assert list(ends) == ["stays"]
    assert ends["stays"] <= 6 * 2.0


def test_a_search_takes_the_time_of_its_longest_paths() -> None:
    """DVTS with one subtree: at each step the longest of M candidates, then its scores."""
    config = SearchConfig("dvts", 4, 4, 1, Reduction.LAST, 1, Limits())
    policy = SeededPolicy(step_tokens=50.0)
    timing = EngineTiming(iteration_s=0.5)
    simulated = SimulatedPolicy(policy, SimulatedEngine(timing))
    scored = SimulatedPRM(SeededPRM(), SimulatedEngine(timing))
    [unit] = partition(Problem("p", "1 + 1 =", "2"), config, 4)
    growth, seconds = run_virtually(run_unit(unit, simulated, scored))
    plain = asyncio.run(run_unit(unit, policy, SeededPRM()))
    assert growth.tree == plain.tree
    lengths = [growth.tree.step_tokens(node) for node in range(len(growth.tree))]
    steps = [max(lengths[place : place + 4]) for place in range(0, len(lengths), 4)]
    assert seconds == pytest.approx(sum(steps) * 0.5 + len(steps) * 0.5)


@pytest.mark.parametrize(("mean", "cv"), [(50.0, 0.6), (200.0, 1.0)])
def test_step_lengths_have_the_mean_and_spread_asked_for(mean: float, cv: float) -> None:
    policy = SeededPolicy(step_tokens=mean, step_cv=cv)
    path = PolicyPath("1 + 1 =", b"")
    expansion = asyncio.run(policy.expand(path, 4000, Sampling(), 10_000, 1))
    lengths = [count_ids(completion.token_ids) - 2 for completion in expansion.completions]
    assert statistics.mean(lengths) == pytest.approx(mean, rel=0.1)
    assert statistics.stdev(lengths) / mean == pytest.approx(cv, rel=0.15)


@pytest.mark.parametrize("option", [{"iteration_s": 0}, {"iteration_s": 1, "sequence_s": -1}])
def test_impossible_times_are_refused(option: dict) -> None:
    with pytest.raises(RecipeError, match="iteration_s must be more than 0"):
        load_policy_engine(ModelSpec("fake", "fake", "fake", "float64", options=option))
