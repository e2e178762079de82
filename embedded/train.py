"""Trains one embedded checkpoint: `python -m embedded.train policy-0.1m` (policies before the PRM).

Seeded and fixed in length, so that the same machine gives the same weights. Loss is taken on
the assistant's tokens only; the learning rate warms up over 2 % of the steps and falls to
zero along a cosine.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from actors.engines.loading import render_prompt
from actors.engines.process_reward_model import Qwen2ForProcessRewardModel
from actors.prm_families import PRM_FAMILIES
from embedded.growing import enlarge, grow, quieten
from embedded.ladder import (
    CONTEXT_TOKENS,
    LADDER,
    PRM,
    PRM_SEES,
    PRM_STARTS_FROM,
    READER,
    SURPRISE,
    Member,
    Shape,
    Training,
)
from embedded.prm_data import solutions_to_judge
from embedded.surprise import IGNORED, learn_surprise, most_frequent, prepare_surprise
from embedded.tasks import STEP_DELIMITER, training_problems
from embedded.tokenizer import train_tokenizer

PRM_FAMILY = PRM_FAMILIES["qwen2.5-math-prm"]
# Root mean square of the residual stream above the reader's layers.
READER_LOUDNESS = 20.0
REPORT_EVERY_STEPS = 100
BATCHES_SORTED_TOGETHER = 32
log = logging.getLogger("embedded.train")


@dataclass(frozen=True, slots=True)
class Examples:
    """Token ids and labels, both [examples, longest]; padded with 0 and `IGNORED`."""

    ids: np.ndarray
    labels: np.ndarray

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows as (ids, labels), cut to the longest of them."""
        ids, labels = self.ids[rows], self.labels[rows]
        longest = int((ids != 0).sum(axis=1).max())
        cut_ids = torch.from_numpy(ids[:, :longest].astype(np.int64))
        return cut_ids, torch.from_numpy(labels[:, :longest].astype(np.int64))


def pad_examples(rows: list[tuple[list[int], list[int]]]) -> Examples:
    """Stacks (ids, labels) pairs into two padded arrays."""
    longest = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), longest), np.int16)
    labels = np.full((len(rows), longest), IGNORED, np.int16)
    for place, (row_ids, row_labels) in enumerate(rows):
        ids[place, : len(row_ids)] = row_ids
        labels[place, : len(row_labels)] = row_labels
    return Examples(ids, labels)


def policy_examples(tokenizer: PreTrainedTokenizerBase, training: Training) -> Examples:
    """Worked training problems in the chat layout the policy is prompted with."""
    problems = training_problems(training.examples, stream=training.stream)
    chats = [[{"role": "user", "content": p.question}] for p in problems]
    prompts = [
        tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats
    ]
    answers = [STEP_DELIMITER.join(p.steps) + tokenizer.eos_token for p in problems]
    prompt_ids, answer_ids = tokenizer(prompts)["input_ids"], tokenizer(answers)["input_ids"]
    pairs = zip(prompt_ids, answer_ids, strict=True)
    return pad_examples([(p + a, [IGNORED] * len(p) + a) for p, a in pairs])


def qwen2_config(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    """A Qwen2 configuration of the given shape with tied embeddings."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def draw_batches(
    examples: Examples, training: Training
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`training.steps` seeded batches; rows of like length share a batch, so little is padding."""
    draw = np.random.default_rng(training.seed)
    lengths = (examples.ids != 0).sum(axis=1)
    done = 0
    while True:
        rows = draw.integers(0, len(lengths), training.batch * BATCHES_SORTED_TOGETHER)
        groups = rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, training.batch)
        for group in groups[draw.permutation(len(groups))]:
            if done == training.steps:
                return
            done += 1
            yield examples.batch(group)


def train_policy(member: Member) -> None:
    """Trains and saves one policy of the ladder."""
    torch.manual_seed(member.training.seed)
    tokenizer = train_tokenizer(member.folder)
    model = Qwen2ForCausalLM(qwen2_config(member.shape, tokenizer))
    log.info("%s: %d parameters", member.name, model.num_parameters())
    if member.grown_from:
        grow(Qwen2ForCausalLM.from_pretrained(LADDER[member.grown_from].folder), model)
    optimise(model, policy_examples(tokenizer, member.training), member)
    model.save_pretrained(member.folder)


