"""What a model's memory depends on, from its config.json or from the table of known models.

Invariant: nothing is loaded and nothing is fetched: files on this disk, or a table. A model that
neither knows has no shape, and nothing is claimed of it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.catalogue import count_parameters
from jobs.recipe_checks import model_folder

# config.json of multimodal models holds that of the language model under this key.
TEXT_CONFIG = "text_config"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder with grouped-query attention and a gated feed-forward layer.

    `context` is the longest sequence in tokens; `tied`: input and output embeddings are one;
    `head_parameters`: those of a reward head, which takes the place of the output embedding
    unless `keeps_output`.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    tied: bool = False
    qkv_bias: bool = False
    keeps_output: bool = True
    head_parameters: int = 0
    counted: int = 0
    quantization: str = ""

    @property
    def embedding_parameters(self) -> int:
        """Those that quantization leaves as they are."""
        outputs = 1 if self.tied or not self.keeps_output else 2
        return outputs * self.vocabulary * self.hidden + self.head_parameters

    @property
    def parameters(self) -> int:
        """As counted in the checkpoint, else by its shape."""
        return self.counted or self.embedding_parameters + self._body()

    def _body(self) -> int:
        inner, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.hidden * (2 * inner + 2 * kv) + self.qkv_bias * (inner + 2 * kv)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden


def shape_of(model: str) -> ModelShape | None:
    """The shape of a folder or Hugging Face id; None if nothing here knows it."""
    from jobs.known_models import KNOWN_MODELS

    folder = model_folder(model) or cached_folder(model)
    return (shape_in(folder) if folder else None) or KNOWN_MODELS.get(model)


def shape_in(folder: Path) -> ModelShape | None:
    """The shape of a checkpoint's folder; None if its config.json does not tell."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return _shape(config.get(TEXT_CONFIG) or config, _counted(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def cached_folder(model: str) -> Path | None:
    """Where the Hugging Face cache keeps a model's files; None if it has none."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    found = sorted((hub / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))
    return found[-1].parent if found else None


def _shape(config: Mapping[str, Any], counted: int) -> ModelShape:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    quantized = config.get("quantization_config") or {}
    return ModelShape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        context=int(config["max_position_embeddings"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=config.get("model_type") == "qwen2",
        # Packed weights are not one number a parameter, so the shape tells better.
        counted=0 if quantized else counted,
        quantization=str(quantized.get("quant_method", "")),
    )


def _counted(folder: Path) -> int:
    return sum(count_parameters(shard) for shard in folder.glob("*.safetensors"))
