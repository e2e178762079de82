"""Growing a tree by one node: why steps end, what is scored, what is refused, what it costs."""

import asyncio
import math
import pickle
from collections.abc import Sequence

import pytest

from search import errors
from search.budget import discarded_tokens
from search.config import Limits, SearchConfig
from search.errors import PolicyError, PRMError
from search.growth import Growth, unfinished
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import (
    PRM,
    Completion,
    Expansion,
    Policy,
    PolicyPath,
    PRMPath,
    Sampling,
    Score,
    StopReason,
)
from search.rewards import Reduction, reduce_rewards
from search.rows import node_table, unit_costs
from search.scripted import Script, ScriptedPolicy, ScriptedPRM, SeededPolicy, encode_text
from search.strategies import STRATEGIES, keep_count
from search.token_ids import pack_ids
from search.tree import ROOT, Tree

PROBLEM = Problem("p1", "2+2", "4")  # three tokens of a scripted policy
DELIMITER_TOKENS = 2


def config_of(strategy: str, n: int, branching: int, limits: Limits | None = None) -> SearchConfig:
    keep = keep_count(strategy, n, branching)
    return SearchConfig(strategy, n, branching, keep, Reduction.LAST, 0, limits or Limits())


def growth_of(policy: Policy, prm: PRM | None, limits: Limits | None = None) -> Growth:
    return Growth(PROBLEM, policy, prm, config_of("dvts", 4, 4, limits))


def grow_chain(script: Script, limits: Limits, steps: int) -> Growth:
    """Expands one child after another, without a PRM."""
    growth = growth_of(ScriptedPolicy(script), None, limits)

    async def chain() -> None:
        for node in range(ROOT, ROOT + steps):
            await growth.expand(node, 0, 1)

    asyncio.run(chain())
    return growth


def stop_reasons(tree: Tree) -> list[StopReason]:
    return [tree.stop_reason(node) for node in range(len(tree))]


def search(config: SearchConfig, policy: Policy, prm: PRM) -> Growth:
    [unit] = partition(PROBLEM, config, config.n)
    return asyncio.run(run_unit(unit, policy, prm))


# ---- why a step or a solution ends


@pytest.mark.unit
@pytest.mark.parametrize(
    ("step", "limits", "expected"),
    [
        # Each line breaks all the limits that the lines below it break: the first check wins.
        ("\\boxed{1}<eos>", Limits(max_steps=1, max_solution_tokens=10), StopReason.EOS),
        ("\\boxed{1}", Limits(max_steps=1, max_solution_tokens=11), StopReason.BOXED),
        ("\\boxed{}", Limits(max_steps=1, max_solution_tokens=10), StopReason.MAX_TOKENS),
        ("\\boxed{}", Limits(max_steps=1, max_solution_tokens=11), StopReason.MAX_STEPS),
        ("\\boxed{}", Limits(max_steps=2, max_solution_tokens=11), StopReason.DELIMITER),
        ("\\boxed{}<cut>", Limits(max_steps=2, max_solution_tokens=11), StopReason.LENGTH),
        ("\\boxed{1}", Limits(max_steps=2, stop_at_boxed=False), StopReason.DELIMITER),
        ("\\boxed{1}", Limits(max_steps=1, stop_at_boxed=False), StopReason.MAX_STEPS),
    ],
)
def test_limits_are_checked_in_their_order(step: str, limits: Limits, expected: StopReason) -> None:
    growth = grow_chain({(): [step]}, limits, 1)
    assert stop_reasons(growth.tree) == [expected]
    goes_on = expected in (StopReason.DELIMITER, StopReason.LENGTH)
    assert growth.tree.ends_solution(0) is not goes_on
    assert unfinished(growth.tree, [0]) == ([0] if goes_on else [])


@pytest.mark.unit
def test_a_step_without_delimiter_is_a_step_and_is_marked() -> None:
    script = {(): ["abcdef"], ("abcd<cut>",): ["efg<eos>"]}
    growth = grow_chain(script, Limits(max_step_tokens=4), 2)
    assert list(growth.tree.texts) == ["abcd", "efg"]
    assert stop_reasons(growth.tree) == [StopReason.LENGTH, StopReason.EOS]
    assert growth.tree.text(1) == "abcdefg"
    assert list(growth.tree.path_tokens) == [4, 8]  # the end of text is a token


