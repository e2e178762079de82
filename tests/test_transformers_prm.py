"""The transformers PRM on a tiny checkpoint: true rewards, and no token computed twice."""

import asyncio
import shutil
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOKENIZER_FILES, TOKENIZER_FOLDER
from transformers import AutoTokenizer

from actors.engines.process_reward_model import Qwen2ForProcessRewardModel
from actors.engines.rows import Rows
from actors.engines.transformers_prm import TransformersPRM
from actors.spec import ModelSpec
from actors.wire import ScoreItem
from search.errors import PRMError, RecipeError
from search.protocols import PRMPath, Score

PROBLEM = "What is 12 + 7?"
OTHER_PROBLEM = "What is 5 - 9?"
SYSTEM = "Please reason step by step."
STEPS = ("Step 1: 12 + 7 = 19.\n\n", "Then 19 is right.\n\n", "So it is \\boxed{19}.")
SEPARATOR = "<extra_0>"
SEPARATOR_ID = 3
# Paths that share prefixes, a whole tree of them.
TREE = [
    *(STEPS[:depth] for depth in (1, 2, 3)),
    (STEPS[0], "Another way."),
    (STEPS[0], "Another way.", STEPS[2]),
    ("12 + 7 = 20.\n\n",),
    ("12 + 7 = 20.\n\n", STEPS[1]),
]
HANG_S = 120


def spec_of(folder: Path, max_batch: int, **options: Any) -> ModelSpec:
    return ModelSpec(
        "tiny",
        str(folder),
        "transformers",
        "float64",
        max_batch=max_batch,
        system_prompt=SYSTEM,
        family="qwen2.5-math-prm",
        options=options,
    )


def engine_of(folder: Path, max_batch: int = 8, **options: Any) -> TransformersPRM:
    return TransformersPRM(spec_of(folder, max_batch, **options))


async def score_all(
    engine: TransformersPRM, paths: Sequence[Sequence[str]], problem: str = PROBLEM
) -> list[Score | BaseException]:
    items = [ScoreItem(PRMPath(problem, tuple(steps))) for steps in paths]
    async with asyncio.timeout(HANG_S):
        return await asyncio.gather(*map(engine.score, items), return_exceptions=True)


def score(engine: TransformersPRM, *paths: Sequence[str], problem: str = PROBLEM) -> list[Score]:
    scores = []
    for result in asyncio.run(score_all(engine, paths, problem)):
        if isinstance(result, BaseException):
            raise result
        scores.append(result)
    return scores


def header_of(problem: str = PROBLEM) -> str:
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
    )


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)


def tokens_of(text: str) -> list[int]:
    return list(tokenizer()(text)["input_ids"])


def step_tokens(step: str) -> int:
    """What a step costs: its own tokens and its separator."""
    return len(tokens_of(laid_out(step)))


def laid_out(step: str) -> str:
    """A step as the PRM's model card writes it, without its delimiter."""
    return step.strip() + SEPARATOR


@cache
def plain_model(folder: Path) -> Any:
    return Qwen2ForProcessRewardModel.from_pretrained(folder, dtype=torch.float64).eval()


def reference_rewards(folder: Path, steps: Sequence[str], problem: str = PROBLEM) -> list[float]:
    """The reward at every separator, from one forward pass over the whole layout."""
    ids = tokens_of(header_of(problem) + "".join(map(laid_out, steps)))
    with torch.no_grad():
        logits = plain_model(folder)(torch.tensor([ids]))[0]
    rewards = torch.softmax(logits, dim=-1)[:, 1]
    return [float(rewards[place]) for place, token in enumerate(ids) if token == SEPARATOR_ID]


def reference_reward(folder: Path, steps: Sequence[str], problem: str = PROBLEM) -> float:
    return reference_rewards(folder, steps, problem)[-1]


def assert_true_rewards(folder: Path, results: Sequence[Score], paths: Sequence[Any]) -> None:
    for result, steps in zip(results, paths, strict=True):
        assert result.reward == pytest.approx(reference_reward(folder, steps), abs=1e-6)


