"""How full the policy's batches are, by how many solutions are under way and in a task.

`python -m benchmarks.room [--toy]`, in virtual time: one replica of each role, 4,096 solutions;
replicas and steps as in `benchmarks.scaling`, and steps of more varied length. Filled is the time
that the tokens would take in batches that are always full, over the time that they took. Why
`ROOM` is what it is, and why a task carries one batch: its room is free when all of it has ended.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks.scaling import BRANCHING, POLICY, PRM, STEPS
from cluster.admission import ROOM, Admission
from jobs.simulation import Fleet, simulate
from search.config import SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction
from search.step_model import StepModel
from search.strategies import keep_count

ROOMS = (2, 3, ROOM, 6)
VARIATIONS = (0.6, 1.0)
SEARCHES = (("dvts", 64), ("dvts", 16), ("beam", 16), ("beam", 256))
SOLUTIONS, TOY_SOLUTIONS = 4096, 256
FULL_TOKEN_S = POLICY.iteration_s / POLICY.max_batch + POLICY.sequence_s


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small, to see that it works")
    solutions = TOY_SOLUTIONS if parser.parse_args(arguments).toy else SOLUTIONS
    filled = {f"{room} x": partial(_filled, room=room) for room in ROOMS}
    filled[f"{ROOM} x, two batches a task"] = partial(_filled, in_task=2)
    title = "filled, by solutions under way"
    table = Table("search", "variation of lengths", *filled, title=title)
    for variation in VARIATIONS:
        steps = replace(STEPS, step_cv=variation)
        for strategy, n in SEARCHES:
            row = (f"{share(strategy, n, solutions, steps):.2f}" for share in filled.values())
            table.add_row(f"{strategy}, N = {n}", str(variation), *row)
    Console(width=110).print(table)


def _filled(
    strategy: str, n: int, solutions: int, steps: StepModel, room: int = ROOM, in_task: int = 1
) -> float:
    batch = POLICY.max_batch
    admission = Admission(batch, in_task * batch, speculation=False, room=room)
    fleet = Fleet(policy=POLICY, policies=1, admission=admission, prm=PRM)
    done = simulate(_units(strategy, n, solutions), fleet, steps)
    return done.end.policy_tokens * FULL_TOKEN_S / done.makespan_s


def _units(strategy: str, n: int, solutions: int) -> Iterator[WorkUnit]:
    keep = keep_count(strategy, n, BRANCHING)
    config = SearchConfig(strategy, n, BRANCHING, keep, Reduction.LAST, 1)
    for place in range(solutions // n):
        yield from partition(Problem(f"p{place}", "1 + 1 =", "2"), config, POLICY.max_batch)


if __name__ == "__main__":
    main()
