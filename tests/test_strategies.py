"""Every strategy on a scripted tree that was worked out by hand.

In the trees a number after a step is its reward, `*` marks a kept step, `$` a step that ends
its solution by end of text, and `S` a solution.
"""

import asyncio
import math
from collections.abc import Mapping

import pytest

from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import Expansion, PolicyPath, Sampling, StopReason
from search.rewards import Reduction
from search.rows import solution_table
from search.scripted import Script, ScriptedPolicy, ScriptedPRM, decode_ids
from search.seeds import node_seed
from search.strategies import STRATEGIES, keep_count, subtree_count

PROBLEM = Problem("p1", "What is 6 x 7?", "42")
RUN_SEED = 11


def config_of(
    strategy: str,
    n: int,
    branching: int,
    reduction: Reduction = Reduction.LAST,
    limits: Limits | None = None,
) -> SearchConfig:
    keep = keep_count(strategy, n, branching)
    return SearchConfig(strategy, n, branching, keep, reduction, RUN_SEED, limits or Limits())


def search(config: SearchConfig, policy: ScriptedPolicy, prm: ScriptedPRM) -> Growth:
    [unit] = partition(PROBLEM, config, config.n)
    return asyncio.run(run_unit(unit, policy, prm))


def search_script(
    config: SearchConfig, script: Script, rewards: Mapping[str, float]
) -> tuple[Growth, ScriptedPolicy]:
    policy = ScriptedPolicy(script)
    return search(config, policy, ScriptedPRM(rewards)), policy


def solutions(growth: Growth) -> dict[str, StopReason]:
    tree = growth.tree
    ids = tree.node_ids()
    ended = {ids[solution.node]: solution.stop_reason for solution in tree.solutions}
    assert len(ended) == len(tree.solutions)
    return ended


def kept(growth: Growth) -> set[str]:
    return {place for node, place in enumerate(growth.tree.node_ids()) if growth.tree.kept[node]}


def rewards_by_id(growth: Growth) -> dict[str, float]:
    return dict(zip(growth.tree.node_ids(), growth.tree.rewards, strict=True))


# ---- independent samples

# sample 0: a .2 -> d$ .3 S     sample 1: b$ .4 S     sample 2: c .5 -> e .6 -> f$ .7 S
SAMPLES: Script = {
    (): ["a", "b<eos>", "c"],
    ("a",): ["d<eos>"],
    ("c",): ["e"],
    ("c", "e"): ["f<eos>"],
}
SAMPLE_REWARDS = {"a": 0.2, "b": 0.4, "c": 0.5, "d": 0.3, "e": 0.6, "f": 0.7}
SAMPLE_SOLUTIONS = {"0:0.0": StopReason.EOS, "1:0": StopReason.EOS, "2:0.0.0": StopReason.EOS}


@pytest.mark.unit
def test_best_of_n_writes_n_solutions_and_scores_every_step() -> None:
    growth, _ = search_script(config_of("best_of_n", 3, 1), SAMPLES, SAMPLE_REWARDS)
    assert solutions(growth) == SAMPLE_SOLUTIONS
    assert rewards_by_id(growth) == {
        "0:0": 0.2,
        "0:0.0": 0.3,
        "1:0": 0.4,
        "2:0": 0.5,
        "2:0.0": 0.6,
        "2:0.0.0": 0.7,
    }
    assert kept(growth) == set(growth.tree.node_ids())


@pytest.mark.unit
def test_majority_grows_the_same_tree_and_never_calls_the_prm() -> None:
    prm = ScriptedPRM({})
    growth = search(config_of("majority", 3, 1), ScriptedPolicy(SAMPLES), prm)
    assert solutions(growth) == SAMPLE_SOLUTIONS
    assert prm.calls == []
    assert all(math.isnan(reward) for reward in growth.tree.rewards)
    assert growth.budget.prm_tokens_computed == growth.budget.prm_tokens_minimal == 0


# ---- beam


