"""Tables made by columns say what the tree says, told row by row."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.answers import boxed_answer
from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.protocols import StopReason
from search.rewards import Reduction
from search.rows import node_table, search_columns, solution_table
from search.schemas import NODES, SOLUTIONS
from search.scripted import SeededPolicy, SeededPRM
from search.strategies import STRATEGIES, keep_count
from search.texts import Texts
from search.tree import ROOT, Solution, Tree

pytestmark = pytest.mark.unit

PROBLEM = Problem("p1", "Solve p1.", "42")
POLICY = "scripted"


def place(tree: Tree, node: int) -> tuple[int, ...]:
    return tree.subtrees[node], *(tree.numbers[step] for step in tree.path(node))


def node_row(tree: Tree, node: int) -> dict[str, Any]:
    subtree, parent, reward = tree.subtrees[node], tree.parents[node], tree.rewards[node]
    return {
        "subtree": subtree,
        "node_id": tree.node_id(node, subtree),
        "parent_id": f"{subtree}:" if parent == ROOT else tree.node_id(parent, subtree),
        "depth": tree.depths[node],
        "text": tree.texts[node],
        "policy_tokens": tree.step_tokens(node),
        "logprob": tree.logprobs[node],
        "reward": None if math.isnan(reward) else reward,
        "kept": bool(tree.kept[node]),
        "stop_reason": str(tree.stop_reason(node)),
    }


def solution_row(tree: Tree, solution: Solution) -> dict[str, Any]:
    path, unfinished = tree.path(solution.node), solution.stop_reason is StopReason.UNFINISHED
    text = "".join(tree.texts[step] for step in path)
    node_id = tree.node_id(solution.node, tree.subtrees[solution.node])
    return {
        "subtree": tree.subtrees[solution.node],
        "solution_id": node_id,
        "node_id": node_id,
        "text": text,
        "answer": "" if unfinished else boxed_answer(text),
        "answer_class": -1,
        "verdict": None,
        "task_score": None,
        "rewards": tree.scored_steps(solution.node),
        "policy_tokens": sum(map(tree.step_tokens, path)),
        "prm_tokens": sum(tree.prm_tokens[step] for step in path),
        "stop_reason": str(solution.stop_reason),
    }


@st.composite
def units(draw: st.DrawFn) -> WorkUnit:
    strategy, branching = draw(st.sampled_from(sorted(STRATEGIES))), draw(st.integers(1, 12))
    n = branching * draw(st.integers(1, 3))
    limits = Limits(max_steps=draw(st.integers(1, 5)), max_step_tokens=draw(st.integers(3, 60)))
    keep = keep_count(strategy, n, branching)
    seed = draw(st.integers(0, 2**32))
    config = SearchConfig(strategy, n, branching, keep, Reduction.LAST, seed, limits)
    return draw(st.sampled_from(list(partition(PROBLEM, config, n // 2 or 1))))


@settings(max_examples=60, deadline=None)
@given(units(), st.integers(1, 5))
def test_tables_equal_rows_told_one_by_one(unit: WorkUnit, mean_steps: int) -> None:
    growth = asyncio.run(run_unit(unit, SeededPolicy(mean_steps=mean_steps), SeededPRM()))
    tree, shared = growth.tree, search_columns(unit, POLICY)
    nodes = sorted(range(len(tree)), key=lambda node: place(tree, node))
    solutions = sorted(tree.solutions, key=lambda solution: place(tree, solution.node))
    node_rows = node_table(unit, POLICY, tree)
    solution_rows = solution_table(unit, POLICY, growth)
    assert node_rows.schema.equals(NODES, check_metadata=True)
    assert solution_rows.schema.equals(SOLUTIONS, check_metadata=True)
    assert node_rows.to_pylist() == [shared | node_row(tree, node) for node in nodes]
    assert solution_rows.to_pylist() == [shared | solution_row(tree, each) for each in solutions]
    # A tree that stands in a table can still grow.
    tree.texts.append("more")


def test_a_tree_without_nodes_has_tables_without_rows() -> None:
    config = SearchConfig("dvts", 4, 4, 1, Reduction.LAST, 0, Limits())
    [unit] = partition(PROBLEM, config, 4)
    growth = Growth(PROBLEM, SeededPolicy(), None, config)
    assert node_table(unit, POLICY, growth.tree).equals(NODES.empty_table())
    assert solution_table(unit, POLICY, growth).equals(SOLUTIONS.empty_table())


@given(st.lists(st.text(max_size=12), max_size=8))
def test_texts_come_back_as_they_were(texts: list[str]) -> None:
    packed = Texts()
    for text in texts:
        packed.append(text)
    assert list(packed) == texts
    assert len(packed) == len(texts)
    assert packed.joined(range(len(texts))) == "".join(texts)
