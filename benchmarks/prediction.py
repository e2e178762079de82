"""How well a prediction meets a real run: the embedded models, in one process, on this machine.

`python -m benchmarks.prediction`: fits the cost of an iteration to the embedded policy and the
PRM, takes the statistics of steps from one search, and predicts the time of further searches over
other problems, which then run for real. All is measured in CPU seconds of this process, torch
having one thread, for the wall clock of a shared machine tells what its neighbours do; it is shown
beside. So in the simulation only one of the two engines computes at a time.
"""

import argparse
import asyncio
import dataclasses
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from actors.engines import load_policy_engine, load_prm_engine
from actors.wire import ExpandItem, ScoreItem
from benchmarks.engines import MODELS, specs
from benchmarks.results import result, write_results, writes_results
from jobs.data import DataSource, load_problems
from jobs.step_statistics import observed_steps
from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.protocols import Expansion, PolicyPath, PRMPath, Sampling, Score
from search.rewards import Reduction
from search.simulated import EngineTiming
from search.step_model import ModelledPolicy, ModelledPRM, StepModel
from search.token_ids import count_ids
from search.virtual_time import run_virtually

LIMITS = Limits(max_steps=12, max_step_tokens=32, max_solution_tokens=200)
NEVER = "\n\n\n\n"
BATCHES, CALIBRATIONS, STEPS = (1, 4, 16, 48), 5, (4, 12, 24)
MAX_BATCH = 64
CALIBRATION_SEED = 100
GOAL, APART = 0.2, "an engine's speed changes after its calibration"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    problems: int = 24
    n: int = 32
    repetitions: int = 5
    first_seed: int = 0


TOY = Size(1, 4, 1)


@dataclass(slots=True)
class Counted:
    """An engine in this process as the protocols want it, and what it read and wrote."""

    policy: Any
    prm: Any
    prompt_tokens: int = 0
    prm_computed: int = 0
    prm_minimal: int = 0
    scores: int = 0
    fresh_scores: int = 0

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        item = ExpandItem(path, n, sampling, max_tokens, seed, first)
        found: Expansion = await self.policy.expand(item)
        self.prompt_tokens += found.prefix_tokens_computed
        return found

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self.prm.score(ScoreItem(path))) for path in paths]
        found = [each.result() for each in asked]
        self.prm_computed += sum(score.tokens_computed for score in found)
        self.prm_minimal += sum(score.tokens_minimal for score in found)
        self.scores += len(found)
        self.fresh_scores += sum(score.tokens_computed > 0 for score in found)
        return found


@dataclass(frozen=True, slots=True)
class Took:
    """CPU seconds and seconds on the wall."""

    cpu_s: float
    wall_s: float


class SharedMachine:
    """Engines that take turns: one computes an iteration while the others wait."""

    def __init__(self, policy: EngineTiming, prm: EngineTiming, fresh: float) -> None:
        self._policy_time, self._prm_time = policy, prm
        self._fresh, self._draws = fresh, random.Random(0)
        self._turn = asyncio.Lock()
        self._written: list[tuple[list[int], asyncio.Future[None]]] = []
        self._read: list[tuple[int, asyncio.Future[None]]] = []
        self._loops: dict[str, asyncio.Task[None]] = {}

    async def write(self, prompt_tokens: int, lengths: list[int]) -> None:
        """Until all sequences of a request are written, one token an iteration."""
        if prompt_tokens:
            await self._compute(prompt_tokens * self._policy_time.prompt_token_s)
        done = asyncio.get_running_loop().create_future()
        self._written.append((list(lengths), done))
        self._start("policy", self._write_all())
        await done

    async def read(self, tokens: int) -> None:
        """Until a step has been read, with all that wait."""
        done = asyncio.get_running_loop().create_future()
        # A step with the text of another is not computed; the others bear its mean share.
        fresh = self._draws.random() < self._fresh
        self._read.append((round(tokens / self._fresh) if fresh else 0, done))
        self._start("prm", self._read_all())
        await done

    def _start(self, role: str, work: Any) -> None:
        if role in self._loops and not self._loops[role].done():
            work.close()
        else:
            self._loops[role] = asyncio.create_task(work)

    async def _compute(self, seconds: float) -> None:
        async with self._turn:
            await asyncio.sleep(seconds)

    async def _write_all(self) -> None:
        timing = self._policy_time
        while self._written:
            rows = min(timing.max_batch, sum(len(left) for left, _ in self._written))
            await self._compute(timing.iteration_s + rows * timing.sequence_s)
            places = rows
            for left, _ in self._written:
                for place in range(min(places, len(left))):
                    left[place] -= 1
                    places -= 1
            self._written = [self._going_on(left, done) for left, done in self._written if left]
            self._written = [(left, done) for left, done in self._written if left]

    @staticmethod
    def _going_on(
        left: list[int], done: "asyncio.Future[None]"
    ) -> tuple[list[int], "asyncio.Future[None]"]:
        left = [tokens for tokens in left if tokens > 0]
        if not left:
            done.set_result(None)
        return left, done

    async def _read_all(self) -> None:
        while self._read:
            taken, self._read = self._read, []
            tokens, timing = sum(each for each, _ in taken), self._prm_time
            rows = sum(each > 0 for each, _ in taken) * timing.sequence_s
            if tokens:
                await self._compute(timing.iteration_s + rows + tokens * timing.prompt_token_s)
            for _, done in taken:
                done.set_result(None)


