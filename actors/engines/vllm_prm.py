"""A PRM of any family on vLLM, which computes only what its prefix cache has not.

A head on every token is asked for its rows, and the last one is the reward's; a causal model is
asked for the log-probabilities of its two tokens. Invariants: equal (prefix, step) pairs are
computed once, also while one of them is under way; a request nobody waits for is aborted.
"""

import dataclasses
import itertools
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, starmap
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.config import PoolerConfig
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from actors.engines.kv_store import path_key
from actors.engines.loading import load_config, load_tokenizer
from actors.engines.prm_model import class_of
from actors.engines.shared_requests import SharedRequests
from actors.engines.value_head_checkpoint import ARCHITECTURE, as_sequence_classifier
from actors.engines.vllm_engine import VllmEngine, last_output
from actors.engines.vllm_start import device_of, engine_lost, parameters_of, start_engine
from actors.prm_families import REWARDS_KEPT, reward_of
from actors.prm_layout import LaidOut, PRMLayout, too_long
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ScoreItem
from search.errors import PRMError
from search.protocols import Score

# Whole solutions that are written twice are rare but for very short ones.
CHAINS_KEPT = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class _Reading:
    """A reward, and the tokens that were computed for it."""

    reward: float
    tokens_computed: int


class VllmPRM(VllmEngine):
    """A process reward model served by vLLM."""

    def __init__(self, spec: ModelSpec) -> None:
        self._layout = PRMLayout(spec, load_tokenizer(spec))
        self._model_class = class_of(spec, self._layout.family)
        self._is_pair = self._layout.family.reading == "token_pair"
        role = {"runner": "generate"} if self._is_pair else pooling_arguments()
        super().__init__(spec, start_engine(_as_served(spec), **role))
        # One token is sampled after the last one, and needs its place.
        self._context = self._engine.model_config.max_model_len - self._is_pair
        self._readings: SharedRequests[_Reading] = SharedRequests(REWARDS_KEPT)
        self._chains: SharedRequests[list[_Reading]] = SharedRequests(CHAINS_KEPT)
        self._request_names = map(str, itertools.count())

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters_of(self._model_class, self._spec), device_of(self._spec))

    async def score(self, item: ScoreItem) -> Score:
        """The reward of the path's last step; raises PRMError if the path does not fit."""
        laid_out = self._layout.lay_out(item.path)
        before = _key(laid_out.ids[: len(laid_out.ids) - laid_out.new_tokens])

        async def read_in_turn() -> _Reading:
            # Steps of a solution that come together each find those before them in the cache.
            # One without a token has the key of the one before it, and waits for nothing.
            await self._readings.settled(before)
            return await self._read(self._fitting(laid_out.ids))

        with self._engine_is_there():
            key = _key(laid_out.ids)
            reading, bears_cost = await self._readings.once(key, read_in_turn)
        return _score(laid_out, reading, bears_cost)

    async def score_chain(self, items: Sequence[ScoreItem]) -> list[Score]:
        """The rewards of all steps of a solution, each path going on from the one before it."""
        laid_out = [self._layout.lay_out(item.path) for item in items]
        paths = [each.ids for each in laid_out]
        if self._is_pair or not all(starmap(_goes_on, pairwise(paths))):
            return [await self.score(item) for item in items]
        with self._engine_is_there():
            key = b"".join(map(_key, paths))
            found = await self._chains.once(key, lambda: self._read_chain(paths))
        readings, bears_cost = found
        pairs = zip(laid_out, readings, strict=True)
        return [_score(each, reading, bears_cost) for each, reading in pairs]

    async def forget(self) -> None:
        """Empties the prefix cache and forgets all readings."""
        self._readings.forget()
        self._chains.forget()
        await super().forget()

    @contextmanager
    def _engine_is_there(self) -> Iterator[None]:
        try:
            yield
        except EngineDeadError as error:
            raise engine_lost(self._spec, error) from error

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) > self._context:
            raise too_long(len(ids), self._context)
        return ids

    async def _read(self, ids: list[int]) -> _Reading:
        if self._is_pair:
            return await self._read_pair(ids)
        rows = await self._rows(ids)
        return _Reading(self._reward(rows[-1]), len(rows))

    async def _read_chain(self, paths: list[list[int]]) -> list[_Reading]:
        """All paths by one request for the longest; alone those whose row came from the cache."""
        rows = await self._rows(self._fitting(paths[-1]))
        first, before = len(paths[-1]) - len(rows), len(paths[-1]) - len(rows)
        readings = []
        for ids in paths:
            if len(ids) > first:
                reading = _Reading(self._reward(rows[len(ids) - 1 - first]), len(ids) - before)
                self._readings.keep(_key(ids), reading)
                before = len(ids)
            else:
                reading, _ = await self._readings.once(_key(ids), partial(self._read, ids))
            readings.append(reading)
        return readings

    def _reward(self, row: Any) -> float:
        return reward_of(self._layout.family, row.double().tolist())

    async def _rows(self, ids: list[int]) -> Any:
        """vLLM returns a row for every token it computed, so the last is the last token's."""
        params = PoolingParams(
            task="token_classify", use_activation=False, skip_reading_prefix_cache=False
        )
        prompt, name = tokens_input(ids), next(self._request_names)
        output = await last_output(self._engine.encode(prompt, params, name), PRMError)
        return output.outputs.data

    async def _read_pair(self, ids: list[int]) -> _Reading:
        """The two log-probabilities differ from the logits by the same number."""
        pair = self._layout.token_pair
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(pair),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt, name = tokens_input(ids), next(self._request_names)
        output = await last_output(self._engine.generate(prompt, params, name), PRMError)
        logprobs = next(iter(output.outputs[0].logprobs or ()), None)
        if logprobs is None:
            raise PRMError("vLLM ended a request without log-probabilities")
        reward = reward_of(self._layout.family, [logprobs[token].logprob for token in pair])
        return _Reading(reward, len(ids) - (output.num_cached_tokens or 0))


def _score(laid_out: LaidOut, reading: _Reading, bears_cost: bool) -> Score:
    computed = reading.tokens_computed if bears_cost else 0
    return Score(reading.reward, computed, laid_out.new_tokens)


def _goes_on(before: list[int], ids: list[int]) -> bool:
    return len(before) < len(ids) and ids[: len(before)] == before


def _key(ids: list[int]) -> bytes:
    return path_key(array("q", ids).tobytes())


def pooling_arguments() -> dict[str, Any]:
    """What a head on every token needs; other poolings read no prefix cache."""
    return {
        "runner": "pooling",
        "pooler_config": PoolerConfig(task="token_classify", tok_pooling_type="ALL"),
    }


def _as_served(spec: ModelSpec) -> ModelSpec:
    """The checkpoint under an architecture that vLLM knows."""
    if ARCHITECTURE in (load_config(spec).architectures or []):
        return dataclasses.replace(spec, model=as_sequence_classifier(spec.model))
    return spec
