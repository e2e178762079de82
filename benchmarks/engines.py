"""The engines side by side: speed, and how little of what they have seen they compute again.

`python -m benchmarks.engines [transformers] [vllm]`: engines in this process, without Ray. First
the embedded models on arithmetic (best of N, with the PRM scoring every step). Then a tree of depth
8 as a large model grows it: a question of 200 tokens, 16 subtrees of 4 candidates, steps of 50
tokens, written and scored by small random checkpoints, on one replica and on three.
"""

import argparse
import asyncio
import gc
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from actors.engines import load_policy_engine, load_prm_engine
from actors.engines.process_reward_model import Qwen2ForProcessRewardModel
from actors.prm_families import PRM_FAMILIES
from actors.spec import ModelSpec
from actors.wire import ExpandItem, ScoreItem
from benchmarks.results import Result, result, write_results, writes_results
from jobs.data import DataSource, load_problems
from search.protocols import PolicyPath, PRMPath, Sampling, StopReason
from search.token_ids import pack_ids, unpack_ids

MODELS = Path(__file__).parent.parent / "embedded" / "models"
FAMILY = "qwen2.5-math-prm"
PROBLEMS, SAMPLES = 16, 32
SUBTREES, BRANCHING, DEPTH, STEP_TOKENS, QUESTION_TOKENS = 16, 4, 8, 50, 200
HEAD = 32
# About 3 million parameters.
WIDTH, LAYERS = 256, 4
GOAL = 1.3
NO_DELIMITER = "\n\n\n\n"


@dataclass(slots=True)
class Spent:
    """What a policy and a PRM did in one measurement."""

    seconds: float = 0.0
    generated: int = 0
    expansions: int = 0
    prefix: int = 0
    prefix_computed: int = 0
    shareable: int = 0
    prm_computed: int = 0
    prm_minimal: int = 0
    rewards: list[float] = field(default_factory=list)

    def row(self, *labels: str) -> tuple[str, ...]:
        # What is fed with the first new token is not counted as computed by all engines.
        read = min(1.0, (self.prefix - self.prefix_computed) / self.shareable)
        return (
            *labels,
            f"{self.generated / self.seconds:,.0f}",
            f"{self.prm_minimal / self.seconds:,.0f}",
            f"{100 * read:.1f} %",
            f"{self.prm_ratio:.2f}",
        )

    @property
    def prm_ratio(self) -> float:
        return self.prm_computed / self.prm_minimal


