"""The PRM as a Serve deployment: one engine a replica, batches in, finished items out."""

from collections.abc import AsyncIterator, Sequence
from itertools import accumulate

from actors.batching import answer_as_finished
from actors.chains import chain_reader, chains
from actors.engines import PRMEngine, load_prm_engine
from actors.replica import Replica
from actors.spec import ModelSpec
from actors.wire import Failure, ScoreItem, ScoreReply
from search.errors import first_cause
from search.protocols import Score


class PRMReplica(Replica[PRMEngine]):
    """One replica; Serve makes as many as the recipe asks for (see cluster/deploy.py)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(load_prm_engine(spec), "prm", spec.max_batch, self.score_batch)
        self._read = chain_reader(self._engine)

    async def score_batch(self, items: Sequence[ScoreItem]) -> AsyncIterator[ScoreReply]:
        """Scores every item; yields each as soon as it is finished, those of a chain together."""
        parts = list(chains(items))
        starts = list(accumulate(map(len, parts), initial=0))
        async for reply in answer_as_finished(parts, self._scores, self._load.add):
            yield [
                (starts[place] + step, _of_step(result, step))
                for place, result in reply
                for step in range(len(parts[place]))
            ]

    async def _scores(self, chain: Sequence[ScoreItem]) -> list[Score]:
        with self._under_way(len(chain)):
            found = await self._read(chain)
        return [score.by(self._name) for score in found]


def _of_step(result: list[Score] | Failure, step: int) -> Score | Failure:
    """A chain of which one item fails has failed, and says why once for each."""
    if isinstance(result, Failure):
        error = first_cause(result.error)
        return Failure(error) if isinstance(error, Exception) else result
    return result[step]