class PredictedPolicy:
    """A unit's policy on a shared machine."""

    def __init__(self, machine: SharedMachine, model: StepModel) -> None:
        self._machine, self._policy = machine, ModelledPolicy(model)

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        found = await self._policy.expand(path, n, sampling, max_tokens, seed, first)
        lengths = [count_ids(completion.token_ids) for completion in found.completions]
        await self._machine.write(found.prefix_tokens_computed, lengths)
        return found


class PredictedPRM:
    """A unit's PRM on a shared machine."""

    def __init__(self, machine: SharedMachine, model: StepModel) -> None:
        self._machine, self._prm = machine, ModelledPRM(model)

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        found = await self._prm.score(paths)
        async with asyncio.TaskGroup() as tasks:
            for score in found:
                tasks.create_task(self._machine.read(score.tokens_computed))
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small, to see that it works")
    parser.add_argument("--first-seed", type=int, default=0, help="of the problems predicted")
    writes_results(parser)
    options = parser.parse_args(arguments)
    size = replace(TOY if options.toy else Size(), first_seed=options.first_seed)
    table = Table("search", "predicted s", "real CPU s", "predicted / real", "wall s")
    ratios = []
    for label, predicted_s, took in asyncio.run(measured(size)):
        ratios.append(predicted_s / took.cpu_s)
        times = f"{predicted_s:.2f}", f"{took.cpu_s:.2f}", f"{ratios[-1]:.3f}", f"{took.wall_s:.2f}"
        table.add_row(label, *times)
    Console(width=110).print(table)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"predicted / real: median {statistics.median(ratios):.3f}, {spread}")
    off = [abs(ratio - 1) for ratio in ratios]
    found = result("prediction against a real run, off by", GOAL, off, APART, at_most=True)
    write_results(options.to, "python -m benchmarks.prediction", [found])


async def measured(size: Size) -> list[tuple[str, float, Took]]:
    """(search, predicted seconds, what it took), each prediction made before its run."""
    torch.set_num_threads(1)
    policy_spec, prm_spec = specs(
        "transformers", MODELS / "policy-0.6m", next(MODELS.glob("prm-*"))
    )
    engines = Counted(load_policy_engine(policy_spec), load_prm_engine(prm_spec))
    policy, prm = await policy_timing(engines.policy), await prm_timing(engines.prm)
    # Last, for the search right behind the calibration is slower than others.
    _, statistics_of = await _real(engines, _units(size, CALIBRATION_SEED))
    fresh, rows = engines.fresh_scores / engines.scores, []
    for seed in range(size.first_seed, size.first_seed + size.repetitions):
        units = _units(size, seed)
        predicted_s = await asyncio.to_thread(predicted, units, policy, prm, statistics_of, fresh)
        took, _ = await _real(engines, units)
        rows.append((f"dvts {seed}", predicted_s, took))
    print(f"policy {policy}\nPRM {prm}\nsteps {statistics_of}\nscores to compute {fresh:.3f}")
    return rows


def _units(size: Size, seed: int) -> list[WorkUnit]:
    options: dict[str, JsonValue] = {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 2,
        "max_digits": 2,
    }
    source = DataSource(
        source="reasoning_gym:chain_sum", size=size.problems, seed=seed, options=options
    )
    config = SearchConfig("dvts", size.n, 4, 1, Reduction.LAST, seed, LIMITS)
    problems = [p for p in load_problems([source]) if isinstance(p, Problem)]
    return [unit for problem in problems for unit in partition(problem, config, size.n)]


