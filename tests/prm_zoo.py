"""A tiny random checkpoint of every PRM family, and each family's rewards as published.

The rewards are written down from the model cards, without the code under test: one forward
pass over the whole text, read where the card reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import TINY, TOKENIZER_FOLDER
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from actors.engines.process_reward_model import Qwen2ForPrmModel, Qwen2ForProcessRewardModel
from actors.prm_families import PRM_FAMILIES
from actors.spec import ModelSpec

PROBLEM = "What is 12 + 7?"
STEPS = (
    "Step 1: 12 + 7 = 19.\n\n",
    "Then 19 is right,\nas 19 - 7 = 12.\n\n",
    "So it is 19.\n\n",
    "The answer is \\boxed{19}.",
)
DEPTHS = range(1, len(STEPS) + 1)
FAMILIES = [name for name in PRM_FAMILIES if name != "custom"]
# vLLM's attention on a CPU takes heads of 32 numbers and more.
SIZES = TINY | {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
}
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3_MERGES = [("Ċ", "Ċ"), ("Ġ", "+"), ("+", "Ċ"), ("Ġ", "1"), ("1", "2"), ("i", "s")]
# As Mistral's, the first merge is that of two spaces.
MISTRAL_MERGES = [
    *(("▁", "▁"), ("▁", "+"), ("▁", "-"), ("к", "и"), ("▁", "ки"), ("1", "2"), ("i", "s")),
    *(("▁", "="), ("▁", "is"), ("S", "t"), ("e", "p"), ("St", "ep"), ("▁", "Step")),
]


@dataclass(frozen=True)
class Member:
    """One checkpoint: how its folder is made, and its rewards as its card computes them."""

    make: Callable[[Path], None]
    rewards: Callable[[Path, Sequence[str]], list[float]]


def spec_of(family: str, folder: Path, engine: str = "transformers", **options: Any) -> ModelSpec:
    """The checkpoint as a recipe would give it."""
    return ModelSpec(
        name="prm",
        model=str(folder),
        engine=engine,
        dtype="float32",
        max_batch=16,
        system_prompt=PRM_FAMILIES[family].system_prompt,
        family=family,
        options=options,
    )


def made(family: str, folder: Path) -> Path:
    """A folder with the family's checkpoint in it."""
    torch.manual_seed(FAMILIES.index(family))
    MEMBERS[family].make(folder)
    return folder


@torch.no_grad()
def save(model: Any, folder: Path) -> None:
    """Saves a model whose biases, new ones being zero, count."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)


def stripped(steps: Sequence[str]) -> list[str]:
    return [step.strip() for step in steps]


# Qwen2.5-Math-PRM and ReasonFlux-PRM


def make_qwen(folder: Path) -> None:
    save(Qwen2ForProcessRewardModel(Qwen2Config(**SIZES)), folder)
    AutoTokenizer.from_pretrained(TOKENIZER_FOLDER).save_pretrained(folder)


def qwen_rewards(folder: Path, steps: Sequence[str], system: str) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": PROBLEM},
        {"role": "assistant", "content": "<extra_0>".join(stripped(steps)) + "<extra_0>"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = torch.tensor([tokenizer.encode(text)])
    logits = forward(Qwen2ForProcessRewardModel, folder, ids)
    probabilities = torch.softmax(logits[0], dim=-1)[:, 1]
    return probabilities[ids[0] == tokenizer.encode("<extra_0>")[0]].tolist()


# Skywork-o1-Open-PRM


def make_skywork(folder: Path) -> None:
    save(Qwen2ForPrmModel(Qwen2Config(**SIZES)), folder)
    AutoTokenizer.from_pretrained(TOKENIZER_FOLDER).save_pretrained(folder)


def skywork_rewards(folder: Path, steps: Sequence[str]) -> list[float]:
    text = "\n".join(step.replace("\n", " ") for step in stripped(steps))
    return skywork_line_rewards(folder, text)


def skywork_line_rewards(folder: Path, text: str) -> list[float]:
    """One for each line of a solution: what the published code does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(PROBLEM + "\n")
    ends = []
    for line in text.split("\n"):
        ids = ids + tokenizer.encode(line) + [tokenizer.encode("\n")[-1]]
        ends.append(len(ids) - 1)
    values = forward(Qwen2ForPrmModel, folder, torch.tensor([ids]))[0, :, 0]
    return torch.sigmoid(values)[ends].tolist()


# Math-Shepherd


def make_shepherd(folder: Path) -> None:
    tokenizer = sentencepiece_like(MISTRAL_MERGES)
    tokenizer.save_pretrained(folder)
    sizes = SIZES | {"vocab_size": len(tokenizer)}
    save(MistralForCausalLM(MistralConfig(**sizes, head_dim=32)), folder)


def sentencepiece_like(merges: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """As Mistral's: spaces are letters, a text is one word, unknown letters are bytes."""
    letters = [chr(code) for code in range(33, 127)] + ["▁", *"кин"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens += [one + other for one, other in merges]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def shepherd_rewards(folder: Path, steps: Sequence[str]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    candidates = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    output = "\n".join(f"{step} ки" for step in stripped(steps))
    ids = torch.tensor([tokenizer.encode(f"{PROBLEM} {output}")])
    logits = forward(MistralForCausalLM, folder, ids).logits[:, :, candidates]
    return logits.softmax(dim=-1)[:, :, 0][ids == tag].tolist()


# RLHFlow


def make_rlhflow(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(one + other for one, other in LLAMA_3_MERGES)]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, LLAMA_3_MERGES))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in LLAMA_3_SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = LLAMA_3_TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = SIZES | {"vocab_size": len(tokenizer)}
    save(LlamaForCausalLM(LlamaConfig(**sizes)), folder)


def rlhflow_rewards(folder: Path, steps: Sequence[str]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    conversation: list[dict[str, str]] = []
    rewards = []
    for place, step in enumerate(stripped(steps)):
        content = f"{PROBLEM} {step}" if place == 0 else step
        conversation.append({"role": "user", "content": content})
        conversation.append({"role": "assistant", "content": "+"})
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        logits = forward(LlamaForCausalLM, folder, ids).logits[:, -3, candidates]
        rewards.append(float(logits.softmax(dim=-1)[0, 0]))
    return rewards


@torch.no_grad()
def forward(model_class: Any, folder: Path, ids: torch.Tensor) -> Any:
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=ids)


MEMBERS = {
    "qwen2.5-math-prm": Member(
        make_qwen,
        lambda folder, steps: qwen_rewards(
            folder,
            steps,
            "Please reason step by step, and put your final answer within \\boxed{}.",
        ),
    ),
    "skywork-o1-prm": Member(make_skywork, skywork_rewards),
    "math-shepherd": Member(make_shepherd, shepherd_rewards),
    "rlhflow-mistral": Member(make_rlhflow, rlhflow_rewards),
    "rlhflow-deepseek": Member(make_rlhflow, rlhflow_rewards),
    "reasonflux-prm": Member(make_qwen, lambda folder, steps: qwen_rewards(folder, steps, "")),
}
