"""The checkpoint of a PRM for transformers, apart in decoder and head.

Invariant: the head is computed only where a reward stands, and for a token pair only for the
two tokens, never for the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from actors.engines.loading import load_config, load_model
from actors.engines.process_reward_model import Qwen2ForPrmModel, Qwen2ForProcessRewardModel
from actors.prm_families import PRMFamily, Reading
from actors.prm_layout import PRMLayout
from actors.spec import ModelSpec
from search.errors import RecipeError

# For each reading, what a checkpoint's architecture may end in and what loads it.
MODEL_CLASSES: dict[Reading, dict[str, Any]] = {
    "classes": {
        "Qwen2ForProcessRewardModel": Qwen2ForProcessRewardModel,
        "ForTokenClassification": AutoModelForTokenClassification,
    },
    "value": {
        "Qwen2ForPrmModel": Qwen2ForPrmModel,
        "ForSequenceClassification": AutoModelForSequenceClassification,
    },
    "token_pair": {"ForCausalLM": AutoModelForCausalLM},
}
# Heads by the names that the classes above give them.
HEADS = ("score", "v_head", "classifier")
# What some causal models do to their logits, and the columns of a head alone do not show.
CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, slots=True)
class PRMModel:
    """`head` maps hidden states [rows, hidden size] to what `reward_of` takes, [rows, n]."""

    whole: PreTrainedModel
    decoder: Any
    head: Callable[[torch.Tensor], torch.Tensor]


def load_prm(spec: ModelSpec, layout: PRMLayout) -> PRMModel:
    """The checkpoint; raises RecipeError if it has no head for its family's reading."""
    model = load_model(class_of(spec, layout.family), spec)
    if layout.family.reading == "token_pair":
        return PRMModel(model, model.base_model, _pair_head(spec, model, layout.token_pair))
    [head] = [getattr(model, name) for name in HEADS if hasattr(model, name)]
    return PRMModel(model, model.base_model, head)


def class_of(spec: ModelSpec, family: PRMFamily) -> Any:
    """What loads the checkpoint; raises RecipeError if it is of another family."""
    config = load_config(spec)
    if family.reading == "classes" and family.reward_class >= (config.num_labels or 0):
        raise RecipeError(
            f"prm.options.family.reward_class is {family.reward_class}, and {spec.model!r} has "
            f"{config.num_labels} classes: use a lower one"
        )
    found = (config.architectures or ["model without an architecture"])[0]
    for ending, model_class in MODEL_CLASSES[family.reading].items():
        if found.endswith(ending):
            return model_class
    raise RecipeError(
        f"{spec.model!r} is a {found}, and the family {spec.family!r} needs a "
        f"{' or '.join(MODEL_CLASSES[family.reading])}: change prm.family or prm.model"
    )


def _pair_head(
    spec: ModelSpec, model: PreTrainedModel, pair: tuple[int, int]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The rows of the output embedding of the two tokens."""
    for name in CHANGED_LOGITS:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise RecipeError(f"{spec.model!r} has {name}, which is not read here: use vllm")
    embedding = model.get_output_embeddings()
    weight = embedding.weight[list(pair)].detach()
    bias = None if embedding.bias is None else embedding.bias[list(pair)].detach()
    return lambda hidden: torch.nn.functional.linear(hidden, weight, bias)
