"""What the orchestration costs: node expansions a second with engines that cost nothing.

`python -m benchmarks.overhead`: the whole path (driver, Ray tasks, Serve replicas, tables), the
same searches without Ray (strategies and fake engines in one process), and calls alone with
batches of several sizes. Zero-latency fake engines on both sides.
"""

import argparse
import asyncio
import contextlib
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table

from actors.client import RemotePolicy
from actors.spec import ModelSpec
from benchmarks.results import Result, result, write_results, writes_results
from cluster.admission import admission_of
from cluster.connect import connected
from cluster.deploy import deployed
from cluster.fanout import Site, replica_of, run_units
from search.config import Limits, SearchConfig
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.protocols import PolicyPath, Sampling
from search.rewards import Reduction
from search.scripted import SeededPolicy, SeededPRM
from search.strategies import keep_count

REPETITIONS = 5
GOAL_MS, GOAL_A_SECOND = 0.2, 5000
WHOLE = "whole path: "
PROBLEMS = 32
SOLUTIONS_PER_UNIT = 64
BATCH = 128
SEARCHES = (("best_of_n", 64, 1), ("beam", 64, 4), ("dvts", 64, 4))
BATCHES = (1, 16, 256)
LIMITS = Limits(max_steps=12, max_step_tokens=64, max_solution_tokens=600)
FAKE = ModelSpec("fake", "fake", "fake", "float64", max_batch=BATCH)
ADMISSION = admission_of(
    PROBLEMS * SOLUTIONS_PER_UNIT,
    replicas=1,
    max_batch=BATCH,
    solutions_per_unit=SOLUTIONS_PER_UNIT,
    speculation=False,
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Expansions a second and processor seconds of each, one number a repetition.

    An expansion is one sampled step. Processor time is that of this process and all that it
    started, Ray's own included.
    """

    label: str
    per_second: list[float]
    cpu_s: list[float]

    def row(self) -> tuple[str, ...]:
        middle = statistics.median(self.per_second)
        cpu_ms = [1000 * each for each in self.cpu_s]
        return (
            self.label,
            f"{middle:,.0f}",
            f"{min(self.per_second):,.0f} to {max(self.per_second):,.0f}",
            f"{statistics.median(cpu_ms):.3f}",
            f"{min(cpu_ms):.3f} to {max(cpu_ms):.3f}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    writes_results(parser)
    options = parser.parse_args()
    logging.getLogger("branchwise").setLevel(logging.WARNING)
    heads = ("path", "expansions/s (median)", "spread", "CPU ms each (median)", "spread")
    table, found = Table(*heads, title="overhead"), asyncio.run(_measure())
    for rates in found:
        table.add_row(*rates.row())
    Console().print(table)
    results = [each for rates in found if rates.label.startswith(WHOLE) for each in _results(rates)]
    write_results(options.to, "python -m benchmarks.overhead", results)


def _results(rates: Rates) -> Iterator[Result]:
    name, cpu_ms = rates.label.removeprefix(WHOLE), [1000 * each for each in rates.cpu_s]
    apart = "calls; the search itself takes 0.03 to 0.05 ms"
    yield result(f"processor ms an expansion, {name}", GOAL_MS, cpu_ms, apart, at_most=True)
    yield result(f"expansions a second, {name}", GOAL_A_SECOND, rates.per_second, apart)


async def _measure() -> list[Rates]:
    found = [await _repeated(f"no Ray: {name}", _in_process(name)) for name, _, _ in SEARCHES]
    with connected(None):
        async with deployed("prm", FAKE) as prms, deployed("policy", FAKE) as policies:
            await asyncio.gather(prms, policies)
            for name, _, _ in SEARCHES:
                found.append(await _repeated(f"{WHOLE}{name}", _through_ray(name)))
            for batch in BATCHES:
                found.append(await _repeated(f"calls alone, batch {batch}", _calls(batch)))
    return found


async def _repeated(label: str, measure: Callable[[], Awaitable[tuple[int, float]]]) -> Rates:
    """The first repetition warms processes and handles up and does not count."""
    await measure()
    rates, cpu_s = [], []
    for _ in range(REPETITIONS):
        before_s = _processor_s()
        expansions, seconds = await measure()
        rates.append(expansions / seconds)
        cpu_s.append((_processor_s() - before_s) / expansions)
    return Rates(label, rates, cpu_s)


def _processor_s() -> float:
    """Processor seconds so far of this process and all that came from it."""
    this, total_s = psutil.Process(), 0.0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def _units(name: str) -> Iterator[WorkUnit]:
    [(n, branching)] = [(n, m) for search, n, m in SEARCHES if search == name]
    keep = keep_count(name, n, branching)
    config = SearchConfig(name, n, branching, keep, Reduction.LAST, 1, LIMITS)
    for place in range(PROBLEMS):
        yield from partition(Problem(f"p{place}", "1 + 1 =", "2"), config, SOLUTIONS_PER_UNIT)


def _in_process(name: str) -> Callable[[], Awaitable[tuple[int, float]]]:
    async def measure() -> tuple[int, float]:
        started, expansions = time.perf_counter(), 0
        for unit in _units(name):
            growth = await run_unit(unit, SeededPolicy(), SeededPRM())
            expansions += growth.budget.generations
        return expansions, time.perf_counter() - started

    return measure


def _through_ray(name: str) -> Callable[[], Awaitable[tuple[int, float]]]:
    async def measure() -> tuple[int, float]:
        site = Site("fake", "policy", "prm", 0, 0, unit_timeout_s=600)
        started, expansions = time.perf_counter(), 0
        async for done in run_units(_units(name), site, ADMISSION):
            expansions += done.units["generations"][0].as_py()
        return expansions, time.perf_counter() - started

    return measure


def _calls(batch: int) -> Callable[[], Awaitable[tuple[int, float]]]:
    """One client that sends its next batch when the last one is answered."""

    async def measure() -> tuple[int, float]:
        policy = RemotePolicy(replica_of("policy", "bench"))
        path = PolicyPath("1 + 1 =", b"")
        started, calls = time.perf_counter(), max(1, 512 // batch)
        for _ in range(calls):
            async with asyncio.TaskGroup() as tasks:
                for seed in range(batch):
                    tasks.create_task(policy.expand(path, 1, Sampling(), 64, seed))
        return calls * batch, time.perf_counter() - started

    return measure


if __name__ == "__main__":
    main()