async def _real(engines: Counted, units: list[WorkUnit]) -> tuple[Took, StepModel]:
    engines.prompt_tokens = engines.prm_computed = engines.prm_minimal = 0
    engines.scores = engines.fresh_scores = 0
    started, started_wall = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        grown = [tasks.create_task(run_unit(unit, engines, engines)) for unit in units]
    took = Took(time.process_time() - started, time.perf_counter() - started_wall)
    return took, _steps([each.result() for each in grown], engines)


def _steps(grown: list[Growth], engines: Counted) -> StepModel:
    trees = [growth.tree for growth in grown]
    nodes = [(tree, node) for tree in trees for node in range(len(tree))]
    tokens = [tree.step_tokens(node) for tree, node in nodes]
    depths = [tree.depths[node] for tree, node in nodes]
    reasons = [tree.stop_reason(node) for tree, node in nodes]
    return observed_steps(
        tokens,
        depths,
        reasons,
        prompt_tokens=round(engines.prompt_tokens / len(trees)),
        prm_prompt_tokens=max(0, engines.prm_computed - engines.prm_minimal) // len(trees),
        # Equal steps are scored once, so it may compute less than one token for each.
        prm_tokens_per_token=min(engines.prm_computed, engines.prm_minimal) / sum(tokens),
    )


def predicted(
    units: list[WorkUnit],
    policy: EngineTiming,
    prm: EngineTiming,
    model: StepModel,
    fresh: float = 1.0,
) -> float:
    """Simulated seconds of the units, all at once. `fresh`: the share of scores to compute."""

    async def run() -> None:
        machine = SharedMachine(policy, prm, fresh)
        async with asyncio.TaskGroup() as tasks:
            for unit in units:
                search = run_unit(
                    unit, PredictedPolicy(machine, model), PredictedPRM(machine, model)
                )
                tasks.create_task(search)

    return run_virtually(run())[1]


async def policy_timing(engine: Any) -> EngineTiming:
    """Least squares: seconds of a request = tokens x (a + b x batch) + c x tokens read."""
    rows, seconds = [], []
    for longest, batch in itertools.product(STEPS * CALIBRATIONS, BATCHES):
        path = PolicyPath(f"Calculate {longest} + {batch} + {time.perf_counter_ns()}.", b"")
        for again in (False, True):  # the second time its prefix is in the cache
            item = ExpandItem(path, batch, Sampling(delimiter=NEVER), longest, again)
            started = time.process_time()
            found = await engine.expand(item)
            seconds.append(time.process_time() - started)
            lengths = [count_ids(completion.token_ids) for completion in found.completions]
            rows.append((max(lengths), sum(lengths), found.prefix_tokens_computed))
    return _fitted(rows, seconds)


async def prm_timing(engine: Any) -> EngineTiming:
    """Least squares: seconds of a batch = a + b x batch + c x tokens."""
    rows, seconds = [], []
    for place in range(CALIBRATIONS):
        for batch in BATCHES:
            steps = [
                f"{place} + {i} = {i + place}, so {time.perf_counter_ns()}" for i in range(batch)
            ]
            started = time.process_time()
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(engine.score(ScoreItem(PRMPath("What is 1 + 1?", (step,)))))
                    for step in steps
                ]
            seconds.append(time.process_time() - started)
            rows.append((1, batch, sum(each.result().tokens_computed for each in asked)))
    return _fitted(rows, seconds)


def _fitted(rows: list[tuple[int, int, int]], seconds: list[float]) -> EngineTiming:
    """The costs, none below 0, by relative error; of equal measurements the median."""
    from scipy.optimize import nnls

    equal: dict[tuple[int, int, int], list[float]] = {}
    for row, took_s in zip(rows, seconds, strict=True):
        equal.setdefault(row, []).append(took_s)
    middle = np.array([statistics.median(times) for times in equal.values()])
    found, _ = nnls(np.array(list(equal), dtype=float) / middle[:, None], np.ones(len(middle)))
    timing = EngineTiming(max_batch=MAX_BATCH)
    return dataclasses.replace(
        timing,
        iteration_s=max(1e-6, float(found[0])),
        sequence_s=float(found[1]),
        prompt_token_s=float(found[2]),
    )


if __name__ == "__main__":
    main()
