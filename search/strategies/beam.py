"""Beam search over steps (arXiv 2408.03314, section 3.2): the one search with a barrier.

N candidates at the first step; the N/M best are kept and expanded M times each. A finished
solution keeps its place among the candidates and is never expanded.
"""

import asyncio

from search.growth import Growth, unfinished
from search.tree import ROOT

WHOLE_TREE = 0


async def beam(growth: Growth, subtrees: range) -> None:
    """Grows one tree until all kept nodes are finished; up to N finished candidates count."""
    del subtrees  # a beam is one whole: its candidates compete across the tree
    config, tree = growth.config, growth.tree
    candidates = await growth.expand(ROOT, WHOLE_TREE, config.n)
    kept = _keep_best(growth, candidates)
    while growing := unfinished(tree, kept):
        finished = [node for node in kept if tree.ends_solution(node)]
        candidates = finished + await _expand_all(growth, growing)
        kept = _keep_best(growth, candidates)
    tree.close([node for node in candidates if tree.ends_solution(node)])


def _keep_best(growth: Growth, candidates: list[int]) -> list[int]:
    """The N/M best by score; at equal scores finished ones first, then by parent and place."""
    ranked = sorted(candidates, key=growth.score, reverse=True)
    kept = ranked[: growth.config.keep]
    for node in kept:
        growth.tree.keep(node)
    return kept


async def _expand_all(growth: Growth, nodes: list[int]) -> list[int]:
    """All children of all nodes, in the order of their parents."""
    async with asyncio.TaskGroup() as tasks:
        expansions = [
            tasks.create_task(growth.expand(node, WHOLE_TREE, growth.config.branching))
            for node in nodes
        ]
    return [child for expansion in expansions for child in expansion.result()]
