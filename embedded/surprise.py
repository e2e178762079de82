"""Starting the PRM on top of a reader: two layers that say how surprised the reader was.

A policy that has learned right solutions (the reader) expects at every token the one that comes
next; where another was written, a mistake begins. Gradient descent from labels alone does not
find this comparison of two tokens at this size, so it is built in two parts. The first new layer
gets weights that move the reader's expectation one token on, beside a code of the token that
was written. The feed-forward halves of this layer and the next then learn from the reader
itself (distillation) to write its surprise, -ln p(token written), into one dimension.

The PRM is wider than its reader; the dimensions beyond the reader's width are the `Lanes`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import Qwen2ForCausalLM

from embedded.growing import attend_to_previous
from embedded.ladder import HEAD_SIZE, ROPE_THETA, Training

# Tokens whose identity and expectation are carried: digits, signs and the words of a step.
CODED_TOKENS = 24
# Small beside the embeddings (norm 0.1), so that the reader's norms do not notice; the norms
# of the layers that shall see it multiply by the inverse.
IDENTITY_SIZE = 0.005
LOGIT_SIZE = 0.1
SURPRISE_CAP_NATS = 6.0
SURPRISE_UNIT_NATS = 3.0
# Few tokens are surprising: a quarter of each batch is drawn from those.
SURPRISING = 1 / 3
SURPRISING_PART = 4
ROWS_AT_ONCE = 200
READING_SIZE = 3.5
WRITING_SIZE = 0.3
IGNORED = -100
log = logging.getLogger("embedded.train")


@dataclass(frozen=True, slots=True)
class Lanes:
    """What the dimensions above the reader's `width` carry."""

    width: int

    @property
    def identity(self) -> slice:
        """Which token stands here: one of the coded ones, or (last) another."""
        return slice(self.width, self.width + CODED_TOKENS + 1)

    @property
    def expected(self) -> slice:
        """The reader's logits of the coded tokens for this place."""
        return slice(self.identity.stop, self.identity.stop + CODED_TOKENS)

    @property
    def surprise(self) -> int:
        """In units of 3 nats; 0 in the prompt."""
        place: int = self.expected.stop
        return place


@torch.no_grad()
def prepare_surprise(model: Any, reader: Qwen2ForCausalLM, coded: torch.Tensor) -> None:
    """Sets identities and the expectation up in a Qwen2 model grown from `reader`.

    coded: token ids, [CODED_TOKENS].
    """
    lanes, above = Lanes(reader.config.hidden_size), len(reader.model.layers)
    _write_identities(model.embed_tokens.weight, coded, lanes)
    for layer in model.layers[above : above + 2]:
        layer.post_attention_layernorm.weight[lanes.identity] = 1 / IDENTITY_SIZE
    _move_expectation(model.layers[above], reader, coded, lanes)
    model.layers[above + 1].self_attn.o_proj.weight.zero_()


def most_frequent(tokens: torch.Tensor) -> torch.Tensor:
    """The CODED_TOKENS most frequent of some token ids."""
    return torch.bincount(tokens).topk(CODED_TOKENS).indices


def _write_identities(embeddings: torch.Tensor, coded: torch.Tensor, lanes: Lanes) -> None:
    """One dimension for each coded token and one for all others, so that each has equal size."""
    embeddings[:, lanes.identity] = 0
    embeddings[:, lanes.identity.stop - 1] = IDENTITY_SIZE
    embeddings[coded, lanes.identity.stop - 1] = 0
    embeddings[coded, lanes.identity.start + torch.arange(len(coded))] = IDENTITY_SIZE


