"""Diverse verifier tree search: N/M subtrees that never look at each other.

Each subtree samples M candidates, keeps the best one and goes on from it until the kept one
is finished; then all M candidates of that last step count towards N. (search-and-learn, 2024.)
"""

import asyncio

from search.growth import Growth
from search.tree import ROOT


async def dvts(growth: Growth, subtrees: range) -> None:
    """Grows the given subtrees side by side, without waiting for one another."""
    async with asyncio.TaskGroup() as tasks:
        for subtree in subtrees:
            tasks.create_task(_grow_subtree(growth, subtree))


async def _grow_subtree(growth: Growth, subtree: int) -> None:
    node = ROOT
    while node == ROOT or not growth.tree.ends_solution(node):
        candidates = await growth.expand(node, subtree, growth.config.branching)
        node = max(candidates, key=growth.score)
        growth.tree.keep([node], candidates)
    growth.tree.close(candidates)
    growth.tree.forget_ids(growth.tree.path(node))
