"""The published rules of compute-optimal-tts (arXiv 2502.06703, its repository); none of its code.

What differs from the clean rules of `best_of_n`, `beam` and `dvts` stands in docs/strategies.md. A
DVTS is N/M trees of width M that keep one node, a best of N is N trees of one whole solution.
Invariant: what is written, kept and returned is what its serial schedule gives; nodes of one depth
are expanded side by side.
"""

import asyncio
from dataclasses import replace
from typing import Any

from search.candidates import is_growing
from search.growth import Growth, not_scored
from search.protocols import Completion, StopReason
from search.tree import ROOT

WHOLE_TREE = 0
RETRIES = 3
BOX_MARK = "\\boxed"
NO_LIMIT = 1_000_000


async def beam(growth: Growth, subtrees: range) -> None:
    """One tree of width N that ends with at most N/M solutions."""
    del subtrees  # a beam is one whole
    config, own = growth.config, _ruled(growth, stop_at_boxed=True, box_mark=BOX_MARK)
    growth.tree.close(await _grow_tree(own, WHOLE_TREE, config.n, config.keep))


async def dvts(growth: Growth, subtrees: range) -> None:
    """A tree of width M for each subtree, which ends with one solution."""
    own = _ruled(growth, stop_at_boxed=True, box_mark=BOX_MARK)
    async with asyncio.TaskGroup() as tasks:
        for subtree in subtrees:
            tasks.create_task(_grow_subtree(own, subtree))


async def best_of_n(growth: Growth, subtrees: range) -> None:
    """Whole solutions; one that is cut off or empty is written once more, and then taken."""
    own = _ruled(growth, stop_at_boxed=False, max_steps=NO_LIMIT)
    async with asyncio.TaskGroup() as tasks:
        for sample in subtrees:
            tasks.create_task(_write_solution(own, sample))


def _ruled(growth: Growth, **limits: Any) -> Growth:
    """The same search under the limits of the published rule."""
    config = growth.config
    return replace(growth, config=replace(config, limits=replace(config.limits, **limits)))


async def _grow_subtree(growth: Growth, subtree: int) -> None:
    growth.tree.close(await _grow_tree(growth, subtree, growth.config.branching, 1))


async def _grow_tree(growth: Growth, subtree: int, width: int, keep: int) -> list[int]:
    """The nodes that ended among the best; each of them holds its place for good.

    A kept node after which nothing can be written ends the same way, unfinished.
    """
    tree, frontier, ended = growth.tree, [ROOT], list[int]()
    while frontier:
        growing = [node for node in frontier if is_growing(growth, node)]
        families = await _families(growth, growing, subtree, width, keep)
        ended += [node for node in frontier if not families.get(node)]
        written = [child for node in growing for child in families[node]]
        frontier = _best(growth, written, keep - len(ended))
        tree.keep(frontier, written)
    return ended


async def _families(
    growth: Growth, growing: list[int], subtree: int, width: int, keep: int
) -> dict[int, list[int]]:
    """The children of each node: N of the root, then N/keep of each."""
    async with asyncio.TaskGroup() as tasks:
        writing = {
            node: tasks.create_task(
                _children(growth, node, subtree, width if node == ROOT else width // keep)
            )
            for node in growing
        }
    return {node: family.result() for node, family in writing.items()}


def _best(growth: Growth, nodes: list[int], count: int) -> list[int]:
    """The best by score, then by their parents' scores, then in order."""

    def rank(node: int) -> tuple[float, float]:
        parent = growth.tree.parents[node]
        return growth.score(node), 0.0 if parent == ROOT else growth.score(parent)

    return sorted(nodes, key=rank, reverse=True)[:count]


async def _children(growth: Growth, node: int, subtree: int, n: int) -> list[int]:
    """The scored children that may be chosen; asked for again if there are none.

    At the root the second answer is taken as it is.
    """
    for attempt in range(2 if node == ROOT else 1 + RETRIES):
        expansion = await growth.sample(node, subtree, n, first=attempt * n)
        written = growth.put(node, subtree, not_scored(expansion), first=attempt * n)
        takes_all = node == ROOT and attempt == 1
        legal = written if takes_all else _legal(growth, written, expansion.completions)
        growth.tree.forget_ids(set(written) - set(legal))
        if legal:
            await growth.score_children(node, legal)
            return legal
    return []


def _legal(growth: Growth, written: list[int], completions: tuple[Completion, ...]) -> list[int]:
    """The first of equal steps, without empty ones and those that hit their token limit."""
    delimiter = growth.config.sampling.delimiter
    first: dict[str, int] = {}
    for node, completion in zip(written, completions, strict=True):
        text = completion.text.removesuffix(delimiter).strip()
        if text and completion.stop_reason is not StopReason.LENGTH:
            first.setdefault(text, node)
    return list(first.values())


async def _write_solution(growth: Growth, sample: int) -> None:
    tree, node = growth.tree, await growth.write(sample)
    if tree.stop_reason(node) is StopReason.MAX_TOKENS or not tree.text(node).strip():
        for step in tree.path(node):
            tree.kept[step] = 0
        node = await _write_again(growth, sample)
    tree.close([node])


async def _write_again(growth: Growth, sample: int) -> int:
    """A second solution beside the first one: its first step is the root's child 1."""
    draft = await growth.scored(ROOT, await growth.sample(ROOT, sample, 1, first=1))
    [node] = growth.put(ROOT, sample, draft, first=1)
    growth.tree.keep([node])
    while not growth.tree.ends_solution(node):
        [node] = await growth.expand(node, sample, 1)
        growth.tree.keep([node])
    growth.tree.forget_ids(growth.tree.path(node))
    return node
