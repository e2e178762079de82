"""A grown tree as Arrow tables, in an order that depends on nothing but the tree itself."""

import math
from typing import Any

import pyarrow as pa

from search.answers import boxed_answer
from search.budget import discarded_tokens
from search.growth import Growth
from search.partition import WorkUnit
from search.protocols import StopReason
from search.schemas import NODES, SOLUTIONS
from search.token_ids import count_ids
from search.tree import Solution, Tree

NO_CLASS = -1
_NO_ANSWER = (StopReason.UNFINISHED,)


def search_columns(unit: WorkUnit, policy: str) -> dict[str, Any]:
    """The columns that name a search, the same in every table."""
    config = unit.config
    return {
        "problem_id": unit.problem.problem_id,
        "policy": policy,
        "strategy": config.strategy,
        "n": config.n,
        "branching": config.branching,
        "keep": config.keep,
        "unit_id": unit.unit_id,
    }


def node_table(unit: WorkUnit, policy: str, tree: Tree) -> pa.Table:
    """All nodes of the unit, ordered by subtree and path."""
    shared = search_columns(unit, policy)
    order = sorted(range(len(tree)), key=lambda node: _place(tree, node))
    return pa.Table.from_pylist([shared | _node_row(tree, node) for node in order], NODES)


def solution_table(unit: WorkUnit, policy: str, growth: Growth) -> pa.Table:
    """The unit's solutions, not yet graded, ordered by subtree and path."""
    shared, tree = search_columns(unit, policy), growth.tree
    order = sorted(tree.solutions, key=lambda solution: _place(tree, solution.node))
    rows = [shared | _solution_row(tree, solution) for solution in order]
    return pa.Table.from_pylist(rows, SOLUTIONS)


def _place(tree: Tree, node: int) -> tuple[int, ...]:
    return (tree.subtrees[node], *map(int, tree.places[node].partition(":")[2].split(".")))


def _node_row(tree: Tree, node: int) -> dict[str, Any]:
    subtree, reward = tree.subtrees[node], tree.rewards[node]
    return {
        "subtree": subtree,
        "node_id": tree.places[node],
        "parent_id": tree.node_id(tree.parents[node], subtree),
        "depth": tree.depths[node],
        "text": tree.texts[node],
        "policy_tokens": count_ids(tree.token_ids[node]),
        "logprob": tree.logprobs[node],
        "reward": None if math.isnan(reward) else reward,
        "kept": bool(tree.kept[node]),
        "stop_reason": str(tree.stop_reasons[node]),
    }


def _solution_row(tree: Tree, solution: Solution) -> dict[str, Any]:
    text, place = tree.text(solution.node), tree.places[solution.node]
    answer = "" if solution.stop_reason in _NO_ANSWER else boxed_answer(text)
    return {
        "subtree": tree.subtrees[solution.node],
        "solution_id": place,
        "node_id": place,
        "text": text,
        "answer": answer,
        "answer_class": NO_CLASS,
        "rewards": tree.scored_steps(solution.node),
        "policy_tokens": tree.path_tokens[solution.node],
        "prm_tokens": sum(tree.prm_tokens[step] for step in tree.path(solution.node)),
        "stop_reason": str(solution.stop_reason),
    }


def unit_costs(growth: Growth, policy_parameters: int, prm_parameters: int) -> dict[str, Any]:
    """The cost columns of the `units` table."""
    budget = growth.budget
    return {
        "policy_replica": budget.policy_replica,
        "prm_replica": budget.prm_replica,
        "solutions": len(growth.tree.solutions),
        "generations": budget.generations,
        "generated_policy_tokens": budget.policy_tokens,
        "prefix_policy_tokens": budget.prefix_tokens,
        "computed_prefix_policy_tokens": budget.prefix_tokens_computed,
        "discarded_policy_tokens": discarded_tokens(growth.tree),
        "speculated_policy_tokens": budget.speculated_policy_tokens,
        "wasted_policy_tokens": budget.wasted_policy_tokens,
        "aborted_generations": budget.aborted_generations,
        "computed_prm_tokens": budget.prm_tokens_computed,
        "minimal_prm_tokens": budget.prm_tokens_minimal,
        "flops": budget.flops(policy_parameters, prm_parameters),
    }
