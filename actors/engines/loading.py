"""Loading Hugging Face checkpoints for the transformers engine."""

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from actors.spec import ModelSpec
from search.errors import RecipeError


def load_model(model_class: type[Any], spec: ModelSpec) -> PreTrainedModel:
    """The checkpoint in evaluation mode on a GPU if the replica has one, else on the CPU."""
    torch.set_num_threads(max(1, int(spec.cpus_per_replica)))
    device = "cuda" if spec.gpus_per_replica > 0 else "cpu"
    try:
        model: PreTrainedModel = model_class.from_pretrained(
            spec.model, dtype=getattr(torch, spec.dtype)
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise RecipeError(f"cannot load the model {spec.model!r}: {first_line}") from error
    torch.nn.Module.to(model, device)
    model.eval()
    return model


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer."""
    return AutoTokenizer.from_pretrained(spec.model)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of token ids, special tokens left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def is_text(text: str) -> bool:
    """Whether a tokenizer can take it: JSON can carry half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def render_prompt(tokenizer: PreTrainedTokenizerBase, system_prompt: str, problem: str) -> str:
    """The chat template's text up to where the assistant begins to write."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    chat = [*system, {"role": "user", "content": problem}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return str(text)
