"""Drawing tokens by inverse transform from one uniform number a row.

Invariant: a row's token depends on its own logits, settings and number only. Ties between
equal probabilities go by token id.
"""

import math
from collections.abc import Sequence

import torch

from search.protocols import Sampling


def sample_tokens(
    logits: torch.Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]
) -> tuple[list[int], list[float]]:
    """One token for each row of logits [rows, vocabulary], and its log-probability.

    The log-probability is the model's own, before temperature and top-p. Temperature 0 takes
    the likeliest token.
    """
    logits = logits.double()
    temperatures = torch.tensor(
        [s.temperature for s in samplings], dtype=torch.float64, device=logits.device
    )
    draws = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    probabilities = torch.softmax(logits / temperatures.clamp(min=1e-6)[:, None], dim=-1)
    if any(s.top_p < 1 for s in samplings):
        probabilities = _keep_nucleus(probabilities, [s.top_p for s in samplings])
    sums = probabilities.cumsum(dim=-1)
    tokens = (sums <= (draws * sums[:, -1])[:, None]).sum(dim=-1)
    tokens = torch.where(temperatures == 0, logits.argmax(dim=-1), tokens)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), logprobs.tolist()


def _keep_nucleus(probabilities: torch.Tensor, top_ps: Sequence[float]) -> torch.Tensor:
    """Zeroes what lies outside the smallest set of likeliest tokens that reaches top-p."""
    # A sum can reach 1 by rounding before the tail: 1 means all of it.
    reach = [top_p if top_p < 1 else math.inf for top_p in top_ps]
    limits = torch.tensor(reach, dtype=torch.float64, device=probabilities.device)
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    outside = ordered.cumsum(dim=-1) - ordered >= limits[:, None]
    return probabilities.masked_fill(outside.gather(1, places.argsort(dim=-1)), 0.0)