@pytest.mark.unit
def test_beam_keeps_a_finished_solution_and_never_expands_it() -> None:
    # N=4 M=2 keep 2.  Round 1: a .5*   b$ .8* S   c .3   d$ .1
    # Round 2: b$ .8*   a.a1 .6*   a.a2 .4
    # Round 3: b$ .8*   a.a1.x$ .9* S   a.a1.y$ .7 S      all kept are finished: the end
    script = {
        (): ["a", "b<eos>", "c", "d<eos>"],
        ("a",): ["a1", "a2"],
        ("a", "a1"): ["x<eos>", "y<eos>"],
    }
    rewards = {"a": 0.5, "b": 0.8, "c": 0.3, "d": 0.1, "a1": 0.6, "a2": 0.4, "x": 0.9, "y": 0.7}
    growth, policy = search_script(config_of("beam", 4, 2), script, rewards)
    assert kept(growth) == {"0:0", "0:1", "0:0.0", "0:0.0.0"}
    assert solutions(growth) == dict.fromkeys(["0:1", "0:0.0.0", "0:0.0.1"], StopReason.EOS)
    assert [(path, n) for path, n, _, _ in policy.calls] == [
        ("", 4),
        ("a\n\n", 2),
        ("a\n\na1\n\n", 2),
    ]


@pytest.mark.unit
def test_beam_drops_a_finished_solution_that_is_outranked() -> None:
    # N=4 M=2 keep 2.  Round 1: a .5*   b$ .4*   c .3   d .2
    # Round 2: b$ .4    a.x .9*   a.y .8*      b is no candidate any more, so it never counts
    # Round 3: a.x.p$ .7* S   a.x.q$ .6 S   a.y.r$ .75* S   a.y.s .1
    script = {
        (): ["a", "b<eos>", "c", "d"],
        ("a",): ["x", "y"],
        ("a", "x"): ["p<eos>", "q<eos>"],
        ("a", "y"): ["r<eos>", "s"],
    }
    rewards = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.2, "x": 0.9, "y": 0.8}
    rewards |= {"p": 0.7, "q": 0.6, "r": 0.75, "s": 0.1}
    growth, _ = search_script(config_of("beam", 4, 2), script, rewards)
    assert kept(growth) == {"0:0", "0:1", "0:0.0", "0:0.1", "0:0.0.0", "0:0.1.0"}
    assert solutions(growth) == dict.fromkeys(["0:0.0.0", "0:0.0.1", "0:0.1.0"], StopReason.EOS)


@pytest.mark.unit
def test_beam_counts_every_finished_candidate_of_the_last_round() -> None:
    # N=4 M=2 keep 2.  Round 1: a$ .9* S   b$ .8* S   c$ .7 S   d .6      c is finished, d is not
    script = {(): ["a<eos>", "b<eos>", "c<eos>", "d"]}
    rewards = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    growth, policy = search_script(config_of("beam", 4, 2), script, rewards)
    assert kept(growth) == {"0:0", "0:1"}
    assert solutions(growth) == dict.fromkeys(["0:0", "0:1", "0:2"], StopReason.EOS)
    assert len(policy.calls) == 1


# N=6 M=2 keep 3.  Round 1: A .9*  B .4*  C .2*  D .1  E .1  F .1.  Round 2 (the last):
#        a1 .5   a2 .2   b1 .3   b2 .4   c1 .7   c2 .3
# last   .5*     .2      .3      .4*     .7*     .3
# min    .5*     .2      .3*     .4*     .2      .2
# mean   .7*     .55*    .35     .4      .45*    .25
# prod   .45*    .18*    .12     .16*    .14     .06
REDUCED: Script = {
    (): ["A", "B", "C", "D", "E", "F"],
    ("A",): ["a1", "a2"],
    ("B",): ["b1", "b2"],
    ("C",): ["c1", "c2"],
}
REDUCED_REWARDS = {"A": 0.9, "B": 0.4, "C": 0.2, "D": 0.1, "E": 0.1, "F": 0.1}
REDUCED_REWARDS |= {"a1": 0.5, "a2": 0.2, "b1": 0.3, "b2": 0.4, "c1": 0.7, "c2": 0.3}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (Reduction.LAST, {"0:0.0", "0:1.1", "0:2.0"}),
        (Reduction.MIN, {"0:0.0", "0:1.0", "0:1.1"}),
        (Reduction.MEAN, {"0:0.0", "0:0.1", "0:2.0"}),
        (Reduction.PROD, {"0:0.0", "0:0.1", "0:1.1"}),
    ],
)
def test_beam_keeps_the_best_by_its_reduction(reduction: Reduction, expected: set[str]) -> None:
    config = config_of("beam", 6, 2, reduction, Limits(max_steps=2))
    growth, _ = search_script(config, REDUCED, REDUCED_REWARDS)
    assert kept(growth) == {"0:0", "0:1", "0:2"} | expected


