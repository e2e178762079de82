"""Best of N: N independent solutions; the PRM scores every step, the vote comes later."""

import asyncio

from search.growth import Growth
from search.tree import ROOT


async def best_of_n(growth: Growth, subtrees: range) -> None:
    """Writes one solution in each of the given subtrees (sample i is subtree i)."""
    async with asyncio.TaskGroup() as tasks:
        for sample in subtrees:
            tasks.create_task(_write_solution(growth, sample))


async def _write_solution(growth: Growth, sample: int) -> None:
    node = ROOT
    while node == ROOT or not growth.tree.ends_solution(node):
        [node] = await growth.expand(node, sample, 1)
        growth.tree.keep([node])
    growth.tree.close([node])
    growth.tree.forget_ids(growth.tree.path(node))
