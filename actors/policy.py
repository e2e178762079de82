"""The policy as a Serve deployment: one engine a replica, batches in, finished items out."""

import dataclasses
from collections.abc import AsyncIterator, Sequence

from actors.batching import answer_as_finished
from actors.engines import PolicyEngine, load_policy_engine
from actors.replica import Replica
from actors.spec import ModelSpec
from actors.wire import ExpandItem, ExpandReply
from search.protocols import Expansion


class PolicyReplica(Replica[PolicyEngine]):
    """One replica; Serve makes as many as the recipe asks for (see cluster/deploy.py)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(load_policy_engine(spec))

    async def expand_batch(self, items: Sequence[ExpandItem]) -> AsyncIterator[ExpandReply]:
        """Expands every item; yields each as soon as it is finished."""
        async for reply in answer_as_finished(items, self._expand):
            yield reply

    async def _expand(self, item: ExpandItem) -> Expansion:
        return dataclasses.replace(await self._engine.expand(item), replica=self._name)
