"""The transformers policy on tiny checkpoints: what it writes, and that nothing else sways it.

A scripted checkpoint writes tokens as told, so that every way to end a step can be shown.
"""

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS, TINY, TOKENIZER_FOLDER, SaveCheckpoint, scripted_policy
from test_floors import run_python
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from actors.engines.rows import Rows
from actors.engines.transformers_policy import TransformersPolicy
from actors.spec import ModelSpec
from actors.wire import ExpandItem
from search.errors import PolicyError
from search.protocols import Completion, Expansion, PolicyPath, Sampling, StopReason
from search.token_ids import pack_ids, unpack_ids

PROBLEM = "What is 12 + 7?"
PROMPT_END = 202  # the newline after "assistant"
# Short enough to be written often by a random policy.
SAMPLED = Sampling(temperature=1.0, top_p=0.9, delimiter="in")
GREEDY = Sampling(temperature=0.0)
HANG_S = 120


def engine_of(folder: Path, max_batch: int = 8, **options: Any) -> TransformersPolicy:
    kind = ("tiny", str(folder), "transformers", "float64")
    return TransformersPolicy(ModelSpec(*kind, max_batch=max_batch, options=options))


def item_of(
    seed: int = 0,
    n: int = 1,
    steps: bytes = b"",
    sampling: Sampling = SAMPLED,
    max_tokens: int = 12,
    problem: str = PROBLEM,
) -> ExpandItem:
    return ExpandItem(PolicyPath(problem, steps), n, sampling, max_tokens, seed)


async def expand_all(engine: TransformersPolicy, items: Sequence[ExpandItem]) -> list[Any]:
    async with asyncio.timeout(HANG_S):
        return await asyncio.gather(*map(engine.expand, items), return_exceptions=True)


def expand(engine: TransformersPolicy, item: ExpandItem) -> Expansion:
    [result] = asyncio.run(expand_all(engine, [item]))
    if isinstance(result, BaseException):
        raise result
    return result


def write_one(engine: TransformersPolicy, item: ExpandItem) -> Completion:
    return expand(engine, item).completions[0]


def write_path(engine: TransformersPolicy, seed: int, steps: int, sampling: Sampling) -> bytes:
    """The token ids of a path that is continued from what the engine returned."""
    path = b""
    for step in range(steps):
        path += write_one(engine, item_of(seed + step, 1, path, sampling, 5)).token_ids
    return path


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)


def prompt_ids(problem: str = PROBLEM) -> list[int]:
    text = f"<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
    return list(tokenizer()(text)["input_ids"])


@cache
def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def greedy_reference(folder: Path, tokens: int) -> list[int]:
    prompt = torch.tensor([prompt_ids()])
    written = plain_model(folder).generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens
    )
    return list(written[0, prompt.shape[1] :].tolist())


def reference_logprob(folder: Path, steps: bytes, completion: Completion) -> float:
    """Summed log-softmax of a completion from one forward pass over everything."""
    before, new = prompt_ids() + unpack_ids(steps), unpack_ids(completion.token_ids)
    with torch.no_grad():
        logits = plain_model(folder)(torch.tensor([before + new])).logits[0]
    rows = torch.log_softmax(logits, dim=-1)[len(before) - 1 : -1]
    return float(rows[torch.arange(len(new)), torch.tensor(new)].sum())


def assert_same(found: Expansion, expected: Expansion) -> None:
    """Text, ids and stop reasons are equal; sums may differ by rounding."""
    for one, other in zip(found.completions, expected.completions, strict=True):
        assert (one.text, one.token_ids) == (other.text, other.token_ids)
        assert one.stop_reason is other.stop_reason
        assert one.logprob == pytest.approx(other.logprob, abs=1e-9)


def ids_of(*texts: str) -> list[int]:
    """The ids of texts that are one token each."""
    return list(tokenizer().convert_tokens_to_ids(list(texts)))


def scripted_completion(
    save: SaveCheckpoint, tokens: Sequence[int], delimiter: str, max_tokens: int = 9
) -> Completion:
    """What the engine makes of a policy that writes these tokens and repeats the last one."""
    folder = save(scripted_policy(dict(zip([PROMPT_END, *tokens], tokens, strict=False))))
    item = item_of(sampling=Sampling(0.0, 1.0, delimiter), max_tokens=max_tokens)
    return write_one(engine_of(folder), item)


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> TransformersPolicy:
    return engine_of(policy_folder)


