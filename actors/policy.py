"""The policy as a Serve deployment: one engine a replica, batches in, finished items out."""

from collections.abc import AsyncIterator, Sequence

from actors.batching import answer_as_finished
from actors.engines import load_policy_engine
from actors.replica import replica_name
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ExpandItem, ExpandReply
from search.protocols import Expansion


class PolicyReplica:
    """One replica; Serve makes as many as the recipe asks for (see cluster/deploy.py)."""

    def __init__(self, spec: ModelSpec) -> None:
        self._engine = load_policy_engine(spec)
        self._name = replica_name()

    def facts(self) -> ModelFacts:
        """Parameters and device of the loaded model."""
        facts = self._engine.facts()
        return ModelFacts(facts.parameters, facts.device, self._name)

    def check_health(self) -> None:
        """Called by Serve; a replica whose engine broke raises here and is replaced."""
        self._engine.check_health()

    async def expand_batch(self, items: Sequence[ExpandItem]) -> AsyncIterator[ExpandReply]:
        """Expands every item; yields each as soon as it is finished."""
        async for reply in answer_as_finished(items, self._expand):
            yield reply

    async def _expand(self, item: ExpandItem) -> Expansion:
        found = await self._engine.expand(item)
        return Expansion(
            found.completions, found.prefix_tokens, found.prefix_tokens_computed, self._name
        )
