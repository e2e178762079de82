"""Qwen2ForProcessRewardModel: a Qwen2 decoder with a two-layer head on every token.

Same parameter names as Qwen/Qwen2.5-Math-PRM-7B and as vLLM's class of this name, so that one
checkpoint loads in all three.
"""

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel


class Qwen2ForProcessRewardModel(Qwen2PreTrainedModel):
    """Logits over right and wrong at every token, [batch, tokens, 2]."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, 2),
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **model_arguments: object) -> torch.Tensor:
        """Runs the decoder and the head; arguments are those of `Qwen2Model`."""
        hidden = self.model(input_ids=input_ids, **model_arguments).last_hidden_state
        return self.score(hidden)  # type: ignore[no-any-return]
