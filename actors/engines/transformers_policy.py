"""The policy on plain transformers: batched sampling that sequences join and leave at any token.

Invariants: a completion depends on its path, its seed and its place alone, not on what else is
in the batch (exactly so in float64; see docs/determinism.md); a prefix is computed once while
it stays in the store. The states kept for a path are those of all its tokens but the last:
every row starts by feeding the last one.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from transformers import AutoModelForCausalLM

from actors.engines.compute_thread import ComputeThread, Waiting
from actors.engines.kv_store import NO_KEY, KVStore, Segment, path_key
from actors.engines.loading import (
    decode,
    is_text,
    load_model,
    load_tokenizer,
    render_prompt,
)
from actors.engines.rows import Rows
from actors.engines.sampling import sample_tokens
from actors.load import EngineLoad
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ExpandItem
from search.errors import PolicyError
from search.protocols import Completion, Expansion, StopReason
from search.seeds import derive_seed
from search.token_ids import pack_ids, unpack_ids

KV_STORE_BYTES = 1 << 30
PROMPTS_KEPT = 4096
BROKEN_CHARACTER = "\ufffd"
# Sums of log-probabilities differ in their last bits with the batch; tables should not.
LOGPROB_DECIMALS = 9


@dataclass(slots=True)
class _Request:
    """An expansion under way: its children, and what its prefix cost."""

    waiting: Waiting[ExpandItem, Expansion]
    prompt: list[int]
    prefix: list[int]
    prefix_computed: int = 0
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def item(self) -> ExpandItem:
        return self.waiting.item

    @property
    def key(self) -> bytes:
        return path_key(pack_ids(self.prompt), self.item.path.token_ids)


@dataclass(slots=True)
class _Row:
    """One child being written: the token to feed next, and what was sampled so far."""

    request: _Request
    child: int
    pending: int
    start: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


class TransformersPolicy:
    """A causal language model from Hugging Face, by folder or name."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._model = load_model(AutoModelForCausalLM, spec)
        self._tokenizer = load_tokenizer(spec)
        self._eos = _end_tokens(self._model.generation_config.eos_token_id)
        self._eos |= _end_tokens(self._tokenizer.eos_token_id)
        self._rows = Rows(self._model, spec.max_batch)
        self._prefill_rows = Rows(self._model, 1)
        self._store = KVStore(int(spec.options.get("kv_store_bytes", KV_STORE_BYTES)))
        self._prompt_ids = lru_cache(PROMPTS_KEPT)(self._tokenize_prompt)
        self._delimiter_tokens: dict[str, frozenset[int]] = {}
        self._active: list[_Row] = []
        self._queued: deque[tuple[_Request, int]] = deque()
        self._thread: ComputeThread[ExpandItem, Expansion] = ComputeThread("policy", self._tick)
        self._thread.start()

    def facts(self) -> ModelFacts:
        return ModelFacts(self._model.num_parameters(), str(self._model.device))

    def load(self) -> EngineLoad:
        """What is in the batch, and what waits for a place."""
        return EngineLoad(len(self._active), len(self._queued))

    def check_health(self) -> None:
        """Raises what broke the engine, if anything did."""
        self._thread.check_health()

    async def expand(self, item: ExpandItem) -> Expansion:
        """Samples item.n continuations; raises PolicyError if the path cannot be continued."""
        return await self._thread.compute(item)

    def _tick(self) -> None:
        """Takes in what waits, then writes one token in every row."""
        idle = not self._active and not self._queued
        for waiting in self._thread.take_all(block=idle):
            self._accept(waiting)
        self._drop_cancelled()
        while self._queued and self._rows.free:
            request, child = self._queued.popleft()
            if not request.waiting.cancelled:
                self._start_row(request, child)
        if self._active:
            self._write_one_token()

    def _accept(self, waiting: Waiting[ExpandItem, Expansion]) -> None:
        try:
            request = self._prepare(waiting)
        except PolicyError as error:
            waiting.fail(error)
            return
        self._queued.extend((request, child) for child in range(waiting.item.n))

    def _prepare(self, waiting: Waiting[ExpandItem, Expansion]) -> _Request:
        item = waiting.item
        if not is_text(item.path.problem):
            raise PolicyError("the problem is not valid Unicode text")
        if item.n < 1 or item.max_tokens < 1:
            raise PolicyError(f"cannot sample {item.n} steps of {item.max_tokens} tokens")
        prompt = self._prompt_ids(item.path.problem)
        prefix = prompt + unpack_ids(item.path.token_ids)
        longest = getattr(self._model.config, "max_position_embeddings", len(prefix))
        if len(prefix) >= longest:
            raise PolicyError(
                f"a prefix of {len(prefix)} tokens leaves no room in the context of "
                f"{longest}: shorten the problem or lower limits.max_solution_tokens"
            )
        return _Request(waiting, prompt, prefix)

    def _tokenize_prompt(self, problem: str) -> list[int]:
        text = render_prompt(self._tokenizer, self._spec.prompt, problem)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _start_row(self, request: _Request, child: int) -> None:
        """Puts a child in the batch, computing its prefix first where it is not in the store."""
        chain = self._store.chain(request.key)
        if chain is None:
            chain = self._compute_prefix(request)
        item = request.item
        self._rows.add(chain)
        draw = np.random.Generator(np.random.Philox(derive_seed(item.seed, item.first + child)))
        row = _Row(
            request,
            child,
            pending=request.prefix[-1],
            start=len(request.prefix) - 1,
            uniforms=draw.random(item.max_tokens),
        )
        self._active.append(row)

    def _compute_prefix(self, request: _Request) -> list[Segment]:
        """Computes all of a prefix but its last token: the prompt, or a path seen elsewhere."""
        known = self._store.chain(path_key(pack_ids(request.prompt), b"")) or []
        start = sum(segment.length for segment in known)
        before = path_key(pack_ids(request.prompt), b"") if known else NO_KEY
        missing = request.prefix[start:-1]
        self._prefill_rows.add(known)
        self._prefill_rows.forward([missing], logits_to_keep=1)
        states = self._prefill_rows.copy_states(0, start, start + len(missing))
        self._prefill_rows.remove(0)
        segment = Segment(before, states)
        self._store.put(request.key, segment)
        request.prefix_computed += len(missing)
        return [*known, segment]

    def _write_one_token(self) -> None:
        output = self._rows.forward([[row.pending] for row in self._active], logits_to_keep=1)
        drawn = [row.uniforms[len(row.tokens)] for row in self._active]
        samplings = [row.request.item.sampling for row in self._active]
        tokens, logprobs = sample_tokens(output.logits[:, -1], samplings, drawn)
        finished = []
        for place, row in enumerate(self._active):
            row.tokens.append(tokens[place])
            row.logprob += logprobs[place]
            row.pending = tokens[place]
            reason = self._stop_reason(row)
            if reason is not None:
                self._finish(place, row, reason)
                finished.append(place)
        for place in reversed(finished):
            self._leave(place)

    def _stop_reason(self, row: _Row) -> StopReason | None:
        item = row.request.item
        if row.pending in self._eos:
            return StopReason.EOS
        delimiter = item.sampling.delimiter
        touching = row.pending in self._tokens_touching(delimiter)
        if touching and delimiter in decode(self._tokenizer, row.tokens):
            return StopReason.DELIMITER
        if len(row.tokens) >= item.max_tokens or self._context_is_full(row):
            return StopReason.LENGTH
        return None

    def _context_is_full(self, row: _Row) -> bool:
        longest = getattr(self._model.config, "max_position_embeddings", None)
        return longest is not None and row.start + 1 + len(row.tokens) >= longest

    def _tokens_touching(self, delimiter: str) -> frozenset[int]:
        """Tokens whose text shares a character with the delimiter: only they can complete it.

        A token that is a piece of a character decodes to U+FFFD and may be part of any.
        """
        tokens = self._delimiter_tokens.get(delimiter)
        if tokens is None:
            texts = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
            wanted = {*delimiter, BROKEN_CHARACTER}
            tokens = frozenset(i for i, text in enumerate(texts) if wanted & set(text))
            self._delimiter_tokens[delimiter] = tokens
        return tokens

    def _finish(self, place: int, row: _Row, reason: StopReason) -> None:
        request, packed = row.request, pack_ids(row.tokens)
        if reason is not StopReason.EOS:
            self._keep_states(place, request, packed, len(row.tokens), row.start)
        text = decode(self._tokenizer, row.tokens)
        request.completions[row.child] = Completion(
            text, packed, round(row.logprob, LOGPROB_DECIMALS), reason
        )
        if len(request.completions) == request.item.n:
            request.waiting.resolve(self._expansion(request))

    def _keep_states(
        self, place: int, request: _Request, packed: bytes, tokens: int, start: int
    ) -> None:
        path = request.item.path.token_ids + packed
        states = self._rows.copy_states(place, start, start + tokens)
        key = path_key(pack_ids(request.prompt), path)
        self._store.put(key, Segment(request.key, states))

    def _expansion(self, request: _Request) -> Expansion:
        completions = tuple(request.completions[child] for child in range(request.item.n))
        needed = len(completions) * len(request.prefix)
        return Expansion(completions, needed, request.prefix_computed)

    def _drop_cancelled(self) -> None:
        for place in reversed(range(len(self._active))):
            if self._active[place].request.waiting.cancelled:
                self._leave(place)

    def _leave(self, place: int) -> None:
        last = self._rows.remove(place)
        self._active[place] = self._active[last]
        self._active.pop()


def _end_tokens(ids: int | list[int] | None) -> set[int]:
    if ids is None:
        return set()
    return {ids} if isinstance(ids, int) else set(ids)