@pytest.mark.unit
def test_the_last_step_gets_the_tokens_that_are_left() -> None:
    script = {(): ["abcd"], ("abcd",): ["efgh"], ("abcd", "efgh<cut>"): ["never"]}
    limits = Limits(max_step_tokens=7, max_solution_tokens=10)
    growth = grow_chain(script, limits, 2)
    assert isinstance(growth.policy, ScriptedPolicy)
    assert [max_tokens for _, _, max_tokens, _ in growth.policy.calls] == [7, 4]
    assert stop_reasons(growth.tree) == [StopReason.DELIMITER, StopReason.MAX_TOKENS]
    assert list(growth.tree.path_tokens) == [6, 10]


@pytest.mark.unit
def test_a_boxed_answer_of_an_earlier_step_ends_nothing_later() -> None:
    limits = Limits(stop_at_boxed=False, max_steps=3)
    growth = grow_chain({(): ["\\boxed{1}"], ("\\boxed{1}",): ["so"]}, limits, 2)
    assert stop_reasons(growth.tree) == [StopReason.DELIMITER, StopReason.DELIMITER]


# ---- what is scored


@pytest.mark.unit
def test_an_empty_last_step_is_not_scored() -> None:
    # N=1: a .6 -> nothing but the end of text
    prm = ScriptedPRM({"a": 0.6})
    growth = search(
        config_of("best_of_n", 1, 1), ScriptedPolicy({(): ["a"], ("a",): ["<eos>"]}), prm
    )
    tree = growth.tree
    assert list(tree.texts) == ["a\n\n", ""]
    assert math.isnan(tree.rewards[1])
    assert len(prm.calls) == 1
    assert tree.scored_steps(1) == [0.6]
    assert growth.score(1) == 0.6
    assert [solution.stop_reason for solution in tree.solutions] == [StopReason.EOS]


@pytest.mark.unit
def test_only_steps_with_text_are_sent_and_rewards_reach_their_own_step() -> None:
    prm = ScriptedPRM({"a": 0.1, "c": 0.3})
    growth = growth_of(ScriptedPolicy({(): ["a", "<eos>", "c", " \n<eos>"]}), prm)
    asyncio.run(growth.expand(ROOT, 0, 4))
    assert growth.tree.rewards[0] == 0.1
    assert growth.tree.rewards[2] == 0.3
    assert math.isnan(growth.tree.rewards[1])
    assert math.isnan(growth.tree.rewards[3])
    assert [path.steps for path in prm.calls[0]] == [("a",), ("c",)]


@pytest.mark.unit
def test_a_solution_without_a_scored_step_scores_nothing() -> None:
    growth = growth_of(ScriptedPolicy({(): ["<eos>"]}), ScriptedPRM({}))
    asyncio.run(growth.expand(ROOT, 0, 1))
    assert growth.score(0) == 0.0


@pytest.mark.unit
def test_the_prm_reads_steps_without_the_delimiter() -> None:
    script = {(): ["a\nb"], ("a\nb",): ["c<cut>"], ("a\nb", "c<cut>"): ["d<eos>"]}
    prm = ScriptedPRM({"a\nb": 0.5, "c": 0.5, "d": 0.5})
    search(config_of("best_of_n", 1, 1), ScriptedPolicy(script), prm)
    steps = [path.steps for call in prm.calls for path in call]
    assert steps == [("a\nb",), ("a\nb", "c"), ("a\nb", "c", "d")]
    assert {path.problem for call in prm.calls for path in call} == {PROBLEM.text}
    assert [path.unfinished for call in prm.calls for path in call] == [True, False, False]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (Reduction.LAST, 0.5),
        (Reduction.MIN, 0.2),
        (Reduction.MEAN, 0.5),
        (Reduction.PROD, 0.08),
    ],
)
def test_reductions(reduction: Reduction, expected: float) -> None:
    assert reduce_rewards([0.8, 0.2, 0.5], reduction) == pytest.approx(expected)
    assert reduce_rewards([0.7], reduction) == 0.7
    assert reduce_rewards([], reduction) == 0.0


