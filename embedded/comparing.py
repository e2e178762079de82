"""Starting a layer of the PRM as a comparison of what was expected with what was written.

The reader's states hold both, but gradient descent is slow to find their product. Here it is set
up by least squares: all heads look one token back and bring the expected next token, as a code,
into directions that the reader hardly uses; pairs of gated units then multiply it with the code
of the token that is there, silu(g) u - silu(-g) u = g u; the sum is high where both agree.
"""

from typing import Any

import numpy as np
import torch

from embedded.growing import attend_to_previous
from embedded.ladder import HEAD_SIZE

CODES = 32
WRITTEN_SIZE = 2.0
GATE_SIZE = 6.0
MATCH_SIZE = 3.0


@torch.no_grad()
def start_comparing(
    model: Any, place: int, ids: torch.Tensor, judged: torch.Tensor, rope_theta: float
) -> None:
    """Sets up layer `place` of a Qwen2 model; ids and judged (solution tokens): [rows, tokens].

    The ids must be right solutions: what was written there is what was to be expected.
    """
    layer = model.layers[place]
    attend_to_previous(layer, HEAD_SIZE, rope_theta)
    states = _states_above(model, place - 1, ids)
    normed = _normed(states)
    before, tokens = normed[:, :-1], ids[:, 1:]
    chosen = judged[:, 1:]
    code = _one_hot_codes(tokens[chosen], model.config.vocab_size)
    wanted, spare = code[tokens[chosen]], _unused_directions(normed[judged])
    expected = _bring_expected(layer, before[chosen], wanted, spare)
    written = states[:, 1:][chosen] + WRITTEN_SIZE * expected @ spare[:, :CODES].T
    _multiply(layer, _normed(written), wanted, expected, spare[:, CODES])


def _states_above(model: Any, place: int, ids: torch.Tensor) -> torch.Tensor:
    """The residual stream after a layer, [rows, tokens, width]."""
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hook = model.layers[place].register_forward_hook(keep)
    model(input_ids=ids)
    hook.remove()
    return seen[0]


def _normed(states: torch.Tensor) -> torch.Tensor:
    return states / states.pow(2).mean(-1, keepdim=True).sqrt()


def _one_hot_codes(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """A dimension for each of the most frequent tokens; the others have no code."""
    code = torch.zeros(vocabulary, CODES)
    code[torch.bincount(tokens, minlength=vocabulary).topk(CODES).indices, np.arange(CODES)] = 1.0
    return code


def _unused_directions(normed: torch.Tensor) -> torch.Tensor:
    """Directions of least variance, [width, CODES + 1]."""
    _, _, directions = torch.linalg.svd(normed - normed.mean(0), full_matrices=False)
    spare: torch.Tensor = directions[-(CODES + 1) :].T
    return spare


def _bring_expected(
    layer: Any, before: torch.Tensor, wanted: torch.Tensor, spare: torch.Tensor
) -> torch.Tensor:
    """Values of the first head: the code of the token that the state before expects."""
    with_one = torch.cat([before, torch.ones(len(before), 1)], dim=1)
    fit = torch.linalg.lstsq(with_one, wanted).solution
    value, output = layer.self_attn.v_proj, layer.self_attn.o_proj
    for part in (value.weight, value.bias, output.weight):
        part.zero_()
    value.weight[:CODES], value.bias[:CODES] = fit[:-1].T, fit[-1]
    output.weight[:, :CODES] = spare[:, :CODES] * WRITTEN_SIZE
    expected: torch.Tensor = with_one @ fit
    return expected


def _multiply(
    layer: Any,
    normed: torch.Tensor,
    wanted: torch.Tensor,
    expected: torch.Tensor,
    match: torch.Tensor,
) -> None:
    """Two gated units for each code dimension, summed into the direction `match`."""
    written_code = torch.linalg.lstsq(normed, wanted).solution.T
    expected_code = torch.linalg.lstsq(normed, expected).solution.T
    gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
    down.weight.zero_()
    for sign, units in ((1.0, slice(0, 2 * CODES, 2)), (-1.0, slice(1, 2 * CODES, 2))):
        gate.weight[units] = sign * GATE_SIZE * written_code
        up.weight[units] = sign * expected_code
        down.weight[:, units] = match[:, None] * (MATCH_SIZE / GATE_SIZE)
