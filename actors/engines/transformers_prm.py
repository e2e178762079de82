"""A PRM of any family on plain transformers, computing each new step once.

Invariants: the states of every scored step stay in the store, so a deeper step costs its own
tokens only; equal (prefix, step) pairs are scored once; a batch computes every missing piece
once, however many of its items share it.
"""

import sys
from array import array
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from actors.engines.compute_thread import ComputeThread, Waiting
from actors.engines.kv_store import NO_KEY, KVStore, Segment, path_key
from actors.engines.loading import load_tokenizer
from actors.engines.prm_model import load_prm
from actors.engines.rows import Rows
from actors.prm_families import REWARDS_KEPT, reward_of
from actors.prm_layout import PRMLayout, too_long
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ScoreItem
from search.errors import PRMError
from search.protocols import Score

KV_STORE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of tokens to compute after the piece `before`; a reward stands at its last one."""

    key: bytes
    before: bytes
    tokens: tuple[int, ...]


@dataclass(slots=True)
class _Request:
    """An item as pieces: the header, then one for each step."""

    waiting: Waiting[ScoreItem, Score]
    pieces: list[_Piece]
    minimal: int
    computed: int = 0


class TransformersPRM:
    """A process reward model from Hugging Face, by folder or name."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._layout = PRMLayout(spec, load_tokenizer(spec))
        prm = load_prm(spec, self._layout)
        self._model, self._head = prm.whole, prm.head
        self._context = _context_of(self._model)
        self._rows = Rows(prm.decoder, spec.max_batch)
        self._store = KVStore(int(spec.options.get("kv_store_bytes", KV_STORE_BYTES)))
        self._rewards: dict[bytes, float] = {}
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
        try:
            laid_out = self._layout.lay_out(waiting.item.path)
        except PRMError as error:
            waiting.fail(error)
            return None
        pieces, before = [], NO_KEY
        for tokens in filter(None, laid_out.pieces):
            key = path_key(before, array("q", tokens).tobytes())
            pieces.append(_Piece(key, before, tokens))
            before = key
        return self._fitting(_Request(waiting, pieces, laid_out.new_tokens))

    def _fitting(self, request: _Request) -> _Request | None:
        tokens = sum(len(piece.tokens) for piece in request.pieces)
        if tokens <= self._context:
            return request
        request.waiting.fail(too_long(tokens, self._context))
        return None

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
        output = self._rows.forward([list(piece.tokens) for piece in pieces])
        rewards = self._read(output.last_hidden_state, pieces)
        for row, piece in enumerate(pieces):
            stop = starts[row] + len(piece.tokens)
            states = self._rows.copy_states(row, starts[row], stop)
            self._store.put(piece.key, Segment(piece.before, states))
            self._rewards[piece.key] = rewards[row]
        self._rows.clear()

    def _read(self, hidden: torch.Tensor, pieces: list[_Piece]) -> list[float]:
        """The reward at the end of each piece, [rows, tokens, hidden size] being computed."""
        ends = torch.tensor([len(piece.tokens) - 1 for piece in pieces], device=hidden.device)
        with torch.no_grad():
            outputs = self._head(hidden[torch.arange(len(pieces), device=hidden.device), ends])
        return [reward_of(self._layout.family, row) for row in outputs.double().tolist()]

    def _answer(self, request: _Request) -> None:
        last = request.pieces[-1]
        reward = self._rewards.get(last.key)
        if reward is None:
            message = "the PRM's store is too small for the solutions of one batch"
            request.waiting.fail(PRMError(f"{message}: raise prm.options.kv_store_bytes"))
        else:
            request.waiting.resolve(Score(reward, request.computed, request.minimal))


def _context_of(model: PreTrainedModel) -> int:
    """Tokens that the model takes; it is run with full attention, so a window is an end too."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    longest = getattr(config, "max_position_embeddings", None)
    return min(longest or sys.maxsize, window or sys.maxsize)
