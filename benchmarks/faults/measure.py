"""One fault, one run, and what became of it, beside a run that was left alone."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow as pa

from benchmarks.faults.kinds import Fault, Strike, small_disk
from benchmarks.faults.ledgers import Redone, redone
from benchmarks.faults.world import Finished, Running, Size, World, begin, end, finish

EQUAL = ("problems", "nodes", "solutions", "answers", "samples")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault cost. times: how long the searches took, in those of the undisturbed run."""

    fault: str
    policy: Redone
    prm: Redone
    units_redone: int
    times: float
    unequal: tuple[str, ...]
    log: str

    @property
    def after_s(self) -> tuple[float, ...]:
        """When the first and the last lost request was asked again; empty if none was lost."""
        both = self.policy.after_s + self.prm.after_s
        return (min(both), max(both)) if both else ()

    @property
    def is_equal(self) -> bool:
        """Whether every row is that of the undisturbed run, and every unit is there once."""
        return not self.unequal


def undisturbed(world: World, folder: Path, size: Size) -> Finished:
    """The run that all others are compared with."""
    running = begin(world, folder, size)
    with ended(running):
        return finish(running)


def disturbed(
    world: World, folder: Path, size: Size, fault: Fault, plain: Finished, lasts_s: float
) -> Outcome:
    """The same run with a fault in its middle; the cluster is whole again afterwards."""
    with _runs_folder(folder, fault) as runs:
        running = begin(world, folder, size, runs)
        with ended(running):
            running.wait_for_share(fault.strikes_at, plain.policy)
            struck_at_s = time.time()
            fault.strike(Strike(running, Random(fault.name), lasts_s))
            found = finish(running, runs)
    world.restore()
    return outcome(fault.name, found, plain, struck_at_s)


def outcome(name: str, found: Finished, plain: Finished, struck_at_s: float) -> Outcome:
    """What a disturbed run shows beside an undisturbed one."""
    return Outcome(
        name,
        redone(found.policy, plain.policy, struck_at_s),
        redone(found.prm, plain.prm, struck_at_s),
        found.units_redone,
        found.policy.span_s / plain.policy.span_s,
        tuple(_unequal(found, plain)),
        found.log,
    )


def _unequal(found: Finished, plain: Finished) -> Iterator[str]:
    """The tables in which something differs."""
    for name in EQUAL:
        if rows(getattr(found.run, name)) != rows(getattr(plain.run, name)):
            yield name
    if _units(found) != _units(plain):
        yield "units"


def rows(table: pa.Table) -> list[str]:
    """Rows in an order of their own."""
    return sorted(json.dumps(row, sort_keys=True) for row in table.to_pylist())


def _units(found: Finished) -> list[tuple[str, str]]:
    units = found.run.units
    return sorted(zip(units["unit_id"].to_pylist(), units["status"].to_pylist(), strict=True))


@contextlib.contextmanager
def _runs_folder(folder: Path, fault: Fault) -> Iterator[Path | None]:
    if not fault.needs_mount:
        yield None
        return
    with small_disk(folder) as runs:
        yield runs


@contextlib.contextmanager
def ended(running: Running) -> Iterator[None]:
    """Leaves no driver behind."""
    try:
        yield
    finally:
        end(running)