@pytest.fixture(scope="module")
def alone(policy: TransformersPolicy) -> list[tuple[ExpandItem, Expansion]]:
    """Expansions of many seeds, depths and sizes, each computed with nothing beside it."""
    paths = [
        write_path(policy, seed=100 + depth, steps=depth, sampling=SAMPLED) for depth in (1, 3)
    ]
    items = [
        item_of(seed, 1 + seed % 3, steps, Sampling(temperature, 0.9, "in"), 4 + seed % 9)
        for seed in range(8)
        for steps in (b"", *paths)
        for temperature in (0.7, 1.3)
    ]
    return [(item, expand(policy, item)) for item in items]


async def _share_items(
    engine: TransformersPolicy, items: Sequence[ExpandItem], at_once: int
) -> list[Expansion]:
    """Expands items in random order, a new one as soon as another has left."""
    results: dict[int, Expansion] = {}
    order = list(range(len(items)))
    random.Random(5).shuffle(order)
    left = iter(order)

    async def worker() -> None:
        for place in left:
            results[place] = await engine.expand(items[place])

    async with asyncio.timeout(HANG_S), asyncio.TaskGroup() as workers:
        for _ in range(at_once):
            workers.create_task(worker())
    return [results[place] for place in range(len(items))]


@pytest.mark.unit
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_temperature_zero_is_greedy_generation(save_checkpoint: SaveCheckpoint, seed: int) -> None:
    torch.manual_seed(seed)
    folder = save_checkpoint(Qwen2ForCausalLM(Qwen2Config(**TINY)))
    written = unpack_ids(write_path(engine_of(folder), seed=0, steps=6, sampling=GREEDY))
    assert len(written) > 5
    assert written == greedy_reference(folder, len(written))


@pytest.mark.unit
def test_a_llama_checkpoint_works_as_well(save_checkpoint: SaveCheckpoint) -> None:
    torch.manual_seed(4)
    folder = save_checkpoint(LlamaForCausalLM(LlamaConfig(**TINY)))
    engine = engine_of(folder)
    written = write_path(engine, seed=0, steps=4, sampling=GREEDY)
    assert unpack_ids(written) == greedy_reference(folder, len(written) // 4)
    sampled = write_one(engine, item_of(3, steps=written))
    assert sampled.logprob == pytest.approx(reference_logprob(folder, written, sampled), abs=1e-9)


@pytest.mark.unit
def test_logprob_is_the_sum_over_the_written_tokens(
    policy_folder: Path, alone: list[tuple[ExpandItem, Expansion]]
) -> None:
    for item, expansion in alone[::6]:
        for completion in expansion.completions:
            expected = reference_logprob(policy_folder, item.path.token_ids, completion)
            assert completion.logprob == pytest.approx(expected, abs=1e-9)


@pytest.mark.unit
def test_the_cases_below_vary(alone: list[tuple[ExpandItem, Expansion]]) -> None:
    completions = [c for _, expansion in alone for c in expansion.completions]
    assert {c.stop_reason for c in completions} >= {StopReason.DELIMITER, StopReason.LENGTH}
    assert len({c.text for c in completions}) > 0.9 * len(completions)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("max_batch", "at_once", "options"),
    [(3, 3, {}), (2, 5, {}), (8, 20, {}), (8, 20, {"kv_store_bytes": 1})],
    ids=["three", "more than fit", "full batch", "nothing stored"],
)
def test_a_completion_does_not_depend_on_what_runs_beside_it(
    policy_folder: Path,
    alone: list[tuple[ExpandItem, Expansion]],
    max_batch: int,
    at_once: int,
    options: dict[str, int],
) -> None:
    engine = engine_of(policy_folder, max_batch, **options)
    together = asyncio.run(_share_items(engine, [item for item, _ in alone], at_once))
    for found, (_, expected) in zip(together, alone, strict=True):
        assert_same(found, expected)


@pytest.mark.unit
def test_a_completion_depends_on_seed_and_place_alone(policy: TransformersPolicy) -> None:
    for seed in range(10):
        many = expand(policy, item_of(seed, n=5)).completions
        few = expand(policy, item_of(seed, n=2)).completions
        assert [c.token_ids for c in few] == [c.token_ids for c in many[:2]]
        assert len({c.token_ids for c in many}) == 5


