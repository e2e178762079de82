"""How long the prompt of each problem is for each policy, told from tables that do not say it.

A unit's `prefix_policy_tokens` count the prompt and the steps before, once for each sampled step.
The steps are in `nodes`, so what is left is the prompt, as often as steps were sampled.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.results import table_parts
from jobs.storage import Where

_NODE = ("policy", "unit_id", "node_id", "parent_id", "policy_tokens")
_UNIT = ("policy", "problem_id", "unit_id", "generations", "prefix_policy_tokens")
PromptTokens = dict[tuple[str, str], float]


def prompt_tokens(folder: Where, units: pa.Table) -> PromptTokens:
    """By (policy, problem id), from the smallest unit of each; raises StorageError.

    Left out are problems whose units do not tell, because their nodes are not all in the table.
    """
    smallest = _smallest_units(units)
    wanted = pa.array(sorted({unit for _, unit in smallest}), pa.string())
    found: PromptTokens = {}
    for part in table_parts(folder, "nodes", _NODE):
        nodes = part.filter(pc.is_in(part["unit_id"], wanted)).to_pylist()
        for place, before in _tokens_before(nodes):
            unit = smallest.get(place)
            if unit and len(before) == unit["generations"]:
                prompt = (unit["prefix_policy_tokens"] - sum(before)) / len(before)
                found[unit["policy"], unit["problem_id"]] = max(0.0, prompt)
    return found


def _smallest_units(units: pa.Table) -> dict[tuple[str, str], dict[str, Any]]:
    """By (policy, unit id): of each policy and problem the unit with the fewest steps."""
    done = units.filter(pc.greater(pc.fill_null(units["generations"], 0), 0))
    rows = done.select(_UNIT).sort_by([("generations", "descending"), ("unit_id", "descending")])
    last = {(row["policy"], row["problem_id"]): row for row in rows.to_pylist()}
    return {(row["policy"], row["unit_id"]): row for row in last.values()}


def _tokens_before(nodes: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], list[int]]]:
    """Of each unit, by policy and id: the tokens on the path before each of its nodes."""
    units: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for node in nodes:
        units.setdefault((node["policy"], node["unit_id"]), {})[node["node_id"]] = node
    for place, tree in units.items():
        yield place, [_before(tree, node["parent_id"]) for node in tree.values()]


def _before(tree: dict[str, dict[str, Any]], place: str) -> int:
    tokens = 0
    while place in tree:
        tokens += tree[place]["policy_tokens"]
        place = tree[place]["parent_id"]
    return tokens
