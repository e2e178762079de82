"""One problem alone: how long a search takes, against the shortest time that its tree allows.

`python -m benchmarks.latency [--toy]`. First in virtual time: engines that take 20 ms an iteration
(and 0.01 ms more for each sequence in it), 4 ms to score, steps of 48 tokens on average (lognormal,
coefficient of variation 0.6), 8 steps give or take 2. A batch holds N sequences, and `slots` is N.
Then through Ray Serve in real time, with fake engines of the same timing.

- Critical path of `dvts`: of the subtrees the longest, each the sum over its steps of its longest
  candidate, alone in the engine, and one score. Of lock-step `dvts` and of `beam` without
  speculation: the sum over depths of the longest candidate of all, and one score each.
- Limit of `beam`: what perfect speculation would take: the longest path from the root to any node
  of the tree, alone in the engine, with one score a step.
- Waste: tokens that the policy's engine wrote beyond those of the tree, aborted ones included, of
  all it wrote. The lock-step `dvts` of search-and-learn is written out here; others are ours.
"""

import argparse
import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.client import RemotePolicy, RemotePRM
from actors.spec import ModelSpec
from benchmarks.results import Result, result, write_results, writes_results
from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.rewards import Reduction
from search.rows import node_table, solution_table
from search.scripted import SeededPolicy, SeededPRM
from search.simulated import EngineTiming, SimulatedEngine, SimulatedPolicy, SimulatedPRM
from search.strategies import keep_count
from search.tree import ROOT, Tree
from search.virtual_time import run_virtually

BRANCHING = 4
WIDTHS = (64, 256)
SEEDS = range(5)
TRANSPORT_N, TRANSPORT_SEEDS = 64, range(3)
TOY_WIDTHS, TOY_SEEDS = (16,), range(2)
AUCS = (0.7, 0.8, 0.9)
LIMITS = Limits(max_solution_tokens=4096)
STEPS: dict[str, Any] = {
    "p": 0.8,
    "mean_steps": 8,
    "spread": 2,
    "step_tokens": 48.0,
    "step_cv": 0.6,
}
POLICY_TIME = {"iteration_s": 0.02, "sequence_s": 1e-5}
PRM_TIME = {"iteration_s": 0.004, "sequence_s": 1e-5}
STEP_S = sum(POLICY_TIME.values())
SCORE_S = sum(PRM_TIME.values())

Grow = Callable[[WorkUnit, SimulatedPolicy, SimulatedPRM], Coroutine[Any, Any, Growth]]
GOAL_PATH, GOAL_BEAM, GOAL_WASTE = 0.9, 1.5, 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search: its tree, how long it took, and the tokens its engine wrote."""

    growth: Growth
    seconds: float
    tokens: int

    @property
    def waste(self) -> float:
        return 1 - self.growth.budget.policy_tokens / self.tokens


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: the same search over all seeds, a number for each."""

    label: str
    seconds: list[float]
    best_possible: list[float]
    lock_step: list[float]
    waste: list[float]
    same_trees: bool

    def row(self) -> tuple[str, ...]:
        pairs = list(zip(self.best_possible, self.seconds, strict=True))
        faster = list(zip(self.lock_step, self.seconds, strict=True))
        return (
            self.label,
            f"{statistics.mean(self.seconds):.1f}",
            spread([ideal / taken for ideal, taken in pairs]),
            spread([slow / taken for slow, taken in faster]),
            spread(self.waste),
            "yes" if self.same_trees else "NO",
        )


def spread(numbers: Sequence[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="small and quick, without Ray")
    parser.add_argument("--only", choices=("virtual", "serve"), help="one of the two parts")
    writes_results(parser)
    options = parser.parse_args(arguments)
    toy, only = options.toy, options.only
    if toy and only == "serve":
        parser.error("--toy is without Ray: leave out one of --toy and --only serve")
    logging.getLogger("branchwise").setLevel(logging.WARNING)
    console = Console(width=140)
    if only != "serve":
        widths, seeds = (TOY_WIDTHS, TOY_SEEDS) if toy else (WIDTHS, SEEDS)
        lines = [line for n in widths for line in _virtual_lines(n, seeds)]
        console.print(_table("one problem alone, in virtual time", lines))
        write_results(options.to, "python -m benchmarks.latency", list(_results(lines)))
    if only != "virtual" and not toy:
        console.print(_table("through Ray Serve, in real time", _serve_lines()))


def _results(lines: Sequence[Line]) -> Iterator[Result]:
    """What a search does alone, of the lines in virtual time."""
    for line in lines:
        name = f"{line.label.partition(':')[0]}, alone"
        pairs = zip(line.best_possible, line.seconds, strict=True)
        if ":" not in line.label:
            ratios, apart = [ideal / taken for ideal, taken in pairs], "a full batch is slower"
            yield result(f"{name}: critical path over time", GOAL_PATH, ratios, apart)
        elif line.label.endswith("speculative, limit"):
            times = zip(line.lock_step, line.seconds, strict=True)
            ratios, apart = [slow / taken for slow, taken in times], "steps that were not foreseen"
            yield result(f"{name}: times lock-step beam", GOAL_BEAM, ratios, apart)
            yield result(f"{name}: tokens wasted", GOAL_WASTE, line.waste, apart, at_most=True)


def _table(title: str, lines: Sequence[Line]) -> Table:
    columns = ("search", "seconds", "shortest / taken", "times lock-step", "waste", "same trees")
    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line.row())
    return table


