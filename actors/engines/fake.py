"""Scripted engines without a model: seeded, deterministic, with latency on request.

Used by tests, by benchmarks of everything but the engine, and for planning. The recipe's
`options` are those of `search.scripted.SeededPolicy` and `SeededPRM`.
"""

from actors.spec import ModelFacts, ModelSpec
from actors.wire import ExpandItem, ScoreItem
from search.protocols import Expansion, Score
from search.scripted import SeededPolicy, SeededPRM


class FakePolicy:
    """A policy that writes right or wrong steps at random, from the seed it is given."""

    def __init__(self, spec: ModelSpec) -> None:
        self._policy = SeededPolicy(**spec.options)

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters=0, device="none")

    def check_health(self) -> None:
        """Nothing here can break."""

    async def expand(self, item: ExpandItem) -> Expansion:
        return await self._policy.expand(
            item.path, item.n, item.sampling, item.max_tokens, item.seed
        )


class FakePRM:
    """A PRM whose rewards are noisy truth about the fake policy's steps."""

    def __init__(self, spec: ModelSpec) -> None:
        self._prm = SeededPRM(**spec.options)

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters=0, device="none")

    def check_health(self) -> None:
        """Nothing here can break."""

    async def score(self, item: ScoreItem) -> Score:
        [score] = await self._prm.score([item.path])
        return score
