"""Candidates of several steps and lookahead, on scripted trees worked out by hand.

`>` marks greedy steps that are written for the PRM to read, and then forgotten.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_properties import (
    POLICIES,
    PRMS,
    WORDS,
    calm_and_jittered,
    configs,
    problem_of,
    search,
)
from test_strategies import PROBLEM, config_of, kept, rewards_by_id, search_script, solutions

from search.budget import discarded_tokens
from search.config import Compat, CompatOption, Limits, SearchConfig
from search.growth import Growth
from search.partition import partition, run_unit
from search.protocols import Expansion, PolicyPath, PRMPath, Sampling, StopReason
from search.rows import node_table, solution_table, unit_costs
from search.scripted import Script, ScriptedPolicy, ScriptedPRM, SeededPolicy, SeededPRM
from search.seeds import node_seed
from search.step_model import ModelledPRM, StepModel

pytestmark = pytest.mark.unit


def scored(growth: Growth) -> dict[str, float]:
    """Rewards by node id, of the nodes that have one."""
    return {place: reward for place, reward in rewards_by_id(growth).items() if reward == reward}


# ---- candidates of several steps

# beam, N=4 M=2 keep 2, g=2.
# Round 1: a.a1 .5*   b.b1$ .8* S   c$ .3 (ended early, scored there)   d.d1 .1
# Round 2: b.b1$ .8*   a.a1.p.p1$ .9* S   a.a1.q.q1$ .2 S      all kept are finished: the end
RUNS: Script = {
    (): ["a", "b", "c<eos>", "d"],
    ("a",): ["a1"],
    ("b",): ["b1<eos>"],
    ("d",): ["d1"],
    ("a", "a1"): ["p", "q"],
    ("a", "a1", "p"): ["p1<eos>"],
    ("a", "a1", "q"): ["q1<eos>"],
}
RUN_REWARDS = {"a1": 0.5, "b1": 0.8, "c": 0.3, "d1": 0.1, "p1": 0.9, "q1": 0.2}


def test_a_beam_of_runs_scores_every_second_step() -> None:
    config = replace(config_of("beam", 4, 2), score_every=2)
    growth, _ = search_script(config, RUNS, RUN_REWARDS)
    ended = dict.fromkeys(["0:1.0", "0:0.0.0.0", "0:0.0.1.0"], StopReason.EOS)
    assert solutions(growth) == ended
    # The steps between are kept with the candidates that they lead to.
    assert kept(growth) == {"0:0", "0:0.0", "0:1", "0:1.0", "0:0.0.0", "0:0.0.0.0"}
    assert scored(growth) == {
        "0:0.0": 0.5,
        "0:1.0": 0.8,
        "0:2": 0.3,
        "0:3.0": 0.1,
        "0:0.0.0.0": 0.9,
        "0:0.0.1.0": 0.2,
    }


def test_runs_are_scored_together_once() -> None:
    config, prm = replace(config_of("beam", 4, 2), score_every=2), ScriptedPRM(RUN_REWARDS)
    growth, _ = search_with(config, ScriptedPolicy(RUNS), prm)
    steps = [[path.steps for path in call] for call in prm.calls]
    assert steps == [
        [("a", "a1"), ("b", "b1"), ("c",), ("d", "d1")],
        [("a", "a1", "p", "p1"), ("a", "a1", "q", "q1")],
    ]
    assert [path.new_steps for call in prm.calls for path in call] == [2, 2, 1, 2, 2, 2]
    assert [path.unfinished for path in prm.calls[0]] == [True, False, False, True]
    # A perfect cache computes all steps of a run, so none is left out of the least.
    assert growth.budget.prm_tokens_minimal == len("aa1bb1cdd1pp1qq1")


def search_with(
    config: SearchConfig, policy: ScriptedPolicy, prm: ScriptedPRM
) -> tuple[Growth, ScriptedPolicy]:
    [unit] = partition(PROBLEM, config, config.n)
    return asyncio.run(run_unit(unit, policy, prm)), policy


# dvts, N=2 M=2, g=3: a.a1.a2 .4   b.b1.b2 .6* -> x$ .7* S   y.y1.y2 .1 S (unfinished)
SUBTREE: Script = {
    (): ["a", "b"],
    ("a",): ["a1"],
    ("a", "a1"): ["a2"],
    ("b",): ["b1"],
    ("b", "b1"): ["b2"],
    ("b", "b1", "b2"): ["x<eos>", "y"],
    ("b", "b1", "b2", "y"): ["y1"],
    ("b", "b1", "b2", "y", "y1"): ["y2"],
}


def test_dvts_keeps_the_best_run() -> None:
    config = replace(config_of("dvts", 2, 2), score_every=3)
    rewards = {"a2": 0.4, "b2": 0.6, "x": 0.7, "y2": 0.1}
    growth, policy = search_script(config, SUBTREE, rewards)
    assert solutions(growth) == {
        "0:1.0.0.0": StopReason.EOS,
        "0:1.0.0.1.0.0": StopReason.UNFINISHED,
    }
    assert kept(growth) == {"0:1", "0:1.0", "0:1.0.0", "0:1.0.0.0"}
    assert [n for _, n, _, _ in policy.calls] == [2, 1, 1, 1, 1, 2, 1, 1]
    assert growth.tree.token_ids.keys().isdisjoint(
        node for node, place in enumerate(growth.tree.node_ids()) if place.startswith("0:0")
    )


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
def test_runs_without_an_end_are_best_of_n(strategy: str) -> None:
    config = replace(config_of(strategy, 12, 4), score_every=40)
    growth = search(config, "p1", SeededPolicy(), SeededPRM())
    assert len(growth.tree.solutions) == 12
    assert all(growth.tree.ends_solution(solution.node) for solution in growth.tree.solutions)
    assert len(scored(growth)) == 12


def test_every_step_of_a_run_is_seeded_by_its_place() -> None:
    config = replace(config_of("dvts", 2, 2), score_every=3)
    _, policy = search_script(config, SUBTREE, {"a2": 0.4, "b2": 0.6, "x": 0.7, "y2": 0.1})
    seeds = {path: seed for path, _, _, seed in policy.calls}
    assert seeds["b\n\nb1\n\n"] == node_seed(config.run_seed, "p1", "dvts", "0:1.0")


@pytest.mark.parametrize(
    ("limits", "steps", "reason"),
    [
        (Limits(max_steps=2), 2, StopReason.MAX_STEPS),
        # A step of one letter and a delimiter has three tokens.
        (Limits(max_solution_tokens=5), 2, StopReason.MAX_TOKENS),
        (Limits(max_solution_tokens=3), 1, StopReason.MAX_TOKENS),
    ],
)
def test_limits_end_a_run_where_they_end_a_solution(
    limits: Limits, steps: int, reason: StopReason
) -> None:
    config = replace(config_of("dvts", 1, 1, limits=limits), score_every=4)
    script = {("a",) * depth: ["a"] for depth in range(4)}
    growth, _ = search_script(config, script, {"a": 0.5, "a\n": 0.5})
    assert list(solutions(growth).values()) == [reason]
    assert len(growth.tree) == steps
    assert len(scored(growth)) == 1


def test_an_empty_step_at_the_end_of_a_run_leaves_the_run_its_score() -> None:
    config = replace(config_of("dvts", 1, 1), score_every=2)
    prm = ScriptedPRM({"a": 0.5})
    growth, _ = search_with(config, ScriptedPolicy({(): ["a"], ("a",): [" <eos>"]}), prm)
    [[path]] = prm.calls
    assert (path.steps, path.new_steps, path.unfinished) == (("a",), 1, True)
    assert scored(growth) == {"0:0.0": 0.5}
    blank = replace(config, score_every=1)
    growth, _ = search_script(blank, {(): ["<eos>"]}, {})
    assert scored(growth) == {}


# ---- lookahead

# dvts, N=2 M=2, k=2:
# a (> a1 > a2) .3      b (> b1$) .6* -> b.x$ .2* S   b.y (> y1 > y2) .1 S (unfinished)
# Without lookahead a (.9) would be kept, for the PRM likes it until it reads on.
AHEAD: Script = {
    (): ["a", "b"],
    ("a",): ["a1"],
    ("a", "a1"): ["a2"],
    ("b",): ["b1<eos>", "x<eos>", "y"],
    ("b", "y"): ["y1"],
    ("b", "y", "y1"): ["y2"],
}
AHEAD_REWARDS = {"a": 0.9, "b": 0.1, "a2": 0.3, "b1": 0.6, "x": 0.2, "y2": 0.1}


def test_the_prm_reads_ahead_and_nothing_of_it_stays() -> None:
    config, prm = replace(config_of("dvts", 2, 2), lookahead=2), ScriptedPRM(AHEAD_REWARDS)
    growth, policy = search_with(config, ScriptedPolicy(AHEAD), prm)
    assert kept(growth) == {"0:1", "0:1.0"}
    assert solutions(growth) == {"0:1.0": StopReason.EOS, "0:1.1": StopReason.UNFINISHED}
    assert scored(growth) == {"0:0": 0.3, "0:1": 0.6, "0:1.0": 0.2, "0:1.1": 0.1}
    assert sorted(growth.tree.texts) == ["a\n\n", "b\n\n", "x", "y\n\n"]
    assert [path.steps for path in prm.calls[0]] == [("a", "a1", "a2"), ("b", "b1")]
    assert [path.new_steps for path in prm.calls[0]] == [3, 2]
    assert len(policy.calls) == 7


def test_what_is_read_ahead_is_spent() -> None:
    config = replace(config_of("dvts", 2, 2), lookahead=2)
    policy, prm = ScriptedPolicy(AHEAD, cached=False), ScriptedPRM(AHEAD_REWARDS)
    growth, _ = search_with(config, policy, prm)
    budget, tree = growth.budget, growth.tree
    ahead = len("a1..a2..b1.y1..y2..")  # a delimiter is two tokens, an end of text one
    assert budget.lookahead_policy_tokens == ahead
    assert budget.policy_tokens == sum(map(tree.step_tokens, range(len(tree))))
    assert budget.generations == len(tree) == 4
    assert budget.wasted_policy_tokens == budget.speculated_policy_tokens == 0
    assert budget.prefix_tokens_computed > budget.prefix_tokens
    assert budget.flops(1, 0) == 2.0 * (
        budget.policy_tokens + ahead + budget.prefix_tokens_computed
    )
    assert unit_costs(growth, 1, 1)["lookahead_policy_tokens"] == ahead
    assert discarded_tokens(tree) == len("a..")


@dataclass
class Recorded:
    """A policy that keeps how each of its calls was sampled."""

    policy: SeededPolicy
    calls: list[tuple[float, int]] = field(default_factory=list)

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        self.calls.append((sampling.temperature, n))
        return await self.policy.expand(path, n, sampling, max_tokens, seed, first)


def test_lookahead_is_greedy_and_one_sample() -> None:
    config = replace(config_of("beam", 8, 4), lookahead=1)
    policy = Recorded(SeededPolicy())
    search(config, "p1", policy, SeededPRM())
    temperatures = {temperature for temperature, _ in policy.calls}
    assert temperatures == {0.0, config.sampling.temperature}
    assert {n for temperature, n in policy.calls if temperature == 0.0} == {1}
    assert {n for temperature, n in policy.calls if temperature != 0.0} == {8, 4}


@pytest.mark.parametrize(
    ("limits", "ahead"),
    [
        (Limits(), ["a\n\n", "a\n\n", "a\n\n"]),
        (Limits(max_steps=3), ["a\n\n", "a\n\n"]),  # the last that a solution may have
        (Limits(max_steps=1), []),
        (Limits(max_solution_tokens=8), ["a\n\n", "a\n"]),
        (Limits(max_solution_tokens=3), []),
    ],
)
def test_lookahead_ends_where_a_solution_would(limits: Limits, ahead: list[str]) -> None:
    config = replace(config_of("dvts", 1, 1, limits=limits), lookahead=3)
    script = {("a",) * depth: ["a"] for depth in range(4)}
    script[("a",)] = ["a", "b<eos>"]  # read ahead first, then the solution ends
    growth, _ = search_script(config, script, {"a": 0.5, "a\n": 0.5, "b": 0.5})
    assert growth.budget.lookahead_policy_tokens == len("".join(ahead))


def test_runs_and_lookahead_go_together() -> None:
    # a.a1 (> a2) .7* -> a3$ .8* S, one path: a run of two, one step ahead, then a run that ends.
    script = {(): ["a"], ("a",): ["a1"], ("a", "a1"): ["a2", "a3<eos>"]}
    config = replace(config_of("dvts", 1, 1), score_every=2, lookahead=1)
    prm = ScriptedPRM({"a2": 0.7, "a3": 0.8})
    growth, _ = search_with(config, ScriptedPolicy(script), prm)
    assert [path.steps for [path] in prm.calls] == [("a", "a1", "a2"), ("a", "a1", "a3")]
    assert [path.new_steps for [path] in prm.calls] == [3, 1]
    assert scored(growth) == {"0:0.0": 0.7, "0:0.0.0": 0.8}


# ---- what holds for every search

modest = settings(max_examples=30, deadline=None)


@st.composite
def variants(draw: st.DrawFn) -> SearchConfig:
    config = draw(configs(["beam", "dvts"]))
    return replace(config, score_every=draw(st.integers(1, 4)), lookahead=draw(st.integers(0, 3)))


@modest
@given(variants(), WORDS, POLICIES, PRMS, st.integers(0, 999))
def test_timing_changes_no_table(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM, jitter: int
) -> None:
    calm, jittered = calm_and_jittered(config, name, policy, prm, jitter)
    assert replace(calm.budget, prm_tokens_computed=0) == replace(
        jittered.budget, prm_tokens_computed=0
    )


@modest
@given(variants(), WORDS, POLICIES, PRMS)
def test_no_limit_is_exceeded_and_every_candidate_is_scored_once(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM
) -> None:
    growth = search(config, name, policy, prm)
    tree, limits = growth.tree, config.limits
    assert all(depth <= limits.max_steps for depth in tree.depths)
    assert all(tokens <= limits.max_solution_tokens for tokens in tree.path_tokens)
    assert config.keep <= len(tree.solutions) <= config.n
    for node in range(len(tree)):
        run = tree.depths[node] % config.score_every == 0 or tree.ends_solution(node)
        assert (tree.rewards[node] == tree.rewards[node]) == run
    assert (growth.budget.lookahead_policy_tokens > 0) <= (config.lookahead > 0)


@modest
@given(variants(), WORDS, POLICIES, PRMS)
def test_slots_change_nothing_where_a_candidate_is_no_single_step(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM
) -> None:
    [unit] = partition(problem_of(name), config, config.n)
    growth = asyncio.run(run_unit(unit, policy, prm, slots=8))
    calm = search(config, name, policy, prm)
    assert node_table(unit, "x", calm.tree).equals(node_table(unit, "x", growth.tree))
    if not config.scores_each_step:
        assert growth.budget == calm.budget


@modest
@given(configs(["beam", "dvts"]), WORDS, POLICIES, PRMS)
def test_first_steps_are_those_of_the_default_rule(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM
) -> None:
    """Variants draw by the same seeds: what differs is what is kept."""

    def firsts(searched: SearchConfig) -> dict[str, str]:
        tree = search(searched, name, policy, prm).tree
        ids = tree.node_ids()
        return {ids[node]: tree.texts[node] for node in range(len(tree)) if tree.depths[node] == 1}

    assert firsts(config) == firsts(replace(config, lookahead=1, score_every=3))


def test_a_prediction_counts_all_steps_that_are_new() -> None:
    prm = ModelledPRM(StepModel(step_tokens=5, step_cv=0.5, end_shares=(), prm_prompt_tokens=7))
    path = PRMPath("p", ("3 x", "4 y", "5 z"), True, 2)
    [score] = asyncio.run(prm.score([path]))
    assert (score.tokens_minimal, score.tokens_computed) == (9, 16)


# ---- names

VARIANTS: list[tuple[Mapping[str, object], str]] = [
    ({}, ""),
    ({"lookahead": 2}, "lookahead=2"),
    ({"score_every": 4, "lookahead": 1}, "lookahead=1 score_every=4"),
    ({"width_temperature": 0.1}, "width_temperature=0.1"),
    ({"compat": Compat.SEARCH_AND_LEARN, "lookahead": 1}, "compat=search_and_learn lookahead=1"),
    (
        {"compat_options": (CompatOption.SORT_COMPLETED, CompatOption.FILTER_DUPLICATES)},
        "compat_options=filter_duplicates,sort_completed",
    ),
]


@pytest.mark.parametrize(("settings_", "name"), VARIANTS)
def test_a_variant_is_named_by_what_is_not_default(
    settings_: Mapping[str, object], name: str
) -> None:
    config = replace(config_of("dvts", 4, 2), **settings_)  # type: ignore[arg-type]
    assert config.variant == name
    [unit] = partition(PROBLEM, config, 4)
    assert unit.unit_id == f"p1/dvts-4x2{name and ' ' + name}/0-2"


def test_tables_name_the_variant() -> None:
    config = replace(config_of("dvts", 2, 2), lookahead=2)
    growth, _ = search_script(config, AHEAD, AHEAD_REWARDS)
    [unit] = partition(PROBLEM, config, 2)
    for table in (node_table(unit, "x", growth.tree), solution_table(unit, "x", growth)):
        assert set(table["variant"].to_pylist()) == {"lookahead=2"}
