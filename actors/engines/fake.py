"""Engines without a model: seeded, deterministic, with latency and faults on request.

Used by tests, by benchmarks of everything but the engine, and for planning. A recipe's
`options` are those of `search.scripted.SeededPolicy` and `SeededPRM`, the faults below, and, to
take as long as a real engine, those of `search.simulated.EngineTiming`. With `ledger`, a folder,
they write down there what they were asked and what they answered (`actors.engines.ledger`).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.engines.ledger import Ledger
from actors.load import EngineLoad
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ExpandItem, ScoreItem
from search.errors import RecipeError
from search.protocols import Expansion, Score
from search.scripted import SeededPolicy, SeededPRM
from search.seeds import derive_seed
from search.simulated import EngineTiming, SimulatedEngine, SimulatedPolicy, SimulatedPRM
from search.token_ids import count_ids

TIMES = ("iteration_s", "sequence_s", "prompt_token_s")
_DRAWS = 1_000_000


class FakePolicy:
    """Writes right or wrong steps at random, from the seed it is given.

    `empty_share`: the share of calls, chosen by seed, that return nothing at all.
    """

    def __init__(self, spec: ModelSpec) -> None:
        options = spec.engine_options()
        self._ledger = Ledger("policy", options.pop("ledger", ""))
        self._empty_share = float(options.pop("empty_share", 0.0))
        engine = _engine(spec, options, "policy")
        policy = _built(SeededPolicy, options, "policy")
        self._policy = SimulatedPolicy(policy, engine) if engine else policy
        self._engine = engine

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters=0, device="none")

    def check_health(self) -> None:
        """Nothing here can break."""

    def load(self) -> EngineLoad:
        """What is in the simulated batch; without one nothing ever is."""
        return _load(self._engine)

    async def expand(self, item: ExpandItem) -> Expansion:
        key = self._ledger.asked(item.path, item.n, item.seed, item.first)
        found: Expansion = await self._policy.expand(
            item.path, item.n, item.sampling, item.max_tokens, item.seed, item.first
        )
        self._ledger.answered(key, (count_ids(each.token_ids) for each in found.completions))
        if _chosen(self._empty_share, item.seed):
            return dataclasses.replace(found, completions=())
        return found


class FakePRM:
    """Rewards are noisy truth about the fake policy's steps.

    `nan_share`: the share of steps, chosen by their text, whose reward is not a number.
    `nan_while`: a file; while it is there, no reward is a number.
    """

    def __init__(self, spec: ModelSpec) -> None:
        options = spec.engine_options()
        self._ledger = Ledger("prm", options.pop("ledger", ""))
        self._nan_share = float(options.pop("nan_share", 0.0))
        nan_while = options.pop("nan_while", "")
        self._nan_while = Path(nan_while) if nan_while else None
        engine = _engine(spec, options, "prm")
        prm = _built(SeededPRM, options, "prm")
        self._prm = SimulatedPRM(prm, engine) if engine else prm
        self._engine = engine

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters=0, device="none")

    def check_health(self) -> None:
        """Nothing here can break."""

    def load(self) -> EngineLoad:
        """As of `FakePolicy`."""
        return _load(self._engine)

    async def score(self, item: ScoreItem) -> Score:
        key = self._ledger.asked(item.path)
        [score] = await self._prm.score([item.path])
        self._ledger.answered(key, [score.tokens_minimal])
        if self._is_garbage() or _chosen(self._nan_share, *item.path.steps):
            return dataclasses.replace(score, reward=math.nan)
        return score

    def _is_garbage(self) -> bool:
        return self._nan_while is not None and self._nan_while.exists()


def _engine(spec: ModelSpec, options: dict[str, Any], role: str) -> SimulatedEngine | None:
    """What takes time, if the recipe says how long."""
    times = {key: options.pop(key) for key in TIMES if key in options}
    if not times:
        return None
    return SimulatedEngine(_built(EngineTiming, times | {"max_batch": spec.max_batch}, role))


def _load(engine: SimulatedEngine | None) -> EngineLoad:
    return EngineLoad(*engine.load) if engine else EngineLoad(0, 0)


def _built(kind: type[Any], options: Mapping[str, Any], role: str) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the fake {role} does not take these options: {error}") from error


def _chosen(share: float, *parts: str | int) -> bool:
    """Whether a call falls into a share of all calls, by what it is about."""
    return share > 0 and derive_seed(*parts) % _DRAWS < share * _DRAWS