class Replicas:
    """Engines of one kind; a subtree stays on one of them."""

    def __init__(self, policy: ModelSpec, prm: ModelSpec, count: int) -> None:
        self.policies = [load_policy_engine(policy) for _ in range(count)]
        self.prms = [load_prm_engine(prm) for _ in range(count)]

    def close(self) -> None:
        for engine in (*self.policies, *self.prms):
            close = getattr(engine, "close", None)
            if close is not None:
                close()
        self.policies.clear()
        self.prms.clear()
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="*", default=["transformers", "vllm"])
    writes_results(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    columns = ("engine", "work", "policy tokens/s", "PRM tokens/s", "prefix read", "PRM ratio")
    table = Table(*columns, title="engines (float32, two cores)")
    found = [measurement for engine in arguments.engines for measurement in measured(engine)]
    for *labels, spent in found:
        table.add_row(*spent.row(*labels))
    Console(width=110).print(table)
    results = [_prm_result(*each) for each in found if each[1].startswith("tree")]
    write_results(arguments.to, "python -m benchmarks.engines", results)


def _prm_result(engine: str, work: str, spent: Spent) -> Result:
    what, apart = f"PRM tokens over the minimum, {engine}, {work}", "blocks that are not full"
    return result(what, GOAL, [spent.prm_ratio], apart, at_most=True)


def measured(engine: str) -> Iterator[tuple[str, str, Spent]]:
    """Engine, work, and what was spent; each measurement starts its engines anew."""
    embedded = specs(engine, MODELS / "policy-0.6m", next(MODELS.glob("prm-*")))
    with replicas(*embedded, 1) as running:
        yield engine, "arithmetic", asyncio.run(timed(arithmetic(running)))
    with tempfile.TemporaryDirectory() as folder:
        policy, prm = random_checkpoints(Path(folder))
        for count in (1, 3):
            with replicas(*specs(engine, policy, prm), count) as running:
                spent = asyncio.run(timed(tree(running)))
            yield engine, f"tree of depth 8, {count} replica{'s' * (count > 1)}", spent


@contextmanager
def replicas(policy: ModelSpec, prm: ModelSpec, count: int) -> Iterator[Replicas]:
    running = Replicas(policy, prm, count)
    try:
        yield running
    finally:
        running.close()


def specs(engine: str, policy: Path, prm: Path) -> tuple[ModelSpec, ModelSpec]:
    common: dict[str, Any] = {"engine": engine, "dtype": "float32", "max_batch": 64}
    system = PRM_FAMILIES[FAMILY].system_prompt
    return (
        ModelSpec("policy", str(policy), **common),
        ModelSpec("prm", str(prm), **common, system_prompt=system, family=FAMILY),
    )


def random_checkpoints(folder: Path) -> tuple[Path, Path]:
    """A policy that hardly ever ends a text, and a PRM, with the embedded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "policy-0.6m")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=WIDTH // HEAD // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    for name, kind in (("policy", Qwen2ForCausalLM), ("prm", Qwen2ForProcessRewardModel)):
        config.architectures = [kind.__name__]
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "policy", folder / "prm"


async def timed(work: Any) -> Spent:
    started = time.perf_counter()
    spent: Spent = await work
    spent.seconds = time.perf_counter() - started
    return spent


async def arithmetic(running: Replicas) -> Spent:
    """Best of N on sums, every step scored."""
    options: dict[str, JsonValue] = {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 2,
        "max_digits": 2,
    }
    source = DataSource(source="reasoning_gym:chain_sum", size=PROBLEMS, seed=3, options=options)
    problems = [problem.text for problem in load_problems([source])]
    spent = Spent()
    async with asyncio.TaskGroup() as tasks:
        for place in range(PROBLEMS * SAMPLES):
            tasks.create_task(solution(running, problems[place % PROBLEMS], place, spent))
    return spent


async def solution(running: Replicas, problem: str, seed: int, spent: Spent) -> None:
    ids, steps = b"", tuple[str, ...]()
    for depth in range(12):
        [step] = await expand(running, 0, problem, ids, 1, seed * 100 + depth, Sampling(), spent)
        ids, steps = ids + step.token_ids, (*steps, step.text)
        await score(running, 0, problem, steps, spent)
        if step.stop_reason is StopReason.EOS:
            return


async def tree(running: Replicas) -> Spent:
    """DVTS's tree with the first candidate always kept."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "policy-0.6m")
    text = "3 + 5 * " * QUESTION_TOKENS
    question = str(tokenizer.decode(tokenizer(text)["input_ids"][:QUESTION_TOKENS]))
    spent = Spent()
    async with asyncio.TaskGroup() as tasks:
        for place in range(SUBTREES):
            tasks.create_task(subtree(running, question, place, spent))
    # Each replica must see the question once; one that saw it before this tree would not.
    spent.shareable -= QUESTION_TOKENS * len(running.policies)
    return spent


async def subtree(running: Replicas, question: str, place: int, spent: Spent) -> None:
    ids, steps, replica = b"", tuple[str, ...](), place % len(running.policies)
    sampling = Sampling(delimiter=NO_DELIMITER)
    for depth in range(DEPTH):
        seed = place * 100 + depth
        children = await expand(running, replica, question, ids, BRANCHING, seed, sampling, spent)
        paths = [(*steps, child.text) for child in children]
        async with asyncio.TaskGroup() as tasks:
            for path in paths:
                tasks.create_task(score(running, replica, question, path, spent))
        kept = unpack_ids(children[0].token_ids)
        if children[0].stop_reason is StopReason.EOS:
            kept = kept[:-1]
        ids, steps = ids + pack_ids(kept), paths[0]


async def expand(
    running: Replicas,
    replica: int,
    problem: str,
    ids: bytes,
    n: int,
    seed: int,
    sampling: Sampling,
    spent: Spent,
) -> Sequence[Any]:
    item = ExpandItem(PolicyPath(problem, ids), n, sampling, STEP_TOKENS, seed)
    found = await running.policies[replica].expand(item)
    spent.expansions += n
    spent.generated += sum(len(unpack_ids(child.token_ids)) for child in found.completions)
    spent.prefix += found.prefix_tokens
    spent.prefix_computed += found.prefix_tokens_computed
    # The last token of a prefix has no state yet: each child must compute it.
    spent.shareable += found.prefix_tokens - n
    return found.completions


async def score(
    running: Replicas, replica: int, problem: str, steps: tuple[str, ...], spent: Spent
) -> None:
    found = await running.prms[replica].score(ScoreItem(PRMPath(problem, steps)))
    spent.rewards.append(found.reward)
    spent.prm_computed += found.tokens_computed
    spent.prm_minimal += found.tokens_minimal


if __name__ == "__main__":
    main()
