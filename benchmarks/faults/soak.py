"""Faults at random, several in one run: a schedule that a seed decides.

Invariant: the same seed strikes in the same order at the same places of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import time

from benchmarks.faults.kinds import Fault, Strike
from benchmarks.faults.measure import Outcome, ended, outcome
from benchmarks.faults.world import Finished, Size, World, begin, finish

FAULTS_A_RUN = 4
# Of the answers of the undisturbed run.
FIRST, LAST = 0.05, 0.9
LONGEST_S = 10.0


@dataclass(frozen=True, slots=True)
class Round:
    """One run: what struck it, in order, and what became of it."""

    struck: tuple[str, ...]
    outcome: Outcome

    def __str__(self) -> str:
        end = "equal" if self.outcome.is_equal else f"NOT EQUAL: {self.outcome.log}"
        return f"{', '.join(self.struck)}: {end}"


def schedule(faults: Sequence[Fault], seed: int) -> list[tuple[float, Fault]]:
    """When which fault strikes, as a share of the run."""
    random = Random(seed)
    places = sorted(random.uniform(FIRST, LAST) for _ in range(FAULTS_A_RUN))
    return [(place, random.choice(faults)) for place in places]


def soak_round(
    world: World, folder: Path, size: Size, faults: Sequence[Fault], plain: Finished, seed: int
) -> Round:
    """A run with several faults; lost nodes are replaced at once, as a cloud does."""
    planned, random = schedule(faults, seed), Random(seed)
    running = begin(world, folder, size)
    started_s = time()
    with ended(running):
        for place, fault in planned:
            running.wait_for_share(place, plain.policy)
            fault.strike(Strike(running, random, random.uniform(1.0, LONGEST_S)))
            world.restore()
        found = finish(running)
    struck = tuple(fault.name for _, fault in planned)
    return Round(struck, outcome(" + ".join(struck), found, plain, started_s))
