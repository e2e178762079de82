"""REBASE: how width is divided, on trees worked out by hand and for all scores."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_properties import LIMITS, POLICIES, PRMS, WORDS, Jittered, problem_of, search
from test_strategies import config_of, kept, search_script, solutions

from search.config import Limits, SearchConfig
from search.partition import partition, run_unit
from search.protocols import StopReason
from search.rewards import Reduction
from search.rows import node_table, solution_table
from search.scripted import ScriptedPolicy, ScriptedPRM, SeededPolicy, SeededPRM
from search.strategies.rebase import widths

pytestmark = pytest.mark.unit


# ---- the division of width

# weights exp((score - best) / 0.2), rounded up in turn, of what is left:
DIVISIONS = [
    # 1, .607: ceil(4 / 1.607 = 2.49) = 3, then all that is left
    ([0.9, 0.8], 4, [3, 1]),
    # 1, .368, .135, .050: ceil(8 / 1.553 = 5.15) = 6; ceil(2 x .368 / .553 = 1.33) = 2; none left
    ([0.9, 0.7, 0.5, 0.3], 8, [6, 2, 0, 0]),
    # equal scores, equal widths; what cannot be divided goes to the earlier ones
    ([0.5] * 3, 6, [2, 2, 2]),
    ([0.5] * 3, 7, [3, 2, 2]),
    # 1, .018: ceil(2 / 1.018 = 1.96) = 2
    ([0.9, 0.1], 2, [2, 0]),
    ([0.3], 5, [5]),
    ([0.9, 0.1], 0, [0, 0]),
    ([], 3, []),
]


@pytest.mark.parametrize(("scores", "left", "expected"), DIVISIONS)
def test_width_is_divided_by_a_softmax_rounded_up(
    scores: list[float], left: int, expected: list[int]
) -> None:
    assert widths(scores, left, 0.2) == expected


def test_a_high_temperature_divides_evenly_and_a_low_one_gives_all_to_the_best() -> None:
    assert widths([1.0, 0.5, 0.0], 6, 1000.0) == [3, 2, 1]
    assert widths([1.0, 0.9999, 0.0], 6, 1e-300) == [6, 0, 0]


def falling(scores: Sequence[float]) -> list[float]:
    return sorted(scores, reverse=True)


SCORES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40).map(falling)
TEMPERATURES = st.sampled_from([1e-320, 1e-3, 0.05, 0.2, 1.0, 1e9])


@settings(max_examples=300, deadline=None)
@given(SCORES, st.integers(0, 600), TEMPERATURES)
def test_widths_always_sum_and_fall_with_scores(
    scores: list[float], left: int, temperature: float
) -> None:
    divided = widths(scores, left, temperature)
    assert sum(divided) == left
    assert len(divided) == len(scores)
    assert min(divided) >= 0
    # Each is within one of its part of what those before it left.
    for place, width in enumerate(divided):
        weights = [math.exp((score - scores[place]) / temperature) for score in scores[place:]]
        part = sum(divided[place:]) * weights[0] / math.fsum(weights)
        assert part - 1e-6 <= width <= part + 1 + 1e-6


# ---- whole searches

# N=4, T=0.2, reduction last.
# Depth 1: a .9*   b$ .8 S   c .5   d .1      left 3; weights 1 .135 .018: ceil(3/1.153)=3, 0, 0
# Depth 2: a1 .6*  a2 .6*    a3$ .2 S         left 2; equal: 1 1
# Depth 3: a1.x$ .3 S   a2.y .4*              left 1: y gets it
# Depth 4: a2.y.z$ .7 S
TREE = {
    (): ["a", "b<eos>", "c", "d"],
    ("a",): ["a1", "a2", "a3<eos>"],
    ("a", "a1"): ["x<eos>"],
    ("a", "a2"): ["y"],
    ("a", "a2", "y"): ["z<eos>"],
}
REWARDS = {"a": 0.9, "b": 0.8, "c": 0.5, "d": 0.1, "a1": 0.6, "a2": 0.6, "a3": 0.2}
REWARDS |= {"x": 0.3, "y": 0.4, "z": 0.7}


def test_a_tree_by_hand() -> None:
    growth, policy = search_script(config_of("rebase", 4, 1), TREE, REWARDS)
    ended = ["0:1", "0:0.2", "0:0.0.0", "0:0.1.0.0"]
    assert solutions(growth) == dict.fromkeys(ended, StopReason.EOS)
    assert kept(growth) == {*ended, "0:0", "0:0.0", "0:0.1", "0:0.1.0"}
    assert [(path, n) for path, n, _, _ in policy.calls] == [
        ("", 4),
        ("a\n\n", 3),
        ("a\n\na1\n\n", 1),
        ("a\n\na2\n\n", 1),
        ("a\n\na2\n\ny\n\n", 1),
    ]


def test_a_warmer_softmax_keeps_more_branches() -> None:
    # As above, but at T=10 the weights of a, c, d are 1 .961 .923: 3/2.884 -> 2, 1/1.884 -> 1, 0
    script = {
        (): ["a", "b<eos>", "c", "d"],
        ("a",): ["e<eos>", "f<eos>"],
        ("c",): ["g<eos>"],
    }
    rewards = {"a": 0.9, "b": 0.8, "c": 0.5, "d": 0.1, "e": 0.1, "f": 0.1, "g": 0.1}
    config = replace(config_of("rebase", 4, 1), width_temperature=10.0)
    growth, _ = search_script(config, script, rewards)
    assert set(solutions(growth)) == {"0:1", "0:0.0", "0:0.1", "0:2.0"}
    assert not growth.tree.kept[growth.tree.node_ids().index("0:3")]


def test_of_equal_scores_the_earlier_is_served_first() -> None:
    # weights equal, left 3 of 2 candidates: 2 and 1
    script = {(): ["a", "b", "c<eos>", "d<cut>"], ("a",): ["e<eos>"] * 2, ("b",): ["f<eos>"]}
    script |= {("d<cut>",): []}
    rewards = {"a": 0.5, "b": 0.5, "c": 0.0, "d": 0.0, "e": 0.0, "f": 0.0}
    growth, policy = search_script(config_of("rebase", 4, 1), script, rewards)
    assert [(path, n) for path, n, _, _ in policy.calls][1:] == [("a\n\n", 2), ("b\n\n", 1)]
    assert len(solutions(growth)) == 4


def test_the_token_limit_counts_the_whole_path() -> None:
    # Steps of 3 tokens (a letter and the delimiter), a path of 6: two steps, never a third.
    limits = Limits(max_step_tokens=4, max_solution_tokens=6)
    script = {(): ["a", "b"], ("a",): ["c", "d"]}
    rewards = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.5}
    growth, _ = search_script(config_of("rebase", 2, 1, limits=limits), script, rewards)
    assert solutions(growth) == dict.fromkeys(["0:0.0", "0:0.1"], StopReason.MAX_TOKENS)


# ---- what holds for every search


@st.composite
def configs(draw: st.DrawFn) -> SearchConfig:
    n, reduction = draw(st.integers(1, 24)), draw(st.sampled_from(Reduction))
    temperature = draw(st.sampled_from([0.01, 0.2, 5.0]))
    config = SearchConfig("rebase", n, 1, n, reduction, draw(st.integers(0, 99)), draw(LIMITS))
    return replace(config, width_temperature=temperature)


modest = settings(max_examples=40, deadline=None)


@modest
@given(configs(), WORDS, POLICIES, PRMS)
def test_every_depth_has_the_width_that_is_left(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM
) -> None:
    growth = search(config, name, policy, prm)
    tree, left = growth.tree, config.n
    for depth in range(1, max(tree.depths) + 1):
        nodes = [node for node in range(len(tree)) if tree.depths[node] == depth]
        assert len(nodes) == left
        left -= sum(tree.ends_solution(node) for node in nodes)
    assert left == 0
    assert len({solution.node for solution in tree.solutions}) == config.n


@modest
@given(configs(), WORDS, POLICIES, PRMS, st.integers(0, 999))
def test_timing_changes_no_table(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM, jitter: int
) -> None:
    [unit] = partition(problem_of(name), config, 1)
    other = Jittered(policy, prm, jitter)
    calm, jittered = search(config, name, policy, prm), search(config, name, other, other)
    assert node_table(unit, "x", calm.tree).equals(node_table(unit, "x", jittered.tree))
    assert solution_table(unit, "x", calm).equals(solution_table(unit, "x", jittered))


def test_one_call_for_the_children_of_a_node() -> None:
    """A depth is one round of calls side by side, whatever its widths."""
    policy = ScriptedPolicy(TREE)
    [unit] = partition(problem_of("p1"), config_of("rebase", 4, 1), 1)
    asyncio.run(run_unit(unit, policy, ScriptedPRM(REWARDS)))
    paths = [path for path, *_ in policy.calls]
    assert len(set(paths)) == len(paths)
