"""The schedule of compute-optimal-tts, re-created from its description; none of its code.

Within a tree one node after the other: its children are written, then scored, then the next
node's turn comes. What runs side by side are trees, twelve of them. Invariant: a tree has at
most one call under way.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.peers.lock_step import LockStepGrowth
from benchmarks.peers.measured import Candidate, Found, candidates_of, timed
from search.problem import Problem
from search.tree import ROOT

TREES_SIDE_BY_SIDE = 12
SCORING_CALLS_SIDE_BY_SIDE = 5
WHOLE_TREE = 0


async def beam(growths: Sequence[LockStepGrowth]) -> list[Found]:
    """One tree of width N a problem, which ends with at most N/M solutions."""
    free = asyncio.Semaphore(TREES_SIDE_BY_SIDE)

    async def one(growth: LockStepGrowth) -> Found:
        async with free:
            return await timed(growth.problem, lambda _: _beam(growth))

    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(one(growth)) for growth in growths]
    return [each.result() for each in found]


async def dvts(growths: Sequence[LockStepGrowth]) -> list[Found]:
    """N/M trees of width M a problem, one solution each, every tree a search of its own."""
    free = asyncio.Semaphore(TREES_SIDE_BY_SIDE)
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(_dvts(growth, free)) for growth in growths]
    return [each.result() for each in found]


async def _beam(growth: LockStepGrowth) -> list[Candidate]:
    config = growth.config
    return candidates_of(growth, await _tree(growth, WHOLE_TREE, config.n, config.keep))


async def _dvts(growth: LockStepGrowth, free: asyncio.Semaphore) -> Found:
    """Seconds run from the start of the problem's first tree."""
    config, asked_at, starts = growth.config, time.perf_counter(), list[float]()

    async def one(subtree: int) -> list[int]:
        async with free:
            starts.append(time.perf_counter())
            return await _tree(growth, subtree, config.branching, 1)

    async def search(_: Problem) -> list[Candidate]:
        places = range(config.n // config.branching)
        async with asyncio.TaskGroup() as tasks:
            trees = [tasks.create_task(one(place)) for place in places]
        return candidates_of(growth, [node for tree in trees for node in tree.result()])

    found = await timed(growth.problem, search)
    return replace(found, seconds=found.seconds - (min(starts) - asked_at))


async def _tree(growth: LockStepGrowth, subtree: int, width: int, keep: int) -> list[int]:
    """A finished node that is among the best keeps its place for good."""
    frontier, ended = [ROOT], list[int]()
    while frontier:
        candidates: list[int] = []
        for node in frontier:
            share = width if node == ROOT else width // keep
            candidates += await _children(growth, node, subtree, share)
        kept = growth.best(candidates, keep - len(ended))
        ended += [node for node in kept if growth.tree.ends_solution(node)]
        frontier = [node for node in kept if not growth.tree.ends_solution(node)]
    return ended


async def _children(growth: LockStepGrowth, node: int, subtree: int, n: int) -> list[int]:
    """A node's children, equal ones once, scored in one call."""
    written = await growth.sample_unscored(node, subtree, n)
    first = {growth.tree.texts[child]: child for child in reversed(written)}
    different = sorted(first.values())
    await growth.judge(different)
    return different