def _move_expectation(
    layer: Any, reader: Qwen2ForCausalLM, coded: torch.Tensor, lanes: Lanes
) -> None:
    """All heads look one token back; the first group's values are the reader's logits there."""
    attend_to_previous(layer, HEAD_SIZE, ROPE_THETA)
    width, wide = lanes.width, len(layer.input_layernorm.weight)
    layer.input_layernorm.weight[:width] = reader.model.norm.weight * (width / wide) ** 0.5
    value, output = layer.self_attn.v_proj, layer.self_attn.o_proj
    value.bias.zero_()
    value.weight[:HEAD_SIZE] = 0
    value.weight[:CODED_TOKENS, :width] = reader.lm_head.weight[coded]
    output.weight.zero_()
    output.weight[lanes.expected, :CODED_TOKENS] = torch.eye(CODED_TOKENS) * LOGIT_SIZE


def learn_surprise(
    model: Any,
    reader: Qwen2ForCausalLM,
    examples: tuple[torch.Tensor, torch.Tensor],
    training: Training,
) -> None:
    """Distils the reader's surprise at every solution token into the lane for it.

    examples: token ids and labels (IGNORED outside the solution), each [rows, tokens].
    """
    above, lanes = len(reader.model.layers), Lanes(reader.config.hidden_size)
    states, surprise = _to_distil(model, reader, *examples)
    layers = model.layers[above : above + 2]
    _start_feed_forward(layers, lanes)
    learned = [weight for layer in layers for weight in layer.mlp.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=training.learning_rate, weight_decay=0.0)
    losses = []
    for step, rows in enumerate(_drawn(surprise, training)):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step)
        written = _fed_forward(layers, states[rows])[:, lanes.surprise]
        loss = functional.mse_loss(written, surprise[rows])
        loss.backward()
        _keep_out_of(layers, lanes)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    log.info("surprise: mean squared error %.5f", sum(losses[-100:]) / 100)


@torch.no_grad()
def _to_distil(
    model: Any, reader: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first feed-forward reads, [tokens, width], and the surprise to be written."""
    seen: list[torch.Tensor] = []
    norm = model.layers[len(reader.model.layers)].post_attention_layernorm
    hook = norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    states, surprise = [], []
    for rows in torch.arange(len(ids)).split(ROWS_AT_ONCE):
        model(input_ids=ids[rows])
        tokens = ids[rows] != 0
        states.append(seen.pop()[tokens])
        surprise.append(_surprise(reader, ids[rows], labels[rows])[tokens])
    hook.remove()
    return torch.cat(states), torch.cat(surprise)


def _surprise(reader: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-ln p of every solution token, capped, in units of 3 nats; [rows, tokens]."""
    expected = reader(input_ids=ids).logits[:, :-1].log_softmax(-1)
    nats = -expected.gather(-1, ids[:, 1:, None])[..., 0].clamp(min=-SURPRISE_CAP_NATS)
    return functional.pad(nats / SURPRISE_UNIT_NATS, (1, 0)).masked_fill(labels == IGNORED, 0.0)


@torch.no_grad()
def _start_feed_forward(layers: Any, lanes: Lanes) -> None:
    """Reads and writes the lanes only."""
    for layer in layers:
        gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
        for part in (gate, up):
            part.weight[:, : lanes.width] = 0
            part.weight[:, lanes.width :] *= READING_SIZE
        down.weight[: lanes.expected.start] = 0
        down.weight[lanes.expected.start :] *= WRITING_SIZE


def _fed_forward(layers: Any, states: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        states = states + layer.mlp(layer.post_attention_layernorm(states))
    return states


def _keep_out_of(layers: Any, lanes: Lanes) -> None:
    """Nothing is written to the reader's dimensions nor over the identities."""
    for layer in layers:
        layer.mlp.down_proj.weight.grad[: lanes.expected.start] = 0


def _drawn(surprise: torch.Tensor, training: Training) -> Iterator[torch.Tensor]:
    """Rows of each batch, a quarter of them surprising ones."""
    draw = torch.Generator().manual_seed(training.seed)
    surprising = (surprise > SURPRISING).nonzero()[:, 0]
    part = training.batch // SURPRISING_PART
    for _ in range(training.steps):
        any_rows = torch.randint(len(surprise), (training.batch - part,), generator=draw)
        chosen = torch.randint(len(surprising), (part,), generator=draw)
        yield torch.cat([any_rows, surprising[chosen]])
