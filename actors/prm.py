"""The PRM as a Serve deployment: one engine a replica, batches in, finished items out."""

import dataclasses
from collections.abc import AsyncIterator, Sequence

from actors.batching import answer_as_finished
from actors.engines import PRMEngine, load_prm_engine
from actors.replica import Replica
from actors.spec import ModelSpec
from actors.wire import ScoreItem, ScoreReply
from search.protocols import Score


class PRMReplica(Replica[PRMEngine]):
    """One replica; Serve makes as many as the recipe asks for (see cluster/deploy.py)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(load_prm_engine(spec))

    async def score_batch(self, items: Sequence[ScoreItem]) -> AsyncIterator[ScoreReply]:
        """Scores every item; yields each as soon as it is finished."""
        async for reply in answer_as_finished(items, self._score):
            yield reply

    async def _score(self, item: ScoreItem) -> Score:
        return dataclasses.replace(await self._engine.score(item), replica=self._name)