# ---- in virtual time


def _virtual_lines(n: int, seeds: Sequence[int]) -> Iterator[Line]:
    units = [_unit("dvts", n, seed) for seed in seeds]
    slow = [_simulated(unit, 0.8, _lock_step_dvts) for unit in units]
    fast = [_simulated(unit, 0.8, run_unit) for unit in units]
    lock_step, ideals = _times(slow), [longest_subtree_s(each.growth.tree) for each in fast]
    yield _line(f"dvts, N = {n}: lock-step", slow, ideals, lock_step, units, slow)
    yield _line(f"dvts, N = {n}", fast, ideals, lock_step, units, slow)
    units = [_unit("beam", n, seed) for seed in seeds]
    for auc in AUCS:
        slow = [_simulated(unit, auc, run_unit) for unit in units]
        fast = [_simulated(unit, auc, _speculative) for unit in units]
        lock_step, ideals = _times(slow), [longest_path_s(each.growth.tree) for each in slow]
        label = f"beam, N = {n}, PRM {auc}"
        rounds = [sum_of_depths_s(each.growth.tree) for each in slow]
        yield _line(f"{label}: lock-step, own path", slow, rounds, lock_step, units, slow)
        yield _line(f"{label}: lock-step, limit", slow, ideals, lock_step, units, slow)
        yield _line(f"{label}: speculative, limit", fast, ideals, lock_step, units, slow)


def _line(
    label: str,
    found: Sequence[Outcome],
    ideals: list[float],
    lock_step: list[float],
    units: Sequence[WorkUnit],
    plain: Sequence[Outcome],
) -> Line:
    same = all(
        _rows(unit, ours.growth) == _rows(unit, theirs.growth)
        for unit, ours, theirs in zip(units, found, plain, strict=True)
    )
    return Line(label, _times(found), ideals, lock_step, [each.waste for each in found], same)


def _times(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.seconds for outcome in outcomes]


def _rows(unit: WorkUnit, growth: Growth) -> tuple[object, object]:
    return node_table(unit, "", growth.tree), solution_table(unit, "", growth)


def _unit(strategy: str, n: int, seed: int) -> WorkUnit:
    keep = keep_count(strategy, n, BRANCHING)
    config = SearchConfig(strategy, n, BRANCHING, keep, Reduction.LAST, seed, LIMITS)
    [unit] = partition(Problem("alone", "1 + 1 =", "2"), config, n)
    return unit


def _simulated(unit: WorkUnit, auc: float, grow: Grow) -> Outcome:
    n = unit.config.n
    engine = SimulatedEngine(EngineTiming(**POLICY_TIME, max_batch=n))
    policy = SimulatedPolicy(SeededPolicy(**STEPS), engine)
    scorer = SimulatedEngine(EngineTiming(**PRM_TIME, max_batch=n))
    prm = SimulatedPRM(SeededPRM(auc=auc), scorer)
    growth, seconds = run_virtually(grow(unit, policy, prm))
    return Outcome(growth, seconds, engine.tokens)


async def _speculative(unit: WorkUnit, policy: SimulatedPolicy, prm: SimulatedPRM) -> Growth:
    return await run_unit(unit, policy, prm, slots=unit.config.n)