@pytest.mark.unit
@pytest.mark.parametrize("model", ["random", "embedded"])
def test_children_may_be_asked_for_one_by_one(policy_folder: Path, model: str) -> None:
    engine = engine_of(policy_folder if model == "random" else TOKENIZER_FOLDER)
    whole = item_of(seed=7, n=4)
    parts = [expand(engine, dataclasses.replace(whole, n=1, first=first)) for first in range(4)]
    together = expand(engine, whole)
    assert tuple(part.completions[0] for part in parts) == together.completions
    assert sum(part.prefix_tokens for part in parts) == together.prefix_tokens


@pytest.mark.unit
def test_a_path_from_the_store_equals_one_computed_anew(
    policy: TransformersPolicy, policy_folder: Path
) -> None:
    for seed in range(0, 40, 10):
        path = write_path(policy, seed, steps=4, sampling=SAMPLED)
        item = item_of(seed, 3, path)
        stored, anew = expand(policy, item), expand(engine_of(policy_folder), item)
        assert stored.prefix_tokens_computed == 0
        assert anew.prefix_tokens_computed > 0
        assert_same(stored, anew)


@pytest.mark.unit
def test_a_prefix_is_computed_once(policy_folder: Path) -> None:
    engine, prompt = engine_of(policy_folder), len(prompt_ids())
    first = expand(engine, item_of(n=3))
    # The last token is fed with the first new one and so belongs to no prefix.
    assert (first.prefix_tokens, first.prefix_tokens_computed) == (3 * prompt, prompt - 1)
    assert expand(engine, item_of(n=3)).prefix_tokens_computed == 0
    elsewhere = pack_ids([50, 60, 70])
    found = expand(engine, item_of(steps=elsewhere))
    assert (found.prefix_tokens, found.prefix_tokens_computed) == (prompt + 3, 3)
    assert expand(engine, item_of(steps=elsewhere)).prefix_tokens_computed == 0


@pytest.mark.unit
@pytest.mark.parametrize(
    ("tokens", "delimiter", "text"),
    [
        (["S", "boxed", "T"], "xe", "Sboxed"),
        (["S", ".Ċ", "T"], "\n", "S.\n"),
        (["S", "a", "b", "T"], "ab", "Sab"),
        (["S", "bo", "xed", "T"], "ox", "Sboxed"),
        (["Ċ", "Ċ"], "\n\n", "\n\n"),
        (["S", "ĊĊ", "T"], "\n\n", "S\n\n"),
    ],
)
def test_a_step_ends_with_the_token_that_completes_the_delimiter(
    save_checkpoint: SaveCheckpoint, tokens: list[str], delimiter: str, text: str
) -> None:
    found = scripted_completion(save_checkpoint, ids_of(*tokens), delimiter)
    assert (found.text, found.stop_reason) == (text, StopReason.DELIMITER)


@pytest.mark.unit
@pytest.mark.parametrize("delimiter", ["。", "→", "é"])
def test_a_delimiter_of_several_byte_tokens_ends_a_step(
    save_checkpoint: SaveCheckpoint, delimiter: str
) -> None:
    ids = tokenizer()(delimiter)["input_ids"]
    assert len(ids) > 1
    found = scripted_completion(save_checkpoint, [*ids_of("S"), *ids, *ids_of("T")], delimiter)
    assert (found.text, found.stop_reason) == (f"S{delimiter}", StopReason.DELIMITER)


@pytest.mark.unit
def test_a_step_ends_at_the_token_limit(save_checkpoint: SaveCheckpoint) -> None:
    found = scripted_completion(save_checkpoint, ids_of("S", "T"), "\n\n", max_tokens=4)
    assert (found.text, found.stop_reason) == ("STTT", StopReason.LENGTH)
    assert unpack_ids(found.token_ids) == ids_of("S", "T", "T", "T")


@pytest.mark.unit
@pytest.mark.parametrize("max_tokens", [9, 3])
def test_end_of_text_ends_a_step_and_stays_out_of_its_text(
    save_checkpoint: SaveCheckpoint, max_tokens: int
) -> None:
    found = scripted_completion(save_checkpoint, [*ids_of("S", "T"), EOS], "\n\n", max_tokens)
    assert (found.text, found.stop_reason) == ("ST", StopReason.EOS)
    assert unpack_ids(found.token_ids) == [*ids_of("S", "T"), EOS]


