"""A token-wise PRM on plain transformers, computing each new step once.

Invariants: the states of every scored step stay in the store, so a deeper step costs its own
tokens only; equal (prefix, step) pairs are scored once; a batch computes every missing piece
once, however many of its items share it.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from actors.engines.compute_thread import ComputeThread, Waiting
from actors.engines.kv_store import NO_KEY, KVStore, Segment, path_key
from actors.engines.loading import is_text, load_model, load_tokenizer, render_prompt
from actors.engines.process_reward_model import Qwen2ForProcessRewardModel
from actors.engines.rows import Rows
from actors.prm_families import PRM_FAMILIES
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ScoreItem
from search.errors import PRMError
from search.protocols import Score

KV_STORE_BYTES = 1 << 30
REWARDS_KEPT = 1_000_000
TEXTS_KEPT = 65_536
# The last bits of a reward differ with the batch it was computed in; tables must not.
REWARD_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of tokens to compute after the piece `before`; ends at a separator if a step."""

    key: bytes
    before: bytes
    tokens: tuple[int, ...]


@dataclass(slots=True)
class _Request:
    """An item as pieces: the header, then one for each step."""

    waiting: Waiting[ScoreItem, Score]
    pieces: list[_Piece]
    computed: int = 0


class TransformersPRM:
    """A process reward model from Hugging Face, by folder or name."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec, self._family = spec, PRM_FAMILIES[spec.family]
        self._model = load_model(Qwen2ForProcessRewardModel, spec)
        self._tokenizer = load_tokenizer(spec)
        self._check_separator()
        self._rows = Rows(self._model, spec.max_batch)
        self._store = KVStore(int(spec.options.get("kv_store_bytes", KV_STORE_BYTES)))
        self._rewards: dict[bytes, float] = {}
        # A step is laid out again with every step after it, and a header with every step.
        self._ids = lru_cache(TEXTS_KEPT)(self._tokenize)
        self._header = lru_cache(TEXTS_KEPT)(self._render)
        self._thread: ComputeThread[ScoreItem, Score] = ComputeThread("prm", self._tick)
        self._thread.start()

    def facts(self) -> ModelFacts:
        return ModelFacts(self._model.num_parameters(), str(self._model.device))

    def check_health(self) -> None:
        """Raises what broke the engine, if anything did."""
        self._thread.check_health()

    async def score(self, item: ScoreItem) -> Score:
        """The reward of the path's last step; raises PRMError if the path does not fit."""
        return await self._thread.compute(item)

    def _check_separator(self) -> None:
        ids = self._tokenizer(self._family.separator, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise PRMError(
                f"{self._spec.model!r} has no token {self._family.separator!r}: "
                f"it is not of the family {self._spec.family!r}; change prm.family"
            )

    def _tick(self) -> None:
        """Scores everything that waits, level by level of what is missing."""
        taken = self._thread.take_all(block=True)
        requests = [self._request(waiting) for waiting in taken if not waiting.cancelled]
        live = [request for request in requests if request is not None]
        if len(self._rewards) > REWARDS_KEPT:
            self._rewards.clear()
        levels = 2 * max((len(request.pieces) for request in live), default=0)
        while (missing := self._missing(live)) and levels > 0:
            levels -= 1
            for start in range(0, len(missing), self._spec.max_batch):
                self._compute(missing[start : start + self._spec.max_batch])
        for request in live:
            self._answer(request)

    def _request(self, waiting: Waiting[ScoreItem, Score]) -> _Request | None:
        path = waiting.item.path
        if not (is_text(path.problem) and all(map(is_text, path.steps))):
            waiting.fail(PRMError("the problem or a step is not valid Unicode text"))
            return None
        texts = [self._header(path.problem), *map(self._laid_out, path.steps)]
        pieces, before = [], NO_KEY
        for text in texts:
            key = path_key(before, text.encode())
            pieces.append(_Piece(key, before, self._ids(text)))
            before = key
        return self._fitting(_Request(waiting, pieces))

    def _laid_out(self, step: str) -> str:
        """A step and its separator; a separator that the policy wrote itself must not count.

        Line ends before a step would join the header's last token, so they go.
        """
        separator = self._family.separator
        return step.replace(separator, "").lstrip("\r\n") + separator

    def _fitting(self, request: _Request) -> _Request | None:
        tokens = sum(len(piece.tokens) for piece in request.pieces)
        longest = getattr(self._model.config, "max_position_embeddings", tokens)
        if tokens <= longest:
            return request
        message = f"a solution of {tokens} PRM tokens does not fit its context of {longest}"
        request.waiting.fail(PRMError(f"{message}: lower limits.max_solution_tokens"))
        return None

    def _render(self, problem: str) -> str:
        return render_prompt(self._tokenizer, self._spec.system_prompt, problem)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _missing(self, requests: list[_Request]) -> list[_Piece]:
        """The first piece that each request still lacks, each piece once."""
        missing: dict[bytes, _Piece] = {}
        for request in requests:
            piece = self._first_missing(request)
            if piece is not None and piece.key not in missing:
                missing[piece.key] = piece
                request.computed += len(piece.tokens)
        return list(missing.values())

    def _first_missing(self, request: _Request) -> _Piece | None:
        if request.pieces[-1].key in self._rewards:
            return None
        place = len(request.pieces) - 1
        while place > 0 and self._store.chain(request.pieces[place - 1].key) is None:
            place -= 1
        return request.pieces[place]

    def _compute(self, wanted: list[_Piece]) -> None:
        """Computes pieces after what the store still has before them; others wait a level."""
        pieces = []
        for piece in wanted:
            chain = self._store.chain(piece.before)
            if chain is not None:
                self._rows.add(chain)
                pieces.append(piece)
        if not pieces:
            return
        starts = list(self._rows.lengths)
        logits = self._rows.forward([list(piece.tokens) for piece in pieces])
        ends = torch.tensor([len(piece.tokens) - 1 for piece in pieces], device=logits.device)
        at_ends = logits[torch.arange(len(pieces), device=logits.device), ends]
        rewards = torch.softmax(at_ends.double(), dim=-1)[:, self._family.reward_class]
        for row, piece in enumerate(pieces):
            stop = starts[row] + len(piece.tokens)
            states = self._rows.copy_states(row, starts[row], stop)
            self._store.put(piece.key, Segment(piece.before, states))
            self._rewards[piece.key] = round(float(rewards[row]), REWARD_DECIMALS)
        self._rows.clear()

    def _answer(self, request: _Request) -> None:
        last = request.pieces[-1]
        reward = self._rewards.get(last.key)
        if reward is None:
            message = "the PRM's store is too small for the solutions of one batch"
            request.waiting.fail(PRMError(f"{message}: raise prm.options.kv_store_bytes"))
        else:
            request.waiting.resolve(Score(reward, request.computed, len(last.tokens)))
