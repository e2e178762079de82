"""Loading Hugging Face checkpoints for the transformers engine."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from actors.prompts import PROBLEM, PromptStyle
from actors.spec import ModelSpec
from search.errors import RecipeError, first_line

# What transformers raises for a folder or a name that is not a checkpoint.
CANNOT_LOAD = (OSError, ValueError, KeyError)


def load_model(model_class: type[Any], spec: ModelSpec) -> PreTrainedModel:
    """The checkpoint in evaluation mode on a GPU if the replica has one, else on the CPU."""
    torch.set_num_threads(max(1, int(spec.cpus_per_replica)))
    device = "cuda" if spec.gpus_per_replica > 0 else "cpu"
    try:
        model: PreTrainedModel = model_class.from_pretrained(
            spec.model, dtype=getattr(torch, spec.dtype)
        )
    except CANNOT_LOAD as error:
        raise _unloadable(spec, error) from error
    torch.nn.Module.to(model, device)
    model.eval()
    return model


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """The checkpoint's configuration; raises RecipeError if there is none to be read."""
    trusted = bool(spec.options.get("trust_remote_code"))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(spec.model, trust_remote_code=trusted)
    except CANNOT_LOAD as error:
        raise _unloadable(spec, error) from error
    return config


def _unloadable(spec: ModelSpec, error: BaseException) -> RecipeError:
    return RecipeError(f"cannot load the model {spec.model!r}: {first_line(error)}")


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer; raises RecipeError if it cannot render the prompt."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.model)
    # The families of PRMs lay out their text themselves, some of them without a chat template.
    if not (spec.family or spec.prompt.template or tokenizer.chat_template):
        raise RecipeError(
            f"{spec.model!r} has no chat template: set policies.N.prompt: template and give the "
            "prompt in prompt_template"
        )
    return tokenizer


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


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: PromptStyle | str, problem: str
) -> str:
    """The text up to where the model begins to write; a plain text is a chat's system prompt.

    Whole: tokenize it with add_special_tokens=False, or a second BOS may be added.
    """
    style = PromptStyle(system=prompt) if isinstance(prompt, str) else prompt
    if style.template:
        return _with_bos(tokenizer, style.template.replace(PROBLEM, problem))
    system = [{"role": "system", "content": style.system}] if style.system else []
    user = f"{problem}\n{style.instruction}" if style.instruction else problem
    chat = [*system, {"role": "user", "content": user}]
    text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    opened = text.rstrip().endswith(style.opening.rstrip())
    return text if opened else text + style.opening


def _with_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text of the user's own with the BOS its tokenizer would put before it, written once."""
    bos = tokenizer.bos_token
    if not isinstance(bos, str) or text.startswith(bos):
        return text
    adds_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return bos + text if adds_bos else text