def token_bytes(engine: TransformersPRM) -> int:
    """The size of one token's states."""
    config = engine._model.config
    head_size = config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_size * 8)


@pytest.mark.unit
def test_the_references_differ(prm_folder: Path) -> None:
    rewards = [round(reference_reward(prm_folder, steps), 6) for steps in TREE]
    assert len(set(rewards)) == len(TREE)


@pytest.mark.unit
def test_rewards_step_by_step_are_those_of_the_whole_layout(prm_folder: Path) -> None:
    engine = engine_of(prm_folder)
    found = [score(engine, STEPS[: depth + 1])[0].reward for depth in range(len(STEPS))]
    assert found == pytest.approx(reference_rewards(prm_folder, STEPS), abs=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_batch_gets_true_rewards_in_its_order(prm_folder: Path, max_batch: int) -> None:
    for paths in (TREE, TREE[::-1]):
        results = score(engine_of(prm_folder, max_batch), *paths)
        assert_true_rewards(prm_folder, results, paths)


@pytest.mark.unit
def test_the_problem_and_the_steps_before_count(prm_folder: Path) -> None:
    engine = engine_of(prm_folder)
    for problem in (PROBLEM, OTHER_PROBLEM):
        for steps in (STEPS[:1], STEPS[1:2], STEPS[:2]):
            expected = reference_reward(prm_folder, steps, problem)
            [found] = score(engine, steps, problem=problem)
            assert found.reward == pytest.approx(expected, abs=1e-6)


@pytest.mark.unit
def test_steps_do_not_run_together(prm_folder: Path) -> None:
    paths = [("1 +", "2"), ("1 + 2",), ("1", "+ 2")]
    assert_true_rewards(prm_folder, score(engine_of(prm_folder), *paths), paths)


@pytest.mark.unit
def test_a_new_step_costs_its_own_tokens(prm_folder: Path) -> None:
    engine = engine_of(prm_folder)
    for depth, step in enumerate(STEPS):
        [found] = score(engine, STEPS[: depth + 1])
        header = len(tokens_of(header_of())) if depth == 0 else 0
        assert found.tokens_computed == header + step_tokens(step)
        assert found.tokens_minimal == step_tokens(step)


@pytest.mark.unit
def test_a_path_scored_before_costs_nothing(prm_folder: Path) -> None:
    engine = engine_of(prm_folder)
    first, again = score(engine, *TREE), score(engine, *TREE)
    assert [found.reward for found in again] == [found.reward for found in first]
    assert [found.tokens_computed for found in again] == [0] * len(TREE)
    assert [found.tokens_minimal for found in again] == [step_tokens(p[-1]) for p in TREE]


@pytest.mark.unit
def test_a_batch_computes_what_it_shares_once(prm_folder: Path) -> None:
    endings = [f"The answer is {place}." for place in range(5)]
    paths = [(*STEPS[:2], ending) for ending in endings]
    found = score(engine_of(prm_folder), *paths, paths[0])
    shared = len(tokens_of(header_of())) + sum(map(step_tokens, STEPS[:2]))
    computed = sum(result.tokens_computed for result in found)
    assert computed == shared + sum(map(step_tokens, endings))
    assert_true_rewards(prm_folder, found, [*paths, paths[0]])


@pytest.mark.unit
def test_an_evicted_prefix_is_computed_again(prm_folder: Path) -> None:
    room = len(tokens_of(header_of(OTHER_PROBLEM))) + step_tokens(STEPS[0]) + 1
    engine = engine_of(prm_folder, kv_store_bytes=room * token_bytes(engine_of(prm_folder)))
    score(engine, STEPS[:1])
    score(engine, STEPS[:1], problem=OTHER_PROBLEM)  # drives out the first problem
    [found] = score(engine, (STEPS[0], "a"))
    assert found.tokens_computed > found.tokens_minimal
    assert found.reward == pytest.approx(reference_reward(prm_folder, (STEPS[0], "a")), abs=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("max_batch", [1, 2, 8])
@pytest.mark.parametrize("room_tokens", [1, 60, 120, 240])
def test_a_small_store_never_gives_a_wrong_reward(
    prm_folder: Path, max_batch: int, room_tokens: int
) -> None:
    """It may be too small for a batch; then it must say so."""
    room = room_tokens * token_bytes(engine_of(prm_folder))
    engine = engine_of(prm_folder, max_batch, kv_store_bytes=room)
    wide = [*TREE, *((STEPS[0], f"{place} is the answer.") for place in range(6))]
    for paths in (wide, wide[::-1]):
        for result, steps in zip(asyncio.run(score_all(engine, paths)), paths, strict=True):
            if isinstance(result, Score):
                assert_true_rewards(prm_folder, [result], [steps])
            else:
                assert isinstance(result, PRMError)
    engine.check_health()


@pytest.mark.unit
def test_a_store_that_is_too_small_says_what_to_change(prm_folder: Path) -> None:
    engine = engine_of(prm_folder, kv_store_bytes=1)
    with pytest.raises(PRMError, match=r"raise prm\.options\.kv_store_bytes"):
        score(engine, STEPS)


@pytest.mark.unit
def test_a_solution_beyond_the_context_is_refused_and_others_go_on(prm_folder: Path) -> None:
    engine = engine_of(prm_folder)
    too_long, fits = asyncio.run(score_all(engine, [("1 " * 400,), STEPS[:1]]))
    assert isinstance(too_long, PRMError)
    assert "limits.max_solution_tokens" in str(too_long)
    assert isinstance(fits, Score)
    engine.check_health()


@pytest.mark.unit
def test_a_solution_that_is_no_text_fails_alone(prm_folder: Path) -> None:
    engine = engine_of(prm_folder)
    bad, good = asyncio.run(score_all(engine, [("\ud800",), STEPS[:1]]))
    assert isinstance(bad, PRMError)
    assert isinstance(good, Score)
    engine.check_health()


@pytest.mark.unit
def test_a_solution_may_fill_the_context(prm_folder: Path) -> None:
    room = 512 - len(tokens_of(header_of())) - 1
    [found] = score(engine_of(prm_folder), ["1" * room])
    assert found.tokens_computed == 512
    with pytest.raises(PRMError):
        score(engine_of(prm_folder), ["1" * (room + 1)])


@pytest.mark.unit
def test_a_tokenizer_without_the_separator_is_refused(prm_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prm_folder, tmp_path / "prm")
    for name in TOKENIZER_FILES:
        text = (folder / name).read_text().replace(SEPARATOR, "<other>")
        (folder / name).write_text(text)
    with pytest.raises(RecipeError, match=r"no token '<extra_0>'.*change prm\.family"):
        engine_of(folder)


@pytest.mark.unit
def test_a_cancelled_request_is_not_computed(
    prm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, entered, release = engine_of(prm_folder), threading.Event(), threading.Event()
    forward = Rows.forward

    def wait_in_forward(rows: Rows, *args: Any, **arguments: Any) -> Any:
        entered.set()
        assert release.wait(HANG_S)
        return forward(rows, *args, **arguments)

    async def cancel_one() -> None:
        running = asyncio.create_task(score_all(engine, [STEPS[:1]]))
        await asyncio.to_thread(entered.wait, HANG_S)
        waiting = asyncio.create_task(score_all(engine, [STEPS[:2]]))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        release.set()
        await running

    monkeypatch.setattr(Rows, "forward", wait_in_forward)
    asyncio.run(cancel_one())
    [found] = score(engine, STEPS[:2])
    assert found.tokens_computed == step_tokens(STEPS[1])


@pytest.mark.unit
def test_a_model_that_raises_fails_everything_that_waits(
    prm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(prm_folder)
    engine.check_health()

    def break_down(*args: object, **arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Rows, "forward", break_down)
    for paths in (TREE, TREE[:1]):
        for error in asyncio.run(score_all(engine, paths)):
            assert isinstance(error, RuntimeError)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.check_health()
