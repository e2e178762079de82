"""A batch of sequences with their key-value states, advanced together by one model call.

Rows [0, active) are in use and contiguous, so the model reads its cache as a view, without a
copy. Each row has its own length; padding is masked, and writes beyond a row's length are
overwritten before they are ever seen.
"""

from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from actors.engines.kv_store import Segment

ROOM_STEP_TOKENS = 64


class _RowLayer(CacheLayerMixin):
    """One layer's view of the shared states; writes at each row's own position."""

    def __init__(self, rows: "Rows", layer: int) -> None:
        super().__init__()
        self._rows, self._layer = rows, layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._rows
        keys, values = rows.states[0, self._layer], rows.states[1, self._layer]
        keys[rows.row_index, rows.positions] = key_states.transpose(1, 2)
        values[rows.row_index, rows.positions] = value_states.transpose(1, 2)
        seen = (slice(0, rows.positions.shape[0]), slice(0, rows.width))
        return keys[seen].transpose(1, 2), values[seen].transpose(1, 2)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The states are allocated by `Rows`."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows.width, 0

    def get_seq_length(self) -> int:
        return self._rows.width

    def get_max_length(self) -> int:
        return -1


class Rows:
    """Room for `capacity` sequences of any length up to what memory holds."""

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        config = model.config
        heads = config.num_key_value_heads
        head_size = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self._model, self.capacity = model, capacity
        self._layers = config.num_hidden_layers
        shape = (2, self._layers, capacity, 0, heads, head_size)
        self.states = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.lengths: list[int] = []
        self.width = 0
        self.positions = torch.zeros((0, 0), dtype=torch.long)
        self.row_index = torch.zeros((0, 1), dtype=torch.long)
        self._cache = Cache(layers=[_RowLayer(self, layer) for layer in range(self._layers)])

    @property
    def free(self) -> int:
        return self.capacity - len(self.lengths)

    def add(self, chain: list[Segment]) -> int:
        """Starts a row from known states and returns its index."""
        row, start = len(self.lengths), 0
        self._make_room(sum(segment.length for segment in chain))
        for segment in chain:
            self.states[:, :, row, start : start + segment.length] = segment.states
            start += segment.length
        self.lengths.append(start)
        return row

    def remove(self, row: int) -> int:
        """Drops a row; the last row takes its place. Returns that last row's old index."""
        last = len(self.lengths) - 1
        if row != last:
            used = slice(0, self.lengths[last])
            self.states[:, :, row, used] = self.states[:, :, last, used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        return last

    def clear(self) -> None:
        """Drops all rows."""
        self.lengths = []

    def copy_states(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of a row's states at the given positions, fit for a `Segment`."""
        return self.states[:, :, row, start:stop].clone()

    @torch.no_grad()
    def forward(self, tokens: list[list[int]], **model_arguments: Any) -> Any:
        """Feeds each row its new tokens (padded on the right) and lengthens it by them."""
        fed = max(map(len, tokens))
        device = self._model.device
        starts = torch.tensor(self.lengths, device=device)
        self._make_room(max(self.lengths) + fed)
        self.positions = starts[:, None] + torch.arange(fed, device=device)
        self.row_index = torch.arange(len(tokens), device=device)[:, None]
        self.width = int(self.positions.max()) + 1
        padded = [ids + [0] * (fed - len(ids)) for ids in tokens]
        visible = torch.arange(self.width, device=device) <= self.positions[:, :, None]
        output = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=visible[:, None],
            position_ids=self.positions,
            past_key_values=self._cache,
            use_cache=True,
            **model_arguments,
        )
        self.lengths = [old + len(ids) for old, ids in zip(self.lengths, tokens, strict=True)]
        return output

    def _make_room(self, tokens: int) -> None:
        room = self.states.shape[3]
        if tokens <= room:
            return
        wanted = max(2 * room, -(-tokens // ROOM_STEP_TOKENS) * ROOM_STEP_TOKENS)
        shape = list(self.states.shape)
        shape[3] = wanted
        grown = torch.zeros(shape, dtype=self.states.dtype, device=self.states.device)
        grown[:, :, :, :room] = self.states
        self.states = grown