# ---- what is refused


class FixedPRM:
    """Answers every call with the same rewards, whatever was asked."""

    def __init__(self, rewards: Sequence[float]) -> None:
        self._rewards = rewards

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        return [Score(reward, 1, 1) for reward in self._rewards]


class FixedPolicy:
    """Answers every call with one completion for each text; an empty one has no tokens."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        ids = [pack_ids(list(text.encode())) for text in self._texts]
        pairs = zip(self._texts, ids, strict=True)
        return Expansion(tuple(Completion(t, i, 0.0, StopReason.EOS) for t, i in pairs), 0, 0)


BAD_REWARDS = [
    [math.nan, 0.5],
    [0.5, math.inf],
    [-0.001, 0.5],
    [0.5, 1.001],
    [0.5],
    [0.5, 0.5, 0.5],
    [],
]


@pytest.mark.unit
@pytest.mark.parametrize("rewards", BAD_REWARDS)
def test_a_bad_reward_is_a_prm_error(rewards: list[float]) -> None:
    growth = growth_of(ScriptedPolicy({(): ["a", "b"]}), FixedPRM(rewards))
    with pytest.raises(PRMError, match="'p1'"):
        asyncio.run(growth.expand(ROOT, 0, 2))


@pytest.mark.unit
@pytest.mark.parametrize("rewards", [[0.0, 1.0], [1, 0]])
def test_the_ends_of_the_range_are_rewards(rewards: list[float]) -> None:
    growth = growth_of(ScriptedPolicy({(): ["a", "b"]}), FixedPRM(rewards))
    asyncio.run(growth.expand(ROOT, 0, 2))
    assert list(growth.tree.rewards) == rewards


@pytest.mark.unit
@pytest.mark.parametrize("texts", [[], ["a"], ["a", ""], ["a", "b", "c"], ["a", "b", ""]])
def test_a_wrong_number_of_steps_is_a_policy_error(texts: list[str]) -> None:
    growth = growth_of(FixedPolicy(texts), None)
    with pytest.raises(PolicyError, match="'p1'"):
        asyncio.run(growth.expand(ROOT, 0, 2))


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group: subtrees that run side by side may fail together."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


@pytest.mark.unit
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_search_ends_with_policy_errors_alone(strategy: str) -> None:
    with pytest.raises((PolicyError, ExceptionGroup)) as caught:
        search(config_of(strategy, 4, 2), FixedPolicy([]), FixedPRM([]))
    assert {type(leaf) for leaf in leaves(caught.value)} == {PolicyError}


@pytest.mark.unit
@pytest.mark.parametrize("strategy", ["beam", "best_of_n", "dvts"])
def test_a_search_ends_with_prm_errors_alone(strategy: str) -> None:
    with pytest.raises((PRMError, ExceptionGroup)) as caught:
        search(config_of(strategy, 4, 2), SeededPolicy(), FixedPRM([math.nan]))
    assert {type(leaf) for leaf in leaves(caught.value)} == {PRMError}


@pytest.mark.unit
@pytest.mark.parametrize(
    "kind",
    [
        errors.BranchwiseError,
        errors.RecipeError,
        errors.PolicyError,
        errors.PRMError,
        errors.StorageError,
        errors.ClusterError,
    ],
)
def test_errors_survive_pickling(kind: type[errors.BranchwiseError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("change this")))
    assert type(copy) is kind
    assert str(copy) == "change this"


# ---- the tree and its costs

# N=2 M=2, one subtree: a .2   b .9* -> x$ .8* S   y .5 S (unfinished)
# tokens (with delimiter or end of text): a 3, b 3, x 2, y 3; problem 3
COUNTED: Script = {(): ["a", "b"], ("b",): ["x<eos>", "y"]}
COUNTED_REWARDS = {"a": 0.2, "b": 0.9, "x": 0.8, "y": 0.5}


@pytest.mark.unit
def test_the_tree_names_its_nodes_by_their_place() -> None:
    tree = search(
        config_of("dvts", 2, 2), ScriptedPolicy(COUNTED), ScriptedPRM(COUNTED_REWARDS)
    ).tree
    assert tree.node_ids() == ["0:0", "0:1", "0:1.0", "0:1.1"]
    assert list(tree.parents) == [ROOT, ROOT, 1, 1]
    assert list(tree.depths) == [1, 1, 2, 2]
    assert list(tree.path_tokens) == [3, 3, 5, 6]
    assert tree.path(3) == [1, 3]
    assert tree.path(ROOT) == []
    assert tree.node_id(ROOT, 7) == "7:"
    assert [tree.node_id(node, 0) for node in range(4)] == tree.node_ids()
    assert [tree.step_tokens(node) for node in range(4)] == [3, 3, 2, 3]


@pytest.mark.unit
def test_ids_are_kept_for_as_long_as_steps_may_follow() -> None:
    policy = ScriptedPolicy({(): ["a", "b", "c<eos>"], ("b",): ["d"]})
    growth = growth_of(policy, None)
    tree = growth.tree
    asyncio.run(growth.expand(ROOT, 0, 3))
    assert [node in tree.token_ids for node in range(3)] == [True, True, False]
    tree.keep([1], [0, 1, 2])
    assert list(tree.token_ids) == [1]
    asyncio.run(growth.expand(1, 0, 1))
    assert tree.packed_ids(3) == encode_text("b\n\nd\n\n")
    tree.forget_ids(tree.path(3))
    assert not tree.token_ids
    with pytest.raises(KeyError):
        tree.packed_ids(3)


@pytest.mark.unit
@pytest.mark.parametrize("cached", [True, False])
def test_the_budget_counts_every_token(cached: bool) -> None:
    policy = ScriptedPolicy(COUNTED, cached=cached, replica="r0")
    prm = ScriptedPRM(COUNTED_REWARDS, cached=cached, replica="r1")
    spent = search(config_of("dvts", 2, 2), policy, prm).budget
    assert (spent.generations, spent.policy_tokens) == (4, 3 + 3 + 2 + 3)
    assert spent.prefix_tokens == 2 * 3 + 2 * (3 + 3)
    assert spent.prefix_tokens_computed == (0 if cached else spent.prefix_tokens)
    assert spent.prm_tokens_minimal == 4
    assert spent.prm_tokens_computed == (4 if cached else 2 * (3 + 1) + 2 * (3 + 2))
    assert (spent.policy_replica, spent.prm_replica) == ("r0", "r1")


@pytest.mark.unit
def test_unit_costs_and_discarded_tokens() -> None:
    growth = search(config_of("dvts", 2, 2), ScriptedPolicy(COUNTED), ScriptedPRM(COUNTED_REWARDS))
    assert discarded_tokens(growth.tree) == 3  # step a
    costs = unit_costs(growth, policy_parameters=10, prm_parameters=100)
    assert costs["flops"] == 2.0 * (10 * 11 + 100 * 4)
    assert (costs["solutions"], costs["generations"]) == (2, 4)


@pytest.mark.unit
def test_node_rows_say_what_was_kept_and_what_was_not_scored() -> None:
    config = config_of("dvts", 2, 2)
    script = {(): ["a", "b"], ("b",): ["x<eos>", "<eos>"]}
    growth = search(config, ScriptedPolicy(script), ScriptedPRM(COUNTED_REWARDS))
    [unit] = partition(PROBLEM, config, 2)
    rows = node_table(unit, "scripted", growth.tree).to_pylist()
    assert [(row["node_id"], row["parent_id"], row["depth"]) for row in rows] == [
        ("0:0", "0:", 1),
        ("0:1", "0:", 1),
        ("0:1.0", "0:1", 2),
        ("0:1.1", "0:1", 2),
    ]
    assert [row["reward"] for row in rows] == [0.2, 0.9, 0.8, None]
    # An unscored step leaves its path's score as it was: 0.9 > 0.8.
    assert [row["kept"] for row in rows] == [False, True, False, True]
    assert [row["stop_reason"] for row in rows] == ["delimiter", "delimiter", "eos", "eos"]


@pytest.mark.unit
def test_a_new_tree_is_empty() -> None:
    tree = Tree()
    assert len(tree) == 0
    assert (tree.depth(ROOT), tree.tokens_so_far(ROOT), tree.text(ROOT)) == (0, 0, "")
