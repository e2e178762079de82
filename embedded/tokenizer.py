"""The tokenizer of the embedded models: byte-level BPE in which every digit stands alone.

It splits text the way Qwen2's tokenizer does, because transformers and vLLM load any `qwen2`
checkpoint's vocabulary into that class. Invariants: the step delimiter is one token, a number
is as many tokens as it has digits, and any UTF-8 text can be encoded (256 byte tokens).
"""

import json
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from embedded.tasks import STEP_DELIMITER, training_problems

VOCABULARY_SIZE = 384
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Learns the merges from training problems and saves the tokenizer to `folder`."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(_corpus(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=cast("Any", [tuple(merge) for merge in learned["merges"]]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<extra_0>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _corpus() -> list[str]:
    problems = training_problems(20_000, stream=0)
    texts = [f"{p.question}\n{STEP_DELIMITER.join(p.steps)}" for p in problems]
    return [*texts, *([f"system\n{QWEN_SYSTEM}\nuser\nassistant\n"] * 2_000)]
