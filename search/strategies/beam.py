"""Beam search over steps (arXiv 2408.03314, section 3.2): the one search with a barrier.

N candidates at the first step; the N/M best are kept and expanded M times each. A finished
solution keeps its place among the candidates and is never expanded. With slots for it, the
children of likely steps are written while their rivals are; the tree is the same (`search.drafts`).
Where a candidate is more than one step, nothing is written early.
"""

from collections.abc import Awaitable, Callable

from search.candidates import side_by_side
from search.drafts import Drafts
from search.growth import Growth, unfinished
from search.speculation import Widths
from search.tree import ROOT

WHOLE_TREE = 0


async def beam(growth: Growth, subtrees: range) -> None:
    """Grows one tree until all kept nodes are finished; up to N finished candidates count."""
    del subtrees  # a beam is one whole: its candidates compete across the tree
    config = growth.config
    if not growth.slots or not config.scores_each_step:
        await _grow(growth, lambda kept: _children_of(growth, kept))
        return
    async with Drafts(growth, Widths(config.n, config.branching, config.keep)) as drafts:
        await _grow(growth, drafts.children_of)


async def _grow(growth: Growth, children_of: Callable[[list[int]], Awaitable[list[int]]]) -> None:
    tree = growth.tree
    candidates = await children_of([ROOT])
    kept = _keep_best(growth, candidates)
    while unfinished(tree, kept):
        finished = [node for node in kept if tree.ends_solution(node)]
        candidates = finished + await children_of(kept)
        kept = _keep_best(growth, candidates)
    tree.close([node for node in candidates if tree.ends_solution(node)])


def _keep_best(growth: Growth, candidates: list[int]) -> list[int]:
    """The N/M best by score; at equal scores finished ones first, then by parent and place."""
    ranked = sorted(candidates, key=growth.score, reverse=True)
    kept = ranked[: growth.config.keep]
    growth.tree.keep(kept, candidates)
    return kept


async def _children_of(growth: Growth, kept: list[int]) -> list[int]:
    """All children of those kept nodes that may have any, in the order of their parents."""
    config = growth.config
    if kept[0] == ROOT:
        widths = [(ROOT, config.n)]
    else:
        widths = [(node, config.branching) for node in unfinished(growth.tree, kept)]
    families = await side_by_side(growth, widths, WHOLE_TREE)
    return [child for family in families for child in family]