def optimise(model: torch.nn.Module, examples: Examples, member: Member) -> None:
    """AdamW over the drawn batches; `model(input_ids=, labels=)` returns an object with `loss`."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, betas=(0.9, 0.98), weight_decay=0.01)
    started, losses = time.perf_counter(), []
    for step, (ids, labels) in enumerate(draw_batches(examples, member.training)):
        for group in optimizer.param_groups:
            group["lr"] = member.training.rate_at(step)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY_STEPS == 0:
            mean = sum(losses[-REPORT_EVERY_STEPS:]) / REPORT_EVERY_STEPS
            log.info(
                "%s step %d loss %.4f %.0f s",
                member.name,
                step + 1,
                mean,
                time.perf_counter() - started,
            )


def reading_examples(tokenizer: PreTrainedTokenizerBase, training: Training) -> Examples:
    """Worked problems in the PRM's layout, to be continued as a language model does."""
    rows = []
    for problem in training_problems(training.examples, stream=training.stream):
        prompt = render_prompt(tokenizer, PRM_FAMILY.system_prompt, problem.question)
        prompt_ids, solution = tokenizer([prompt, _joined(problem.steps)])["input_ids"]
        rows.append((prompt_ids + solution, [IGNORED] * len(prompt_ids) + solution))
    return pad_examples(rows)


def prm_examples(tokenizer: PreTrainedTokenizerBase, training: Training) -> Examples:
    """Labelled solutions in the layout of Qwen2.5-Math-PRM.

    A search reads rewards at separators only, but every token of a solution has a label here:
    right until the first token that departs from the worked solution, wrong from there. That
    shows where a mistake is; labels at separators alone were hardly learned at this size.
    """
    folders = [member.folder for member in PRM_SEES]
    rows = []
    for problem, steps in solutions_to_judge(
        folders, training.examples, training.stream, training.seed
    ):
        prompt = render_prompt(tokenizer, PRM_FAMILY.system_prompt, problem.question)
        prompt_ids, written, worked = tokenizer([prompt, _joined(steps), _joined(problem.steps)])[
            "input_ids"
        ]
        labels = right_so_far(written, worked)
        rows.append((prompt_ids + written, [IGNORED] * len(prompt_ids) + labels))
    return pad_examples(rows)


def _joined(steps: Sequence[str]) -> str:
    return "".join(step + PRM_FAMILY.separator for step in steps)


def right_so_far(written: list[int], worked: list[int]) -> list[int]:
    """1 for every token up to which both are equal, then 0."""
    equal = [a == b for a, b in zip(written, worked, strict=False)]
    right = equal.index(False) if False in equal else len(equal)
    return [1] * right + [0] * (len(written) - right)


class StepClassifier(torch.nn.Module):
    """The PRM with a cross-entropy over right and wrong at the labelled tokens."""

    def __init__(self, prm: Qwen2ForProcessRewardModel) -> None:
        super().__init__()
        self.prm = prm

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.prm(input_ids=input_ids)
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        return SimpleNamespace(loss=loss)


def train_prm(member: Member) -> None:
    """Trains and saves the PRM: its reader, the surprise above it, then the last layer."""
    tokenizer = AutoTokenizer.from_pretrained(PRM_STARTS_FROM.folder)
    tokenizer.save_pretrained(member.folder)
    reader = train_reader(tokenizer)
    torch.manual_seed(member.training.seed)
    examples = prm_examples(tokenizer, member.training)
    prm = built_prm(member, reader, tokenizer)
    add_surprise(prm, reader, examples)
    optimise(StepClassifier(prm), examples, member)
    prm.save_pretrained(member.folder)


def train_reader(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A policy that has learned to read the PRM's layout: other prompt, other delimiter."""
    reader = Qwen2ForCausalLM.from_pretrained(PRM_STARTS_FROM.folder)
    optimise(reader, reading_examples(tokenizer, READER.training), READER)
    return reader


def built_prm(
    member: Member, reader: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> Qwen2ForProcessRewardModel:
    """A wider model with the reader in its first layers and new ones above."""
    config = qwen2_config(member.shape, tokenizer)
    config.architectures, config.num_labels = ["Qwen2ForProcessRewardModel"], 2
    prm = Qwen2ForProcessRewardModel(config)
    grow(reader, prm)
    below = len(reader.model.layers)
    quieten(prm.model, below, 1 / READER_LOUDNESS)
    enlarge([*prm.model.layers[below:], prm.score])
    torch.nn.init.ones_(prm.model.norm.weight)
    # The last layer begins by looking at all tokens alike.
    torch.nn.init.zeros_(prm.model.layers[-1].self_attn.q_proj.weight)
    return prm


def add_surprise(
    prm: Qwen2ForProcessRewardModel, reader: Qwen2ForCausalLM, examples: Examples
) -> None:
    """Teaches the layers above the reader to say how surprised it is, then freezes them too.

    Left free, the reader forgets its arithmetic before the last layer has learned to use it.
    """
    ids, labels = examples.batch(np.arange(SURPRISE.examples))
    prepare_surprise(prm.model, reader, most_frequent(ids[labels != IGNORED]))
    learn_surprise(prm.model, reader, (ids, labels), SURPRISE)
    for part in (prm.model.embed_tokens, *prm.model.layers[:-1]):
        part.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=[*LADDER, PRM.name])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    if arguments.model == PRM.name:
        train_prm(PRM)
    else:
        train_policy(LADDER[arguments.model])


if __name__ == "__main__":
    main()