async def _lock_step_dvts(unit: WorkUnit, policy: SimulatedPolicy, prm: SimulatedPRM) -> Growth:
    """All subtrees wait for the slowest at each depth, as in search-and-learn."""
    growth = Growth(unit.problem, policy, prm, unit.config)
    growing = dict.fromkeys(range(unit.first, unit.stop), ROOT)
    while growing:
        async with asyncio.TaskGroup() as tasks:
            rounds = {
                subtree: tasks.create_task(growth.expand(node, subtree, BRANCHING))
                for subtree, node in growing.items()
            }
        for subtree, candidates in ((each, task.result()) for each, task in rounds.items()):
            growing[subtree] = max(candidates, key=growth.score)
            growth.tree.keep([growing[subtree]])
            if growth.tree.ends_solution(growing[subtree]):
                growth.tree.close(candidates)
                del growing[subtree]
    return growth


# ---- the shortest times


def longest_subtree_s(tree: Tree) -> float:
    """The longest sum, over the steps of a subtree, of its longest candidate and one score."""
    return max(_sums_of_rounds_s(tree, lambda node: tree.subtrees[node]).values())


def sum_of_depths_s(tree: Tree) -> float:
    """The sum over depths of the longest candidate and one score."""
    return _sums_of_rounds_s(tree, lambda node: 0)[0]


def _sums_of_rounds_s(tree: Tree, part_of: Callable[[int], int]) -> dict[int, float]:
    def place(node: int) -> tuple[int, int]:
        return part_of(node), tree.depths[node]

    sums: dict[int, float] = {}
    for (part, _), nodes in groupby(sorted(range(len(tree)), key=place), key=place):
        sums[part] = sums.get(part, 0.0) + max(_step_s(tree, node) for node in nodes)
    return sums


def longest_path_s(tree: Tree) -> float:
    """The longest path from the root to a node, with one score a step."""
    return max(sum(_step_s(tree, step) for step in tree.path(node)) for node in range(len(tree)))


def _step_s(tree: Tree, node: int) -> float:
    return tree.step_tokens(node) * STEP_S + SCORE_S


# ---- through Ray Serve


def _serve_lines() -> list[Line]:
    units = {
        strategy: [_unit(strategy, TRANSPORT_N, seed) for seed in TRANSPORT_SEEDS]
        for strategy in ("dvts", "beam")
    }
    virtual = [_simulated(unit, 0.8, run_unit) for unit in units["dvts"]]
    lock_step = [_simulated(unit, 0.8, _lock_step_dvts).seconds for unit in units["dvts"]]
    dvts, slow, fast = asyncio.run(_served(units["dvts"], units["beam"]))
    ideals = [longest_subtree_s(each.growth.tree) for each in virtual]
    limits = [longest_path_s(each.growth.tree) for each in slow]
    label = f"dvts, N = {TRANSPORT_N} (its lock-step in virtual time)"
    beams, name, times = units["beam"], f"beam, N = {TRANSPORT_N}, PRM 0.8", _times(slow)
    return [
        _line(label, dvts, ideals, lock_step, units["dvts"], virtual),
        _line(f"{name}: lock-step, limit", slow, limits, times, beams, slow),
        _line(f"{name}: speculative, limit", fast, limits, times, beams, slow),
    ]


async def _served(dvts: Sequence[WorkUnit], beams: Sequence[WorkUnit]) -> list[list[Outcome]]:
    """The searches one after the other, beams without and with speculation."""
    from cluster.connect import connected
    from cluster.deploy import deployed

    policy = ModelSpec("fake", "fake", "fake", "float64", max_batch=TRANSPORT_N)
    prm = replace(policy, options=PRM_TIME | {"auc": 0.8})
    policy = replace(policy, options=POLICY_TIME | STEPS)
    with connected(None):
        async with deployed("prm", prm) as prms, deployed("policy", policy) as policies:
            await asyncio.gather(prms, policies)
            await _through_serve(_unit("dvts", 16, 99), 0)  # warms the handles up
            wanted = ((dvts, 0), (beams, 0), (beams, TRANSPORT_N))
            return [
                [await _through_serve(unit, slots) for unit in units] for units, slots in wanted
            ]


async def _through_serve(unit: WorkUnit, slots: int) -> Outcome:
    """Waste here is what the search itself knows: aborted sequences are not in it."""
    from cluster.fanout import replica_of

    policy = RemotePolicy(replica_of("policy", unit.unit_id), gives_up=True)
    prm = RemotePRM(replica_of("prm", unit.unit_id))
    started = time.perf_counter()
    growth = await run_unit(unit, policy, prm, slots)
    seconds, budget = time.perf_counter() - started, growth.budget
    return Outcome(growth, seconds, budget.policy_tokens + budget.wasted_policy_tokens)


if __name__ == "__main__":
    main()
