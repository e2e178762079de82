"""The schedule of search-and-learn, re-created from its description; none of its code.

All beams of a problem write one step, then the PRM scores all of them, then the best go on. One
problem at a time for beam search, a batch of problems in one step for DVTS. Invariant: nothing is
scored while anything is written, and nothing is written while anything is scored.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.measured import Candidate, Found, Search, candidates_of, timed
from search.errors import first_cause
from search.growth import Draft, Growth
from search.protocols import PRMPath
from search.strategies.search_and_learn import best_in_pool, copies, in_pool_order
from search.tree import ROOT


class LockStepGrowth(Growth):
    """A tree whose steps are written and scored apart from each other."""

    __slots__ = ()

    async def sample_unscored(self, parent: int, subtree: int, n: int) -> list[int]:
        """Samples n children, not yet scored."""
        expansion = await self.sample(parent, subtree, n)
        return self.put(parent, subtree, Draft(expansion, (None,) * n))

    async def judge(self, nodes: list[int]) -> None:
        """Scores nodes in one call; an empty step has no score."""
        written = [node for node in nodes if self.tree.texts[node].strip()]
        if self.prm is None or not written:
            return
        scores = await self.prm.score([self._path(node) for node in written])
        self.budget.spend_scores(scores)
        for node, score in zip(written, scores, strict=True):
            self.tree.rewards[node] = score.reward
            self.tree.prm_tokens[node] = score.tokens_minimal

    def _path(self, node: int) -> PRMPath:
        delimiter = self.config.sampling.delimiter
        texts = [self.tree.texts[step] for step in self.tree.path(node)]
        steps = tuple(text.removesuffix(delimiter) for text in texts)
        return PRMPath(self.problem.text, steps, texts[-1].endswith(delimiter))

    def best(self, nodes: Sequence[int], count: int) -> list[int]:
        """The best by score; at equal scores the first."""
        return sorted(nodes, key=self.score, reverse=True)[:count]


async def beam(growths: Sequence[LockStepGrowth]) -> list[Found]:
    """One problem after the other."""
    return [await timed(growth.problem, beam_search(growth)) for growth in growths]


def beam_search(growth: LockStepGrowth) -> Search:
    """The beam search of one problem, to be timed."""
    return lambda _: _beam(growth)


async def _beam(growth: LockStepGrowth) -> list[Candidate]:
    """N steps at a time; a finished beam leaves the pool and its place goes to the others.

    Copies of one beam are asked for as one request of several samples. The first N that finished
    are the solutions, whatever their scores. The rule is that of `compat: search_and_learn`.
    """
    config, tree = growth.config, growth.tree
    active, completed = [ROOT], list[int]()
    while active:
        written = await _write_all(growth, copies(active, config.n))
        await growth.judge(written)
        completed += [node for node in written if tree.ends_solution(node)]
        going_on = [node for node in written if not tree.ends_solution(node)]
        active = best_in_pool(growth, going_on)
    return candidates_of(growth, completed[: config.n])


async def _write_all(growth: LockStepGrowth, shares: list[tuple[int, int]]) -> list[int]:
    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(growth.sample_unscored(node, 0, n)) for node, n in shares]
    return in_pool_order([each.result() for each in writing])


@dataclass(slots=True)
class _Subtree:
    """One subtree of one problem: its kept node, and the candidates of its last step."""

    growth: LockStepGrowth
    place: int
    node: int = ROOT
    candidates: tuple[int, ...] = ()

    @property
    def is_growing(self) -> bool:
        return self.node == ROOT or not self.growth.tree.ends_solution(self.node)

    async def write(self) -> None:
        branching = self.growth.config.branching
        self.candidates = tuple(await self.growth.sample_unscored(self.node, self.place, branching))

    def choose(self) -> None:
        [self.node] = self.growth.best(self.candidates, 1)


async def dvts(growths: Sequence[LockStepGrowth]) -> list[Found]:
    """One batch of problems: every subtree of all of them writes a step, then all are scored.

    All problems end when the last one does, for the batch is returned as one.
    """
    started, error = time.perf_counter(), ""
    subtrees = [_Subtree(growth, place) for growth in growths for place in _places(growth)]
    try:
        while growing := [each for each in subtrees if each.is_growing]:
            await _one_step(growing)
    except Exception as failure:
        cause = first_cause(failure)
        error = f"{type(cause).__name__}: {cause}"
    seconds = time.perf_counter() - started
    return [_found(growth, subtrees, seconds, error) for growth in growths]


def _places(growth: Growth) -> range:
    return range(growth.config.n // growth.config.branching)


async def _one_step(growing: Sequence[_Subtree]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for subtree in growing:
            tasks.create_task(subtree.write())
    async with asyncio.TaskGroup() as tasks:
        for subtree in growing:
            tasks.create_task(subtree.growth.judge(list(subtree.candidates)))
    for subtree in growing:
        subtree.choose()


def _found(
    growth: LockStepGrowth, subtrees: Sequence[_Subtree], seconds: float, error: str
) -> Found:
    nodes = [node for each in subtrees if each.growth is growth for node in each.candidates]
    candidates = () if error else tuple(candidates_of(growth, nodes))
    return Found(growth.problem.problem_id, seconds, candidates, error)
