"""Solutions written in one request: the same trees as step by step, in a fraction of the calls."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.client import RemotePolicy, RemotePRM
from actors.policy import PolicyReplica
from actors.prm import PRMReplica
from actors.spec import ModelSpec
from actors.spread import SpreadPRM, spread_policy
from search.config import Limits, SearchConfig
from search.errors import PolicyError
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import PRM, Expansion, Policy, PolicyPath, PRMPath, Sampling, Score
from search.rewards import Reduction
from search.rows import node_table, solution_table
from search.scripted import SeededPolicy, SeededPRM
from search.seeds import node_seed
from search.whole_solutions import SolutionRequest, WritesSolutions, step_by_step

pytestmark = pytest.mark.unit

PROBLEM = Problem("p", "1 + 1 =", "2")
SHORT = Limits(max_steps=4, max_step_tokens=24, max_solution_tokens=70)


@dataclass
class Whole:
    """A policy that takes whole solutions as well, and counts what it is asked."""

    inner: Policy = field(default_factory=SeededPolicy)
    expanded: int = 0
    written: int = 0

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        self.expanded += 1
        return await self.inner.expand(path, n, sampling, max_tokens, seed, first)

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        self.written += 1
        await asyncio.sleep(0)
        return await step_by_step(self.inner, request)


def grown(policy: Policy, prm: PRM | None, strategy: str, n: int, limits: Limits) -> Growth:
    config = SearchConfig(strategy, n, 1, n, Reduction.LAST, 7, limits)
    [unit] = partition(PROBLEM, config, n)
    return asyncio.run(run_unit(unit, policy, prm))


def tables(growth: Growth) -> list[Any]:
    [unit] = partition(PROBLEM, growth.config, growth.config.n)
    return [node_table(unit, "x", growth.tree), solution_table(unit, "x", growth)]


@given(
    st.builds(SeededPolicy, p=st.floats(0, 1), mean_steps=st.integers(1, 6)),
    st.sampled_from([Limits(), SHORT, replace(SHORT, stop_at_boxed=False)]),
    st.sampled_from(["best_of_n", "majority"]),
    st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_one_request_a_solution_gives_the_tree_of_one_a_step(
    policy: SeededPolicy, limits: Limits, strategy: str, n: int
) -> None:
    whole = Whole(policy)
    steps = grown(policy, SeededPRM(), strategy, n, limits)
    found = grown(whole, SeededPRM(), strategy, n, limits)
    assert (whole.written, whole.expanded) == (n, 0)
    assert tables(found) == tables(steps)
    assert found.budget == steps.budget


def test_seeds_are_those_of_the_nodes() -> None:
    request = SolutionRequest("1", "p", "best_of_n", 3, 12, Sampling(), Limits(max_steps=3))
    ids = ["12:", "12:0", "12:0.0"]
    assert list(request.seeds()) == [node_seed(3, "p", "best_of_n", each) for each in ids]


@pytest.mark.parametrize("given_back", [[], "cut"])
def test_a_solution_that_does_not_end_is_an_error(given_back: Any) -> None:
    class Broken(Whole):
        async def write(self, request: SolutionRequest) -> list[Expansion]:
            steps = await super().write(request)
            return steps[:-1] if given_back == "cut" else given_back

    with pytest.raises(ExceptionGroup) as raised:
        grown(Broken(), None, "majority", 2, Limits())
    [error, *_] = raised.value.exceptions
    assert isinstance(error, PolicyError)
    assert "left a solution of problem 'p' at step" in str(error)


def test_a_step_without_text_is_an_error_wherever_it_is_written() -> None:
    class Empty(SeededPolicy):
        async def expand(self, *arguments: Any, **named: Any) -> Expansion:
            return replace(await super().expand(*arguments, **named), completions=())

    for policy in (Empty(), Whole(Empty())):
        with pytest.raises(ExceptionGroup) as raised:
            grown(policy, None, "majority", 1, Limits())
        assert "returned 0 steps instead of 1" in str(raised.value.exceptions[0])


class Method:
    """A Serve handle's streaming method in this process, which counts its calls."""

    def __init__(self, method: Any) -> None:
        self._method, self.calls = method, 0

    def remote(self, items: Sequence[Any]) -> AsyncIterator[Any]:
        self.calls += 1
        return self._method(items)  # type: ignore[no-any-return]


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas outside of Serve."""
    monkeypatch.setattr("actors.replica.replica_name", lambda: "")


@pytest.mark.usefixtures("nameless")
def test_a_replica_writes_solutions_in_one_call() -> None:
    fake = ModelSpec("fake", "fake", "fake", "float64")
    expand, score = Method(PolicyReplica(fake).expand_batch), Method(PRMReplica(fake).score_batch)

    async def search() -> Growth:
        config = SearchConfig("best_of_n", 8, 1, 8, Reduction.LAST, 7)
        [unit] = partition(PROBLEM, config, 8)
        # Giving up single requests is another kind of item: it must not be mixed up with these.
        return await run_unit(unit, RemotePolicy(expand, gives_up=True), RemotePRM(score))

    found = asyncio.run(search())
    assert tables(found) == tables(grown(SeededPolicy(), SeededPRM(), "best_of_n", 8, Limits()))
    assert expand.calls == 1
    # The first to finish is scored at once, what finishes in the next tick goes together.
    assert score.calls <= 2 < found.budget.generations


def test_several_replicas_share_the_solutions_of_a_unit() -> None:
    replicas = [Whole() for _ in range(3)]
    policy = spread_policy(replicas)
    assert isinstance(policy, WritesSolutions)
    found = grown(policy, None, "majority", 12, Limits())
    assert [replica.written for replica in replicas] == [4, 4, 4]
    assert tables(found) == tables(grown(SeededPolicy(), None, "majority", 12, Limits()))


def test_the_steps_of_a_solution_are_scored_on_one_replica() -> None:
    class Counted(SeededPRM):
        async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
            asked.append(len(paths))
            return await super().score(paths)

    asked: list[int] = []
    steps = tuple(f"step {place}" for place in range(16))
    paths = [PRMPath("1", steps[: end + 1]) for end in range(16)]
    found = asyncio.run(SpreadPRM([Counted(), Counted()]).score(paths))
    assert asked == [16]
    assert found == asyncio.run(SeededPRM().score(paths))
