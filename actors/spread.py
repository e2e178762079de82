"""One search over several replicas: a step goes on where it was written, unless too much is there.

A search too large for one replica is spread, so that what goes on from a path mostly meets that
path's prefix in the cache. Invariant: only where a request runs is decided here, never what it
is answered.
"""

import asyncio
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from search.protocols import (
    PRM,
    Expansion,
    Policy,
    PolicyPath,
    PRMPath,
    Sampling,
    Score,
)
from search.whole_solutions import SolutionRequest, write_solution

# A replica may be ahead of the idlest one by this many requests before work leaves its prefixes.
LEAD = 2
# A request with this many items for each replica is divided over them: the first steps of a beam.
DIVIDED = 4


class Homes:
    """Which replica has the state of which path, and how much each has under way."""

    def __init__(self, replicas: int) -> None:
        self._under_way = [0] * replicas
        self._homes: dict[int, int] = {}

    def place(self, path: Hashable, items: int) -> int:
        """The replica that wrote the path, or the idlest one if that is too far behind."""
        idlest = min(range(len(self._under_way)), key=self._under_way.__getitem__)
        home = self._homes.get(hash(path), idlest)
        ahead = self._under_way[home] - self._under_way[idlest]
        return idlest if ahead > LEAD * items else home

    @contextmanager
    def busy(self, replica: int, items: int) -> Iterator[None]:
        self._under_way[replica] += items
        try:
            yield
        finally:
            self._under_way[replica] -= items

    def settle(self, path: Hashable, replica: int) -> None:
        """What goes on from this path will find it there."""
        self._homes[hash(path)] = replica

    def divided(self, items: int, first: int = 0) -> list[tuple[int, int]]:
        """Ranges of items for each replica, or all in one range if they are few."""
        replicas = len(self._under_way)
        parts = replicas if items >= DIVIDED * replicas else 1
        return list(pairwise(first + items * part // parts for part in range(parts + 1)))


class SpreadPolicy:
    """The policy protocol over the policies of several replicas."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies, self._homes = policies, Homes(len(policies))

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """See `search.protocols.Policy`."""
        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(
                    self._on_one(path, stop - start, sampling, max_tokens, seed, start)
                )
                for start, stop in self._homes.divided(n, first)
            ]
        return _joined([part.result() for part in parts])

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """See `search.whole_solutions.WritesSolutions`."""
        replica = self._homes.place(request, 1)
        with self._homes.busy(replica, 1):
            return await write_solution(self._policies[replica], request)

    async def _on_one(
        self, path: PolicyPath, n: int, sampling: Sampling, max_tokens: int, seed: int, first: int
    ) -> Expansion:
        replica = self._homes.place((path.problem, path.token_ids), n)
        with self._homes.busy(replica, n):
            policy = self._policies[replica]
            expansion = await policy.expand(path, n, sampling, max_tokens, seed, first)
        for completion in expansion.completions:
            self._homes.settle((path.problem, path.token_ids + completion.token_ids), replica)
        return expansion


def _joined(parts: Sequence[Expansion]) -> Expansion:
    if len(parts) == 1:
        return parts[0]
    return Expansion(
        tuple(completion for part in parts for completion in part.completions),
        sum(part.prefix_tokens for part in parts),
        sum(part.prefix_tokens_computed for part in parts),
        parts[-1].replica,
    )


class SpreadPRM:
    """The PRM protocol over the PRMs of several replicas."""

    def __init__(self, prms: Sequence[PRM]) -> None:
        self._prms, self._homes = prms, Homes(len(prms))

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """See `search.protocols.PRM`."""
        # The steps of one solution, one below the other, stay together.
        siblings = len({len(path.steps) for path in paths}) == 1
        ranges = self._homes.divided(len(paths)) if siblings else [(0, len(paths))]
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(self._on_one(paths[start:stop])) for start, stop in ranges]
        return [score for part in parts for score in part.result()]

    async def _on_one(self, paths: Sequence[PRMPath]) -> list[Score]:
        """Paths of one call go on from the same one."""
        replica = self._homes.place((paths[0].problem, paths[0].steps[:-1]), len(paths))
        with self._homes.busy(replica, len(paths)):
            scores = await self._prms[replica].score(paths)
        for path in paths:
            self._homes.settle((path.problem, path.steps), replica)
        return scores


def spread_policy(policies: Sequence[Policy]) -> Policy:
    """One policy over all of these, one or more."""
    return policies[0] if len(policies) == 1 else SpreadPolicy(policies)


def spread_prm(prms: Sequence[PRM]) -> PRM:
    """One PRM over all of these, one or more."""
    return prms[0] if len(prms) == 1 else SpreadPRM(prms)