@pytest.mark.unit
def test_beam_at_the_depth_limit_counts_all_candidates() -> None:
    config = config_of("beam", 6, 2, limits=Limits(max_steps=2))
    growth, _ = search_script(config, REDUCED, REDUCED_REWARDS)
    ids = [f"0:{parent}.{child}" for parent in range(3) for child in range(2)]
    assert solutions(growth) == dict.fromkeys(ids, StopReason.MAX_STEPS)


@pytest.mark.unit
def test_beam_breaks_ties_in_favour_of_the_earlier_candidate() -> None:
    # N=4 M=2 keep 2.  Round 1: a$ .5* S   b$ .5* S   c$ .5 S   d$ .5 S
    script = {(): ["a<eos>", "b<eos>", "c<eos>", "d<eos>"]}
    growth, _ = search_script(config_of("beam", 4, 2), script, dict.fromkeys("abcd", 0.5))
    assert kept(growth) == {"0:0", "0:1"}
    assert len(solutions(growth)) == 4


# ---- dvts

# N=4 M=2: two subtrees, each keeps one.
# subtree 0: a .2   b .9*   -> b.x$ .8* S   b.y .5 S (unfinished, for all its box)
# subtree 1: c .4*  d$ .3   -> c.e .6   c.f .7*   -> c.f.g$ .3* S   c.f.h$ .2 S
SUBTREES: Script = {
    (): ["a", "b", "c", "d<eos>"],
    ("b",): ["x \\boxed{42}<eos>", "y \\boxed{41}"],
    ("c",): ["e", "f"],
    ("c", "f"): ["g \\boxed{7}<eos>", "h<eos>"],
}
SUBTREE_REWARDS = {"a": 0.2, "b": 0.9, "c": 0.4, "d": 0.3, "e": 0.6, "f": 0.7, "h": 0.2}
SUBTREE_REWARDS |= {"x \\boxed{42}": 0.8, "y \\boxed{41}": 0.5, "g \\boxed{7}": 0.3}
SUBTREE_SOLUTIONS = {
    "0:1.0": StopReason.EOS,
    "0:1.1": StopReason.UNFINISHED,
    "1:0.1.0": StopReason.EOS,
    "1:0.1.1": StopReason.EOS,
}
NO_BOX = Limits(stop_at_boxed=False)


@pytest.mark.unit
def test_dvts_keeps_the_best_of_m_in_each_subtree() -> None:
    config = config_of("dvts", 4, 2, limits=NO_BOX)
    growth, policy = search_script(config, SUBTREES, SUBTREE_REWARDS)
    assert kept(growth) == {"0:1", "0:1.0", "1:0", "1:0.1", "1:0.1.0"}
    assert solutions(growth) == SUBTREE_SOLUTIONS
    assert {n for _, n, _, _ in policy.calls} == {2}


@pytest.mark.unit
def test_dvts_marks_an_unfinished_candidate_and_gives_it_no_answer() -> None:
    config = config_of("dvts", 4, 2, limits=NO_BOX)
    growth, _ = search_script(config, SUBTREES, SUBTREE_REWARDS)
    [unit] = partition(PROBLEM, config, 4)
    rows = solution_table(unit, "scripted", growth).to_pylist()
    assert [(row["solution_id"], row["answer"]) for row in rows] == [
        ("0:1.0", "42"),
        ("0:1.1", ""),
        ("1:0.1.0", "7"),
        ("1:0.1.1", ""),
    ]
    assert [row["stop_reason"] for row in rows] == ["eos", "unfinished", "eos", "eos"]
    assert rows[1]["text"] == "b\n\ny \\boxed{41}\n\n"


