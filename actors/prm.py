"""The PRM as a Serve deployment: one engine a replica, batches in, finished items out."""

from collections.abc import AsyncIterator, Sequence

from actors.batching import answer_as_finished
from actors.engines import load_prm_engine
from actors.replica import replica_name
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ScoreItem, ScoreReply
from search.protocols import Score


class PRMReplica:
    """One replica; Serve makes as many as the recipe asks for (see cluster/deploy.py)."""

    def __init__(self, spec: ModelSpec) -> None:
        self._engine = load_prm_engine(spec)
        self._name = replica_name()

    def facts(self) -> ModelFacts:
        """Parameters and device of the loaded model."""
        facts = self._engine.facts()
        return ModelFacts(facts.parameters, facts.device, self._name)

    def check_health(self) -> None:
        """Called by Serve; a replica whose engine broke raises here and is replaced."""
        self._engine.check_health()

    async def score_batch(self, items: Sequence[ScoreItem]) -> AsyncIterator[ScoreReply]:
        """Scores every item; yields each as soon as it is finished."""
        async for reply in answer_as_finished(items, self._score):
            yield reply

    async def _score(self, item: ScoreItem) -> Score:
        found = await self._engine.score(item)
        return Score(found.reward, found.tokens_computed, found.tokens_minimal, self._name)