@pytest.mark.unit
def test_a_step_ends_where_the_context_is_full(save_checkpoint: SaveCheckpoint) -> None:
    script = scripted_policy({PROMPT_END: 54}, len(prompt_ids()) + 3)
    engine = engine_of(save_checkpoint(script))
    found = write_one(engine, item_of(sampling=GREEDY))
    assert (found.text, found.stop_reason) == ("SSS", StopReason.LENGTH)
    last = write_one(engine, item_of(steps=pack_ids([54, 54]), sampling=GREEDY))
    assert (last.text, last.stop_reason) == ("S", StopReason.LENGTH)


@pytest.mark.unit
def test_a_path_that_fills_the_context_is_refused_and_others_go_on(
    save_checkpoint: SaveCheckpoint,
) -> None:
    folder = save_checkpoint(scripted_policy({PROMPT_END: 54}, len(prompt_ids()) + 2))
    engine = engine_of(folder)
    items = [item_of(problem="1" * 99), item_of(sampling=GREEDY), item_of(steps=bytes(8))]
    too_long, fits, full = asyncio.run(expand_all(engine, items))
    assert isinstance(fits, Expansion)
    for error in (too_long, full):
        assert isinstance(error, PolicyError)
        assert "limits.max_solution_tokens" in str(error)
    engine.check_health()


@pytest.mark.unit
def test_a_problem_that_is_no_text_fails_alone(policy_folder: Path) -> None:
    engine = engine_of(policy_folder)
    bad, good = asyncio.run(expand_all(engine, [item_of(problem="\ud800"), item_of()]))
    assert (type(bad), type(good)) == (PolicyError, Expansion)
    engine.check_health()


@pytest.mark.unit
def test_a_cancelled_request_leaves_the_batch(save_checkpoint: SaveCheckpoint) -> None:
    # Endless: neither its limit nor its context is within reach of this test.
    engine = engine_of(save_checkpoint(scripted_policy({PROMPT_END: 54}, 10**6)), max_batch=2)
    endless = item_of(n=3, max_tokens=10**6, sampling=GREEDY)

    async def cancel_one() -> Expansion:
        holding = asyncio.create_task(engine.expand(endless))
        await asyncio.sleep(0)
        beside = asyncio.create_task(engine.expand(item_of(n=2, max_tokens=5, sampling=GREEDY)))
        done, _ = await asyncio.wait([beside], timeout=0.3)
        assert not done, "both rows are taken, so this request must wait"
        holding.cancel()
        return await asyncio.wait_for(beside, HANG_S)

    assert [len(c.text) for c in asyncio.run(cancel_one()).completions] == [5, 5]


@pytest.mark.unit
def test_cancelling_does_not_touch_other_requests(
    policy_folder: Path, alone: list[tuple[ExpandItem, Expansion]]
) -> None:
    engine = engine_of(policy_folder, max_batch=4)
    cancelled = [item_of(seed, n=3, max_tokens=300) for seed in range(900, 910)]

    async def among_cancelled() -> list[Expansion]:
        leaving = [asyncio.create_task(engine.expand(item)) for item in cancelled]
        async with asyncio.TaskGroup() as tasks:
            sharing = tasks.create_task(_share_items(engine, [item for item, _ in alone], 6))
            for task in leaving:
                await asyncio.sleep(0.01)
                task.cancel()
        return sharing.result()

    for found, (_, expected) in zip(asyncio.run(among_cancelled()), alone, strict=True):
        assert_same(found, expected)


@pytest.mark.unit
def test_a_model_that_raises_fails_everything_that_waits(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(policy_folder, max_batch=2)
    engine.check_health()

    def break_down(*args: object, **arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Rows, "forward", break_down)
    for items in ([item_of(seed, n=2) for seed in range(5)], [item_of()]):
        for error in asyncio.run(expand_all(engine, items)):
            assert isinstance(error, RuntimeError)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.check_health()


def test_a_replica_imports_no_scipy_with_its_model(policy_folder: Path) -> None:
    """It is a twelfth of what a replica takes to import, and only losses of detectors need it."""
    lines = (
        "import sys; from actors.engines import load_policy_engine as load",
        "from actors.spec import ModelSpec",
        f"load(ModelSpec('p', {str(policy_folder)!r}, 'transformers', 'float32'))",
        "from transformers.utils import is_scipy_available",
        "print('scipy' in sys.modules, is_scipy_available())",
    )
    assert run_python("-c", "\n".join(lines)).split() == ["False", "True"]
