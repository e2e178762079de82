"""What a strategy chooses from: single steps, or runs of steps, with what follows them or not.

By default a candidate is one step, scored as it stands. With `score_every` = g it is a run of g
steps that is scored once, at its end. With `lookahead` = k the PRM reads k greedy steps more, which
then are forgotten. Invariant: nodes are single steps, and only a candidate's last one has a reward.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from search.growth import Growth, not_scored
from search.protocols import Completion, PolicyPath, PRMPath
from search.token_ids import count_ids
from search.tree import ROOT, STEP_ENDS
from search.whole_solutions import end_of_step, step_tokens_left


@dataclass(frozen=True, slots=True)
class _Run:
    """A candidate: its last node, how many steps it has, and the texts that follow it."""

    node: int
    steps: int
    ahead: tuple[str, ...]


async def candidates(growth: Growth, parent: int, subtree: int, n: int) -> list[int]:
    """The last nodes of n candidates that go on from `parent`, scored and in order."""
    if growth.config.scores_each_step:
        return await growth.expand(parent, subtree, n)
    expansion = await growth.sample(parent, subtree, n)
    firsts = growth.put(parent, subtree, not_scored(expansion))
    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(_written(growth, first, subtree)) for first in firsts]
    runs = [each.result() for each in writing]
    paths = [_path(growth, run) for run in runs]
    wanted = [(run.node, path) for run, path in zip(runs, paths, strict=True) if path]
    await growth.score_paths([node for node, _ in wanted], [path for _, path in wanted])
    return [run.node for run in runs]


async def side_by_side(
    growth: Growth, widths: Sequence[tuple[int, int]], subtree: int
) -> list[list[int]]:
    """The candidates of several (parent, n), each parent's together and in order."""
    if not growth.config.scores_each_step:
        async with asyncio.TaskGroup() as tasks:
            found = [
                tasks.create_task(candidates(growth, parent, subtree, n)) for parent, n in widths
            ]
        return [each.result() for each in found]
    async with asyncio.TaskGroup() as tasks:
        drafts = [tasks.create_task(growth.draft(parent, subtree, n)) for parent, n in widths]
    # Put in only now, so that the order of nodes in the tree owes nothing to timing.
    pairs = zip(widths, drafts, strict=True)
    return [growth.put(parent, subtree, draft.result()) for (parent, _), draft in pairs]


async def _written(growth: Growth, node: int, subtree: int) -> _Run:
    """The rest of the run that begins with a node, and what follows it."""
    steps = 1
    while steps < growth.config.score_every and not growth.tree.ends_solution(node):
        expansion = await growth.sample(node, subtree, 1)
        [node] = growth.put(node, subtree, not_scored(expansion))
        steps += 1
    if growth.tree.ends_solution(node):
        return _Run(node, steps, ())
    return _Run(node, steps, tuple(await _look_ahead(growth, node, subtree)))


async def _look_ahead(growth: Growth, node: int, subtree: int) -> list[str]:
    """Up to `lookahead` greedy steps after a node; they end where its solution would."""
    config, tree = growth.config, growth.tree
    path, tokens, texts = tree.packed_ids(node), tree.tokens_so_far(node), list[str]()
    while len(texts) < config.lookahead:
        completion = await _greedy_step(growth, node, subtree, path, len(texts))
        texts.append(completion.text)
        depth = tree.depth(node) + len(texts) - 1
        before = tree.text(node) + "".join(texts[:-1])
        reason = end_of_step(config.limits, completion, tokens, depth, config.thinking, before)
        if reason not in STEP_ENDS:
            break
        path += completion.token_ids
        tokens += count_ids(completion.token_ids)
    return texts


async def _greedy_step(
    growth: Growth, node: int, subtree: int, path: bytes, ahead: int
) -> Completion:
    """One step after a path that is in no tree. A seed of its own: not every engine is greedy."""
    config = growth.config
    expansion = await growth.policy.expand(
        PolicyPath(growth.problem.text, path),
        1,
        replace(config.sampling, temperature=0.0),
        step_tokens_left(config.limits, count_ids(path)),
        growth.seed(node, subtree, f" ahead {ahead}"),
    )
    growth.check_expansion(expansion, node, 1)
    growth.budget.spend_lookahead(expansion)
    return expansion.completions[0]


def _path(growth: Growth, run: _Run) -> PRMPath | None:
    """What the PRM reads of a candidate, up to its last visible text; None if it wrote none."""
    delimiter, tree = growth.config.sampling.delimiter, growth.tree
    texts = [*(tree.texts[step] for step in tree.path(run.node)), *run.ahead]
    new = run.steps + len(run.ahead)
    while new and not texts[-1].strip():
        texts.pop()
        new -= 1
    if not new:
        return None
    steps = tuple(text.removesuffix(delimiter) for text in texts)
    return PRMPath(growth.problem.text, steps, texts[-1] != steps[-1], new)


def is_growing(growth: Growth, node: int) -> bool:
    """Whether steps may follow a node, or the root."""
    return node == ROOT or not growth.tree.ends_solution(node)
