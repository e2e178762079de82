"""The published rules of search-and-learn (Hugging Face, 2024); none of its code.

What differs from the clean rules of `best_of_n`, `beam` and `dvts` stands in docs/strategies.md.
`max_steps` is its `num_iterations`, `max_step_tokens` its `max_tokens`. Invariant: what is
written, kept and returned is what its lock-step schedule gives; when is left to the event loop.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from search.candidates import candidates, is_growing
from search.config import CompatOption
from search.growth import Growth
from search.strategies.best_of_n import best_of_n as write_solutions
from search.tree import ROOT

WHOLE_TREE = 0
# Iterations are counted here; the last one writes to the end, in as many steps as that takes.
NO_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class _Ruled:
    """A search under the limits of the published rule, and the iterations that it may have."""

    growth: Growth
    iterations: int

    def is_last(self, node: int) -> bool:
        """Whether what follows a node is written in the last iteration."""
        return self.growth.tree.depth(node) + 1 >= self.iterations


def _ruled(growth: Growth, **limits: Any) -> _Ruled:
    config = growth.config
    changed = replace(config.limits, max_steps=NO_LIMIT, **limits)
    own = replace(growth, config=replace(config, limits=changed))
    return _Ruled(own, config.limits.max_steps)


async def best_of_n(growth: Growth, subtrees: range) -> None:
    """Whole solutions that nothing ends but the end of text and the token limit."""
    await write_solutions(_ruled(growth, stop_at_boxed=False).growth, subtrees)


async def dvts(growth: Growth, subtrees: range) -> None:
    """Each subtree keeps the best of M, the first of equal ones, until it ends or holds a box."""
    own = _ruled(growth, stop_at_boxed=True, box_mark="boxed{", cut_step_ends=True)
    async with asyncio.TaskGroup() as tasks:
        for subtree in subtrees:
            tasks.create_task(_grow_subtree(own, subtree))


async def _grow_subtree(own: _Ruled, subtree: int) -> None:
    growth, node, found = own.growth, ROOT, list[int]()
    while is_growing(growth, node):
        found = await _iteration(own, node, subtree, growth.config.branching)
        node = max(found, key=growth.score)
        growth.tree.keep([node], found)
    growth.tree.close(found)
    growth.tree.forget_ids(growth.tree.path(node))


async def beam(growth: Growth, subtrees: range) -> None:
    """N beams a step; a finished one leaves the pool, and its place goes to the others.

    The first N that finished are the solutions, whatever their scores, or the best N; there are
    never fewer, for in the last round all N finish. The best of those that go on are kept.
    Lookahead is not looked at.
    """
    del subtrees  # a beam is one whole
    blind = replace(growth, config=replace(growth.config, lookahead=0))
    own = _ruled(blind, stop_at_boxed=False, cut_step_ends=True)
    tree, active, completed = growth.tree, [ROOT], list[int]()
    while active:
        written = await _pool(own, active)
        completed += [node for node in written if tree.ends_solution(node)]
        going_on = [node for node in written if not tree.ends_solution(node)]
        active = best_in_pool(growth, _told_apart(growth, going_on))
        tree.keep(active, going_on)
    if CompatOption.SORT_COMPLETED in growth.config.compat_options:
        completed.sort(key=growth.score, reverse=True)
    solutions = completed[: growth.config.n]
    tree.keep(solutions)
    tree.close(solutions)


def _told_apart(growth: Growth, going_on: list[int]) -> list[int]:
    """Without beams whose whole text an earlier one has, if the search is to leave them out."""
    if CompatOption.FILTER_DUPLICATES not in growth.config.compat_options:
        return going_on
    first: dict[str, int] = {}
    for node in going_on:
        first.setdefault(growth.tree.text(node), node)
    return list(first.values())


async def _pool(own: _Ruled, active: list[int]) -> list[int]:
    """One iteration: every beam of the pool with a step more, in the order of the pool."""
    async with asyncio.TaskGroup() as tasks:
        writing = [
            tasks.create_task(_iteration(own, node, WHOLE_TREE, share))
            for node, share in copies(active, own.growth.config.n)
        ]
    return in_pool_order([family.result() for family in writing])


def copies(active: list[int], n: int) -> list[tuple[int, int]]:
    """How often each survivor stands in the pool: they are repeated in turn until there are n."""
    each, more = divmod(n, len(active))
    return [(node, each + (place < more)) for place, node in enumerate(active)]


def in_pool_order(families: list[list[int]]) -> list[int]:
    """Children as their parents stand in the pool: of every one's first copy, then the second."""
    rounds = range(max(map(len, families)))
    return [family[copy] for copy in rounds for family in families if copy < len(family)]


def best_in_pool(growth: Growth, going_on: list[int]) -> list[int]:
    """The N/M best in the order in which they stand; of equal scores the later ones.

    There they are the end of an ascending sort, whose order of equal scores is left open.
    """
    ascending = sorted(range(len(going_on)), key=lambda place: growth.score(going_on[place]))
    return [going_on[place] for place in sorted(ascending[-growth.config.keep :])]


async def _iteration(own: _Ruled, node: int, subtree: int, n: int) -> list[int]:
    """n scored candidates after a node: a step each, or in the last iteration all that is left."""
    if not own.is_last(node):
        return await candidates(own.growth, node, subtree, n)
    growth = _last_call(own.growth, node)
    firsts = await growth.expand(node, subtree, n)
    async with asyncio.TaskGroup() as tasks:
        ends = [tasks.create_task(_written_out(growth, first, subtree)) for first in firsts]
    return [end.result() for end in ends]


def _last_call(growth: Growth, node: int) -> Growth:
    """The last iteration is one call without a delimiter: all its steps share one token limit."""
    limits = growth.config.limits
    most = growth.tree.tokens_so_far(node) + limits.max_step_tokens
    limits = replace(limits, max_solution_tokens=min(most, limits.max_solution_tokens))
    return replace(growth, config=replace(growth.config, limits=limits))


async def _written_out(growth: Growth, node: int, subtree: int) -> int:
    while is_growing(growth, node):
        [node] = await growth.expand(node, subtree, 1)
    return node
