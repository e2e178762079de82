"""How searches scale over replicas: weak and strong, in virtual time and for real through Serve.

`python -m benchmarks.scaling [--real]`: weak scaling gives each replica the same number of
problems; strong scaling divides one problem with N = 512, by DVTS and by beam, which writes ahead.
Efficiency is the time of one replica over that of R (weak), or over R times that of R (strong).
Replicas take `a + b x batch` an iteration and compute nothing, in virtual time and, with `--real`,
in Serve replicas here.
"""

import argparse
import asyncio
import logging
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from actors.spec import ModelSpec
from benchmarks.results import Result, result, write_results, writes_results
from cluster import connect
from cluster.admission import Admission, admission_of
from cluster.connect import connected
from cluster.deploy import deployed
from cluster.fanout import Site, run_units
from jobs.simulation import Fleet, simulate
from search.config import Limits, SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction
from search.simulated import EngineTiming
from search.step_model import StepModel, evenly_spread_ends
from search.strategies import keep_count

POLICY = EngineTiming(iteration_s=0.02, sequence_s=0.0002, prompt_token_s=0.00005, max_batch=64)
PRM = EngineTiming(iteration_s=0.02, sequence_s=0.0, prompt_token_s=0.00005, max_batch=64)
STEPS = StepModel(
    step_tokens=50, step_cv=0.6, end_shares=evenly_spread_ends(8, 2), prompt_tokens=100
)
# The same in real time. The fake policy counts bytes as tokens, so its steps have their own length.
REAL = {"iteration_s": POLICY.iteration_s, "sequence_s": POLICY.sequence_s}
REAL_STEPS = {"mean_steps": 6, "step_tokens": 40.0}
KINDS = {"weak": "dvts", "strong": "dvts", "strong, beam": "beam"}
WEAK, WEAK_REAL, STRONG = (1, 2, 4, 8, 16, 64), (1, 4, 16), (1, 2, 4)
BRANCHING = 4
GOALS = {("weak", 4): 0.95, ("weak", 16): 0.9, ("strong", 4): 0.7, ("strong, beam", 4): 0.7}
UNIT_TIMEOUT_S = 600.0
# Work units of 16 replicas run side by side: a cluster has cores for them on the machines that come
# with the replicas, a local one offers fewer than they ask for.
LOGICAL_CORES = 24
SEEDS = 1_000


@dataclass(frozen=True, slots=True)
class Size:
    """How large the measurement is; a toy one is for tests."""

    problems_a_replica: int = 8
    n: int = 64
    strong_n: int = 512
    solutions_per_unit: int = 32
    repetitions: int = 5
    weak: tuple[int, ...] = WEAK
    strong: tuple[int, ...] = STRONG
    real: tuple[int, ...] = WEAK_REAL
    # Tasks of a batch: a process for each of those under way is what two cores bear.
    real_solutions_per_unit: int = 64


TOY = Size(1, 8, 32, 4, 2, (1, 2), (1, 2), (1, 2), 4)


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """One number a repetition, 1 being perfect."""

    label: str
    replicas: int
    seconds: list[float]
    efficiency: list[float]

    def result(self, goal: float) -> Result:
        what = f"{self.label}: efficiency of {self.replicas} replicas"
        return result(what, goal, self.efficiency, "stragglers at the end")

    def row(self) -> tuple[str, ...]:
        low, high = min(self.efficiency), max(self.efficiency)
        middle = statistics.median(self.efficiency)
        took = f"{statistics.median(self.seconds):,.1f}"
        return self.label, str(self.replicas), took, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="through Serve as well")
    parser.add_argument("--real-only", action="store_true", help="through Serve, not simulated")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--counts", type=int, nargs="+", help="of replicas, through Serve")
    parser.add_argument("--repetitions", type=int, help="of each, after one that warms up")
    parser.add_argument("--toy", action="store_true", help="small, to see that it works")
    writes_results(parser)
    options = parser.parse_args(arguments)
    logging.getLogger("branchwise").setLevel(logging.WARNING)
    size = TOY if options.toy else Size()
    size = replace(
        size,
        repetitions=options.repetitions or size.repetitions,
        real=tuple(options.counts or size.real),
    )
    found: list[Efficiencies] = []
    if not options.real_only:
        found += [line for kind in options.only for line in virtual(size, kind)]
    if options.real or options.real_only:
        found += [line for kind in options.only for line in asyncio.run(real(size, kind))]
    table = Table("scaling", "replicas", "seconds", "efficiency (median)", "spread")
    for line in found:
        table.add_row(*line.row())
    Console(width=110).print(table)
    results = [line.result(goal) for line in found if (goal := _goal(line)) is not None]
    how = " --real-only" if options.real_only else " --real" if options.real else ""
    if options.only != list(KINDS):
        how += f" --only {shlex.join(options.only)}"
    write_results(options.to, f"python -m benchmarks.scaling{how}", results)


