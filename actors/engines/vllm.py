"""The policy on vLLM: token ids in, token ids and log-probabilities out.

One request of n > 1 for a node's candidates; vLLM batches all that run and keeps prefixes in its
cache. Invariants: a path is continued by its token ids, never rendered again; a request whose
caller has gone is aborted in the engine; what an expansion cost is what vLLM says it computed.
"""

import asyncio
import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import AutoModelForCausalLM
from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from actors.engines.cutting import LOGPROB_DECIMALS, Pieces, WrittenSolution
from actors.engines.loading import decode, is_text, load_tokenizer, render_prompt
from actors.engines.vllm_engine import VllmEngine, last_output
from actors.engines.vllm_start import device_of, engine_lost, parameters_of, start_engine
from actors.load import EngineLoad
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ExpandItem
from search.errors import PolicyError
from search.protocols import Completion, Expansion, PolicyPath, StopReason
from search.token_ids import pack_ids, unpack_ids
from search.whole_solutions import SolutionRequest, step_by_step, steps_and_rest

PROMPTS_KEPT = 4096
# vLLM seeds child i of a request with seed + i, in 64 bits: so does a request for it alone.
SEED_BITS = (1 << 62) - 1


class VllmPolicy(VllmEngine):
    """A causal language model served by vLLM."""

    def __init__(self, spec: ModelSpec) -> None:
        self._costs = _PrefillCosts()
        super().__init__(spec, start_engine(spec, [self._costs.logger], runner="generate"))
        self._tokenizer = load_tokenizer(spec)
        self._longest = self._engine.model_config.max_model_len
        self._prompt_ids = lru_cache(PROMPTS_KEPT)(self._tokenize_prompt)
        self._pieces = Pieces(lambda ids: decode(self._tokenizer, list(ids)))
        self._request_names = map(str, itertools.count())

    def load(self) -> EngineLoad:
        """What vLLM's scheduler said last."""
        return self._costs.load

    def facts(self) -> ModelFacts:
        return ModelFacts(parameters_of(AutoModelForCausalLM, self._spec), device_of(self._spec))

    async def expand(self, item: ExpandItem) -> Expansion:
        """Samples item.n continuations; raises PolicyError if the path cannot be continued."""
        prefix = self._prefix(item)
        # vLLM refuses copies of the likeliest continuation: they are all the same.
        samples = 1 if item.sampling.temperature == 0 else item.n
        output, computed = await self._generate(prefix, sampling_params(item, samples))
        completions = tuple(self._completion(part) for part in output.outputs)
        return Expansion(completions * (item.n // samples), samples * len(prefix), computed)

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """A solution as one request, cut into steps afterwards; raises PolicyError."""
        path = PolicyPath(request.problem, b"")
        most, seed = request.most_tokens, next(request.seeds())
        first = ExpandItem(path, 1, request.sampling, most, seed)
        prefix = self._prefix(first)
        output, computed = await self._generate(prefix, solution_params(first))
        [part] = output.outputs
        written = WrittenSolution(
            list(part.token_ids),
            _token_logprobs(part),
            stop_reason(part) is StopReason.EOS,
            len(prefix),
            computed,
            self._pieces,
            self.expand,
        )
        steps = await step_by_step(written, request)
        return steps_and_rest(steps, written.tokens_past(steps))

    async def _generate(
        self, prefix: list[int], params: SamplingParams
    ) -> tuple[RequestOutput, int]:
        """What vLLM wrote, and how many tokens of the prefix it computed for all samples."""
        name = next(self._request_names)
        computed = self._costs.expect(name, params.n)
        try:
            outputs = self._engine.generate(tokens_input(prefix), params, name)
            return await last_output(outputs, PolicyError), await computed
        except EngineDeadError as error:
            raise engine_lost(self._spec, error) from error
        finally:
            computed.cancel()

    def _prefix(self, item: ExpandItem) -> list[int]:
        if not is_text(item.path.problem):
            raise PolicyError("the problem is not valid Unicode text")
        if item.n < 1 or item.max_tokens < 1:
            raise PolicyError(f"cannot sample {item.n} steps of {item.max_tokens} tokens")
        prefix = self._prompt_ids(item.path.problem) + unpack_ids(item.path.token_ids)
        if len(prefix) >= self._longest:
            raise PolicyError(
                f"a prefix of {len(prefix)} tokens leaves no room in the context of "
                f"{self._longest}: shorten the problem or lower limits.max_solution_tokens"
            )
        return prefix

    def _tokenize_prompt(self, problem: str) -> list[int]:
        text = render_prompt(self._tokenizer, self._spec.prompt, problem)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _completion(self, part: CompletionOutput) -> Completion:
        """The text is decoded from the ids: vLLM's own text ends at the delimiter."""
        ids = list(part.token_ids)
        logprob = round(part.cumulative_logprob or 0.0, LOGPROB_DECIMALS)
        return Completion(decode(self._tokenizer, ids), pack_ids(ids), logprob, stop_reason(part))


def sampling_params(item: ExpandItem, samples: int) -> SamplingParams:
    """What vLLM is asked for; the delimiter stays in the text."""
    return SamplingParams(
        n=samples,
        temperature=item.sampling.temperature,
        top_p=item.sampling.top_p,
        seed=(item.seed & SEED_BITS) + item.first,
        max_tokens=item.max_tokens,
        stop=[item.sampling.delimiter],
        include_stop_str_in_output=True,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def solution_params(item: ExpandItem) -> SamplingParams:
    """The same for a whole solution: no end but its own, and no text, which is made of the ids."""
    params = sampling_params(item, 1)
    params.stop, params.detokenize = [], False
    params.include_stop_str_in_output = False
    return params


def _token_logprobs(part: CompletionOutput) -> list[float]:
    """The log-probability of each token that was sampled."""
    pairs = zip(part.token_ids, part.logprobs or (), strict=True)
    return [of_token[token].logprob if of_token else 0.0 for token, of_token in pairs]


def stop_reason(part: CompletionOutput) -> StopReason:
    """Why a completion ended, told apart by vLLM: a stop string, an end token, the limit."""
    if part.finish_reason == "length":
        return StopReason.LENGTH
    if part.finish_reason == "stop":
        ended_by_text = isinstance(part.stop_reason, str)
        return StopReason.DELIMITER if ended_by_text else StopReason.EOS
    raise PolicyError(f"vLLM gave up a request: {part.finish_reason}")


@dataclass(slots=True)
class _Cost:
    """Prompt tokens computed for a request, while some of its children are unreported."""

    missing: int
    known: "asyncio.Future[int]"
    tokens: int = 0


class _PrefillCosts:
    """Prompt tokens that each request's children computed, as the engine reports them.

    A request's output says so of one child only; the engine's statistics say it of each.
    """

    def __init__(self) -> None:
        self._costs: dict[str, _Cost] = {}
        self.load = EngineLoad(0, 0)

    def logger(self, _config: Any, _index: int = 0) -> StatLoggerBase:
        """What vLLM calls to make the logger of an engine."""
        return _CostLogger(self)

    def expect(self, request: str, children: int) -> "asyncio.Future[int]":
        """The tokens computed for all children; known right after the last one's output."""
        known = asyncio.get_running_loop().create_future()
        self._costs[request] = _Cost(children, known)
        known.add_done_callback(lambda _: self._costs.pop(request, None))
        return known

    def add(self, request: str, tokens: int) -> None:
        cost = self._costs.get(request)
        if cost is None:
            return
        cost.missing -= 1
        cost.tokens += tokens
        if not cost.missing and not cost.known.done():
            cost.known.set_result(cost.tokens)


class _CostLogger(StatLoggerBase):
    """vLLM's hook for statistics."""

    def __init__(self, costs: _PrefillCosts) -> None:
        self._costs = costs

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            running, queued = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
            self._costs.load = EngineLoad(running, queued)
        for request in iteration_stats.finished_requests if iteration_stats else ():
            computed = request.num_prompt_tokens - request.num_cached_tokens
            self._costs.add(request.request_id, computed)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
