"""The policy as a Serve deployment: one engine a replica, batches in, finished items out.

Invariant: a request that was given up is cancelled in the engine, and no other is.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from actors.batching import answer_as_finished
from actors.engines import PolicyEngine, load_policy_engine
from actors.replica import Replica
from actors.spec import ModelSpec
from actors.wire import ExpandItem, ExpandReply, GiveUp, PolicyItem, Written
from search.errors import PolicyError
from search.protocols import Expansion, PolicyPath, Sampling
from search.whole_solutions import SolutionRequest, WritesSolutions, step_by_step


class PolicyReplica(Replica[PolicyEngine]):
    """One replica; Serve makes as many as the recipe asks for (see cluster/deploy.py)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(load_policy_engine(spec), spec.name, spec.max_batch, self.expand_batch)
        engine = self._engine
        self._writer = engine if isinstance(engine, WritesSolutions) else None
        self._may_be_given_up: dict[str, asyncio.Task[Expansion]] = {}

    async def expand_batch(self, items: Sequence[PolicyItem]) -> AsyncIterator[ExpandReply]:
        """Expands every item; yields each as soon as it is finished."""
        async for reply in answer_as_finished(items, self._answer, self._load.add):
            yield reply

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """The engine as a `search.protocols.Policy`, for what is written here step by step."""
        return await self._expand(ExpandItem(path, n, sampling, max_tokens, seed, first))

    async def _answer(self, item: PolicyItem) -> Written:
        if isinstance(item, SolutionRequest):
            return await self._write(item)
        if isinstance(item, GiveUp):
            return self._give_up(item)
        if not item.ticket:
            return await self._expand(item)
        return await self._expand_unless_given_up(item)

    async def _write(self, request: SolutionRequest) -> list[Expansion]:
        """In one piece if the engine can."""
        if self._writer is None:
            return await step_by_step(self, request)
        with self._under_way(1):
            steps = await self._writer.write(request)
        return [step.by(self._name) for step in steps]

    async def _expand(self, item: ExpandItem) -> Expansion:
        with self._under_way(item.n):
            return (await self._engine.expand(item)).by(self._name)

    async def _expand_unless_given_up(self, item: ExpandItem) -> Expansion:
        work = self._may_be_given_up[item.ticket] = asyncio.create_task(self._expand(item))
        try:
            return await work
        except asyncio.CancelledError:
            if item.ticket in self._may_be_given_up:
                raise
            raise PolicyError("the request was given up") from None
        finally:
            if self._may_be_given_up.get(item.ticket) is work:
                del self._may_be_given_up[item.ticket]

    def _give_up(self, item: GiveUp) -> Expansion:
        work = self._may_be_given_up.pop(item.ticket, None)
        if work is not None:
            work.cancel()
        return Expansion((), 0, 0, self._name)