def _goal(line: Efficiencies) -> float | None:
    kind, _, _ = line.label.rpartition(", ")
    return GOALS.get((kind, line.replicas))


def virtual(size: Size, kind: str) -> Iterator[Efficiencies]:
    """Simulated replicas, each of both roles, in virtual time."""
    counts = size.weak if kind == "weak" else size.strong
    seeds = range(size.repetitions)
    seconds = {count: [_simulated(size, kind, count, seed) for seed in seeds] for count in counts}
    yield from _efficiencies(f"{kind}, virtual", kind, seconds)


def _efficiencies(label: str, kind: str, seconds: dict[int, list[float]]) -> Iterator[Efficiencies]:
    one = statistics.median(next(iter(seconds.values())))
    for count, took in seconds.items():
        perfect_s = one if kind == "weak" else one / count
        yield Efficiencies(label, count, took, [perfect_s / each for each in took])


def _simulated(size: Size, kind: str, count: int, seed: int) -> float:
    fleet = Fleet(
        policy=POLICY,
        policies=count,
        admission=_admission(size, kind, count),
        prm=PRM,
        prms=count,
    )
    return simulate(_units(size, kind, count, seed), fleet, STEPS).makespan_s


def _admission(size: Size, kind: str, count: int) -> Admission:
    """One problem alone may write ahead."""
    weak = kind == "weak"
    return admission_of(
        size.n * count * size.problems_a_replica if weak else size.strong_n,
        replicas=count,
        max_batch=POLICY.max_batch,
        solutions_per_unit=size.solutions_per_unit,
        speculation=not weak,
    )


def _units(size: Size, kind: str, count: int, seed: int) -> Iterator[WorkUnit]:
    """Problems in proportion to replicas, or one in all."""
    weak, strategy = kind == "weak", KINDS[kind]
    n, problems = (size.n, count * size.problems_a_replica) if weak else (size.strong_n, 1)
    keep = keep_count(strategy, n, BRANCHING)
    config = SearchConfig(strategy, n, BRANCHING, keep, Reduction.LAST, seed, Limits())
    for place in range(problems):
        problem = Problem(f"p{place}", "1 + 1 =", "2")
        yield from partition(problem, config, size.solutions_per_unit)


async def real(size: Size, kind: str) -> list[Efficiencies]:
    """The same through Ray tasks and Serve replicas with fake engines, in real time."""
    counts = size.real if kind == "weak" else [r for r in size.strong if r in (1, 4)]
    small = size
    if kind == "weak":
        small = replace(size, solutions_per_unit=size.real_solutions_per_unit)
    seconds = {count: await _through_serve(small, kind, count) for count in counts}
    return list(_efficiencies(f"{kind}, Serve", kind, seconds))


async def _through_serve(size: Size, kind: str, count: int) -> list[float]:
    # Replicas and work units only wait, so any number of them fits two cores.
    spec = ModelSpec("fake", "fake", "fake", "float64", replicas=count, cpus_per_replica=0.01)
    policy, prm = replace(spec, options=REAL | REAL_STEPS), replace(spec, options=dict(REAL))
    connect.LOCAL_LOGICAL_CORES = LOGICAL_CORES
    with connected(None):
        async with deployed("prm", prm) as starting, deployed("policy", policy) as policy_starting:
            prms, policies = await asyncio.gather(starting, policy_starting)
            assert prms
            assert policies
            site = Site("fake", "policy", "prm", 0, 0, UNIT_TIMEOUT_S, policies.keys, prms.keys)
            seeds = range(-1, size.repetitions)  # the first one warms processes up
            took = [await _timed_run(size, kind, site, seed % SEEDS) for seed in seeds]
            return took[1:]


async def _timed_run(size: Size, kind: str, site: Site, seed: int) -> float:
    count = len(site.policy_keys)
    admission = _admission(size, kind, count)
    started = time.perf_counter()
    async for done in run_units(_units(size, kind, count, seed), site, admission):
        if done.failed:
            raise RuntimeError(done.units["error"][0].as_py())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