@pytest.mark.unit
def test_dvts_compares_only_candidates_of_one_subtree() -> None:
    # subtree 0: a .1  b .2* -> p$ .3* S  q$ .2 S     subtree 1: c .7  d .8* -> r$ .95* S  s$ .9 S
    # The whole of subtree 0 scores below subtree 1 and goes on all the same.
    letters = {(): list("abcd"), ("b",): ["p<eos>", "q<eos>"], ("d",): ["r<eos>", "s<eos>"]}
    rewards = {"a": 0.1, "b": 0.2, "c": 0.7, "d": 0.8, "p": 0.3, "q": 0.2, "r": 0.95, "s": 0.9}
    growth, _ = search_script(config_of("dvts", 4, 2), letters, rewards)
    assert kept(growth) == {"0:1", "0:1.0", "1:1", "1:1.0"}
    assert len(solutions(growth)) == 4


class BlockedPolicy:
    """Answers calls below `blocked` only after a step that ends with `release` was written."""

    def __init__(self, script: Script, blocked: str, release: str) -> None:
        self._inner = ScriptedPolicy(script)
        self._blocked, self._release = blocked, release
        self._released = asyncio.Event()

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        expansion = await self._inner.expand(path, n, sampling, max_tokens, seed, first)
        if any(c.text == self._release for c in expansion.completions):
            self._released.set()
        if decode_ids(path.token_ids).startswith(self._blocked):
            await self._released.wait()
        return expansion


async def _run_blocked(config: SearchConfig, policy: BlockedPolicy, prm: ScriptedPRM) -> Growth:
    [unit] = partition(PROBLEM, config, config.n)
    async with asyncio.timeout(20):  # a search that waits would never end
        return await run_unit(unit, policy, prm)


@pytest.mark.unit
def test_dvts_subtrees_do_not_wait_for_one_another() -> None:
    config = config_of("dvts", 4, 2, limits=NO_BOX)
    policy = BlockedPolicy(SUBTREES, blocked="b\n\n", release="h")
    growth = asyncio.run(_run_blocked(config, policy, ScriptedPRM(SUBTREE_REWARDS)))
    assert solutions(growth) == SUBTREE_SOLUTIONS


@pytest.mark.unit
@pytest.mark.parametrize("strategy", ["best_of_n", "majority"])
def test_samples_do_not_wait_for_one_another(strategy: str) -> None:
    policy = BlockedPolicy(SAMPLES, blocked="a\n\n", release="f")
    prm = ScriptedPRM(SAMPLE_REWARDS)
    growth = asyncio.run(_run_blocked(config_of(strategy, 3, 1), policy, prm))
    assert solutions(growth) == SAMPLE_SOLUTIONS


# ---- widths and seeds


@pytest.mark.unit
@pytest.mark.parametrize(
    ("strategy", "keep", "subtrees"),
    [("majority", 16, 16), ("best_of_n", 16, 16), ("beam", 4, 1), ("dvts", 1, 4)],
)
def test_the_three_widths(strategy: str, keep: int, subtrees: int) -> None:
    assert keep_count(strategy, 16, 4) == keep
    assert subtree_count(strategy, 16, 4) == subtrees


@pytest.mark.unit
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_call_is_seeded_by_the_node_it_extends(strategy: str) -> None:
    script = {(): ["a<eos>", "b<eos>", "c", "d"], ("c",): ["e<eos>"] * 2, ("d",): ["f<eos>"] * 2}
    rewards = {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.8, "e": 0.5, "f": 0.6}
    growth, policy = search_script(config_of(strategy, 4, 2), script, rewards)
    tree = growth.tree
    parents = {
        (tree.text(node) if node >= 0 else "", tree.node_id(node, subtree))
        for node, subtree in zip(tree.parents, tree.subtrees, strict=True)
    }
    called = {(path, seed) for path, _, _, seed in policy.calls}
    assert called == {
        (text, node_seed(RUN_SEED, PROBLEM.problem_id, strategy, node_id))
        for text, node_id in parents
    }
    assert len(policy.calls) == len(parents)
