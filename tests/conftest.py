"""Tiny checkpoints for tests: random or scripted weights beside the repository's tokenizer."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from actors.engines.process_reward_model import Qwen2ForProcessRewardModel
from cluster.connect import RAY_SETTINGS

# Before any test imports ray, which reads them then. Clusters of tests would start a worker for
# each of their cores at once, without the environment of any run and so of no use.
os.environ.update(RAY_SETTINGS | {"RAY_prestart_worker_first_driver": "0"})
TOKENIZER_FOLDER = Path(__file__).parent.parent / "embedded" / "models" / "policy-0.1m"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
VOCABULARY = 383
EOS = 2
# The initial weights are wide, so that the next token depends sharply on all that came before.
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
# One-hot embeddings of every token fit into the hidden size.
SCRIPTED = TINY | {"hidden_size": 384, "intermediate_size": 4, "num_hidden_layers": 1}
SaveCheckpoint = Callable[[PreTrainedModel], Path]


@pytest.fixture(scope="module", autouse=True)
def leaves_no_ray() -> Iterator[None]:
    """A module ends its connection to Ray: the next one would take it for its own cluster."""
    yield
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("this module has left this process connected to Ray")


@pytest.fixture(scope="module")
def no_ray_token() -> Iterator[None]:
    """Throw-away clusters do without Ray's token file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="session")
def save_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> SaveCheckpoint:
    """Saves a model in a new folder, next to the repository's tokenizer."""

    def save(model: PreTrainedModel) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            shutil.copy(TOKENIZER_FOLDER / name, folder)
        return folder

    return save


@pytest.fixture(scope="session")
def policy_folder(save_checkpoint: SaveCheckpoint) -> Path:
    """A random Qwen2 policy."""
    torch.manual_seed(1)
    return save_checkpoint(Qwen2ForCausalLM(Qwen2Config(**TINY)))


@pytest.fixture(scope="session")
def prm_folder(save_checkpoint: SaveCheckpoint) -> Path:
    """A random Qwen2 PRM."""
    torch.manual_seed(2)
    return save_checkpoint(Qwen2ForProcessRewardModel(Qwen2Config(**TINY)))


def scripted_policy(script: Mapping[int, int], context_tokens: int = 512) -> Qwen2ForCausalLM:
    """Writes script[t] after token t, and a token that is not in the script after itself.

    Its layers add nothing to its one-hot embeddings, and its head is the script.
    """
    config = Qwen2Config(**SCRIPTED | {"max_position_embeddings": context_tokens})
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, 384))
        model.lm_head.weight.zero_()
        for token in range(VOCABULARY):
            model.lm_head.weight[script.get(token, token), token] = 10.0
    return model
