"""Best of N: N independent solutions; the PRM scores every step, the vote comes later."""

import asyncio

from search.growth import Growth


async def best_of_n(growth: Growth, subtrees: range) -> None:
    """Writes one solution in each of the given subtrees (sample i is subtree i)."""
    async with asyncio.TaskGroup() as tasks:
        for sample in subtrees:
            tasks.create_task(_write_solution(growth, sample))


async def _write_solution(growth: Growth, sample: int) -> None:
    growth.tree.close([await growth.write(sample)])
