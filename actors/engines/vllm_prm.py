"""A PRM of any family on vLLM, which computes only what its prefix cache has not.

A head on every token is asked for its rows, and the last one is the reward's; a causal model is
asked for the log-probabilities of its two tokens. Invariants: equal (prefix, step) pairs are
computed once, also while one of them is under way; a request nobody waits for is aborted.
"""

import dataclasses
import itertools
from array import array
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
from actors.prm_layout import PRMLayout, too_long
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ScoreItem
from search.errors import PRMError
from search.protocols import Score


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
        self._request_names = map(str, itertools.count())

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters_of(self._model_class, self._spec), device_of(self._spec))

    async def score(self, item: ScoreItem) -> Score:
        """The reward of the path's last step; raises PRMError if the path does not fit."""
        laid_out = self._layout.lay_out(item.path)
        ids = laid_out.ids
        if len(ids) > self._context:
            raise too_long(len(ids), self._context)
        read = self._read_pair if self._is_pair else self._read_rows
        before = _key(ids[: len(ids) - laid_out.new_tokens])

        async def read_in_turn() -> _Reading:
            # Steps of a solution that come together each find those before them in the cache.
            await self._readings.settled(before)
            return await read(ids)

        try:
            reading, bears_cost = await self._readings.once(_key(ids), read_in_turn)
        except EngineDeadError as error:
            raise engine_lost(self._spec, error) from error
        computed = reading.tokens_computed if bears_cost else 0
        return Score(reading.reward, computed, laid_out.new_tokens)

    async def forget(self) -> None:
        """Empties the prefix cache and forgets all readings."""
        self._readings.forget()
        await super().forget()

    async def _read_rows(self, ids: list[int]) -> _Reading:
        """vLLM returns a row for every token it computed, so the last is the last token's."""
        params = PoolingParams(
            task="token_classify", use_activation=False, skip_reading_prefix_cache=False
        )
        prompt, name = tokens_input(ids), next(self._request_names)
        output = await last_output(self._engine.encode(prompt, params, name), PRMError)
        rows = output.outputs.data
        return _Reading(reward_of(self._layout.family, rows[-1].double().tolist()), len(rows))

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
