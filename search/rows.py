"""A grown tree as Arrow tables, in an order that depends on nothing but the tree itself.

Tables are made column by column, as the tree is kept: a row of Python objects for each node
would cost more than growing it.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from search.answers import boxed_answer
from search.budget import discarded_tokens
from search.growth import Growth
from search.partition import WorkUnit
from search.protocols import StopReason
from search.schemas import NODES, SOLUTIONS
from search.texts import Texts
from search.thinking import Thinking
from search.tree import ROOT, STOP_REASONS, Solution, Tree

NO_CLASS = -1
_NO_ANSWER = (StopReason.UNFINISHED, StopReason.THINKING)

Columns: TypeAlias = dict[str, Any]


def search_columns(unit: WorkUnit, policy: str) -> Columns:
    """The columns that name a search, the same in every table."""
    config = unit.config
    return {
        "problem_id": unit.problem.problem_id,
        "policy": policy,
        "strategy": config.strategy,
        "n": config.n,
        "branching": config.branching,
        "keep": config.keep,
        "variant": config.variant,
        "unit_id": unit.unit_id,
    }


def node_table(unit: WorkUnit, policy: str, tree: Tree) -> pa.Table:
    """All nodes of the unit, ordered by subtree and path."""
    places = _places(tree)
    order = pa.array(sorted(range(len(tree)), key=places.__getitem__), pa.int32())
    columns = {name: column.take(order) for name, column in _node_columns(tree).items()}
    return _table(NODES, search_columns(unit, policy), columns, len(tree))


def solution_table(unit: WorkUnit, policy: str, growth: Growth) -> pa.Table:
    """The unit's solutions, not yet graded, ordered by subtree and path."""
    places = _places(growth.tree)
    order = sorted(growth.tree.solutions, key=lambda solution: places[solution.node])
    columns = _solution_columns(growth.tree, order, growth.config.thinking)
    return _table(SOLUTIONS, search_columns(unit, policy), columns, len(order))


def _table(schema: pa.Schema, shared: Columns, columns: Columns, rows: int) -> pa.Table:
    """The columns in the order and the types of a schema; a missing one is null."""
    repeated = ((name, shared.get(name)) for name in schema.names if name not in columns)
    arrays = columns | {
        name: pa.repeat(pa.scalar(value, schema.field(name).type), rows) for name, value in repeated
    }
    return pa.table([pa.array(arrays[field.name], field.type) for field in schema], schema=schema)


def _places(tree: Tree) -> list[tuple[int, ...]]:
    """Of each node: its subtree, and the numbers of the children that lead to it."""
    places: list[tuple[int, ...]] = []
    for parent, subtree, number in zip(tree.parents, tree.subtrees, tree.numbers, strict=True):
        above = (subtree,) if parent == ROOT else places[parent]
        places.append((*above, number))
    return places


def _node_columns(tree: Tree) -> dict[str, pa.Array]:
    ids, above = tree.node_ids(), zip(tree.parents, tree.subtrees, strict=True)
    tokens, parents = np.asarray(tree.path_tokens), np.asarray(tree.parents)
    # A first step's parent is -1, which takes the 0 at the end.
    tokens_before = np.append(tokens, np.int32(0))[parents]
    reasons = pa.array([str(reason) for reason in STOP_REASONS])
    return {
        "subtree": pa.array(np.asarray(tree.subtrees)),
        "node_id": pa.array(ids, pa.string()),
        "parent_id": pa.array([f"{s}:" if p == ROOT else ids[p] for p, s in above], pa.string()),
        "depth": pa.array(np.asarray(tree.depths)),
        "text": _strings(tree.texts),
        "policy_tokens": pa.array(tokens - tokens_before),
        "logprob": pa.array(np.asarray(tree.logprobs)),
        "reward": pa.array(np.asarray(tree.rewards), from_pandas=True),
        "kept": pa.array(np.frombuffer(tree.kept, np.bool_)),
        "stop_reason": reasons.take(pa.array(np.frombuffer(tree.stops, np.uint8))),
    }


def _strings(texts: Texts) -> pa.Array:
    """The texts as they lie; while the array lives, none can be added."""
    buffers = (pa.py_buffer(texts.offsets), pa.py_buffer(texts.utf8))
    return pa.StringArray.from_buffers(len(texts), *buffers)


def _solution_columns(tree: Tree, order: Sequence[Solution], thinking: Thinking | None) -> Columns:
    nodes = [solution.node for solution in order]
    texts = [tree.text(node) for node in nodes]
    ids_of_all = tree.node_ids()
    ids = [ids_of_all[node] for node in nodes]
    return {
        "subtree": [tree.subtrees[node] for node in nodes],
        "solution_id": ids,
        "node_id": ids,
        "text": texts,
        "answer": [
            _answer(solution, thinking.spoken(text) if thinking else text)
            for solution, text in zip(order, texts, strict=True)
        ],
        "answer_class": [NO_CLASS] * len(order),
        "rewards": [tree.scored_steps(node) for node in nodes],
        "policy_tokens": [tree.path_tokens[node] for node in nodes],
        "prm_tokens": [sum(tree.prm_tokens[step] for step in tree.path(node)) for node in nodes],
        "stop_reason": [str(solution.stop_reason) for solution in order],
    }


def _answer(solution: Solution, text: str) -> str:
    return "" if solution.stop_reason in _NO_ANSWER else boxed_answer(text)


def unit_costs(growth: Growth, policy_parameters: int, prm_parameters: int) -> Columns:
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
        "lookahead_policy_tokens": budget.lookahead_policy_tokens,
        "computed_prm_tokens": budget.prm_tokens_computed,
        "minimal_prm_tokens": budget.prm_tokens_minimal,
        "flops": budget.flops(policy_parameters, prm_parameters),
    }
