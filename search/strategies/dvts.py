"""Diverse verifier tree search: N/M subtrees that never look at each other.

Each subtree samples M candidates, keeps the best one and goes on from it until the kept one
is finished; then all M candidates of that last round count towards N. (search-and-learn, 2024.)
"""

import asyncio

from search.candidates import candidates, is_growing
from search.growth import Growth
from search.tree import ROOT


async def dvts(growth: Growth, subtrees: range) -> None:
    """Grows the given subtrees side by side, without waiting for one another."""
    async with asyncio.TaskGroup() as tasks:
        for subtree in subtrees:
            tasks.create_task(_grow_subtree(growth, subtree))


async def _grow_subtree(growth: Growth, subtree: int) -> None:
    node = ROOT
    while is_growing(growth, node):
        found = await candidates(growth, node, subtree, growth.config.branching)
        node = max(found, key=growth.score)
        growth.tree.keep([node], found)
    growth.tree.close(found)
    growth.tree.forget_ids(growth.tree.path(node))
