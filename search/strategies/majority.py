"""Majority (self-consistency, arXiv 2203.11171): N independent solutions, no PRM at all."""

from search.growth import Growth
from search.strategies.best_of_n import best_of_n


async def majority(growth: Growth, subtrees: range) -> None:
    """Samples like best of N; the registry gives it no PRM, so nothing is scored."""
    await best_of_n(growth, subtrees)
