"""Qwen2 decoders with the heads of published PRMs, which transformers has not.

Same parameter names as the checkpoints: Qwen/Qwen2.5-Math-PRM-7B (and vLLM's class of this
name) and Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B, so that they load as they are.
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


class ValueHead(nn.Module):
    """One number a token, before the sigmoid."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.summary(hidden)  # type: ignore[no-any-return]


class Qwen2ForPrmModel(Qwen2PreTrainedModel):
    """Values at every token, [batch, tokens, 1]; their sigmoid is the reward."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = ValueHead(config.hidden_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **model_arguments: object) -> torch.Tensor:
        """Runs the decoder and the head; arguments are those of `Qwen2Model`."""
        hidden = self.model(input_ids=input_ids, **model_arguments).last_hidden_state
        return self.v_head(hidden)  # type: ignore[no-any-return]
