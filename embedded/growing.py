"""Starting a larger model as an exact copy of a smaller one (Net2Net, arXiv 1511.05641).

Invariant: the grown model computes what the small one computes (but for the epsilon of its
norms, which weighs more against a smaller mean square). Everything new reads from the
residual stream at random and writes zeros to it, so it changes nothing until it has learned.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM

PREVIOUS_TOKEN_SHARPNESS = 60.0


@torch.no_grad()
def grow(small: Qwen2ForCausalLM, large: PreTrainedModel) -> None:
    """Overwrites `large` (same head size and group size, no dimension smaller) with `small`."""
    narrow, wide = small.config.hidden_size, large.config.hidden_size
    _embed(large.model.embed_tokens.weight, small.model.embed_tokens.weight)
    _scale(large.model.norm.weight, small.model.norm.weight, narrow, wide)
    for place, layer in enumerate(large.model.layers):
        _silence(layer)
        if place < len(small.model.layers):
            _copy_layer(small.model.layers[place], layer, narrow, wide)


def _silence(layer: Any) -> None:
    """A layer that writes nothing is the identity."""
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()


def _copy_layer(old: Any, new: Any, narrow: int, wide: int) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        before, after = getattr(old.self_attn, name), getattr(new.self_attn, name)
        _embed(after.weight, before.weight, clear=False)
        after.bias[: len(before.bias)] = before.bias
    for name in ("gate_proj", "up_proj"):
        _embed(getattr(new.mlp, name).weight, getattr(old.mlp, name).weight, clear=False)
    _embed(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight)
    _embed(new.mlp.down_proj.weight, old.mlp.down_proj.weight)
    for name in ("input_layernorm", "post_attention_layernorm"):
        _scale(getattr(new, name).weight, getattr(old, name).weight, narrow, wide)


def _embed(new: torch.Tensor, old: torch.Tensor, clear: bool = True) -> None:
    """Puts a matrix in the upper left corner of a larger one; the rest is cleared or stays."""
    rows, columns = old.shape
    if clear:
        new.zero_()
    new[:rows, :columns] = old


def _scale(new: torch.Tensor, old: torch.Tensor, narrow: int, wide: int) -> None:
    """The mean square over more dimensions is smaller, for the new ones are zero."""
    new[:narrow] = old * (narrow / wide) ** 0.5


@torch.no_grad()
def attend_to_previous(layer: Any, head_size: int, rope_theta: float) -> None:
    """Starts all heads of a layer as heads that look at the token before.

    With rotary positions and weights of zero, the biases alone set a score that depends on the
    distance: sum over frequencies of cos((distance - 1) x frequency), highest at distance 1.
    """
    attention = layer.self_attn
    half = torch.arange(head_size // 2, dtype=torch.float32)
    angle = rope_theta ** (-2 * half / head_size)
    query = torch.cat([angle.cos() + angle.sin(), angle.cos() - angle.sin()])
    sharp = PREVIOUS_TOKEN_SHARPNESS**0.5
    for projection, bias in (
        (attention.q_proj, sharp * query),
        (attention.k_proj, sharp * torch.ones(head_size)),
    ):
        projection.weight.zero_()
        projection.bias.copy_(bias.repeat(len(projection.bias) // head_size))


@torch.no_grad()
def enlarge(layers: Iterable[nn.Module]) -> None:
    """Starts layers with weights that carry their input's size on (variance 1 / inputs).

    The library's own start (0.02) is made for widths in the thousands.
    """
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)


@torch.no_grad()
def quieten(model: Any, layers: int, factor: float) -> None:
    """Scales what the embeddings and the first layers write, and changes nothing they compute.

    Every layer reads through a norm, so the size of the residual stream is free. Trained layers
    make it large (root mean square 20 here), and new layers above would not be heard in it.
    """
    model.embed_tokens.weight.mul_(factor)
    for layer in model.layers[:layers]:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
