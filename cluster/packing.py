"""Whether replicas find room on machines: a pure simulation of how Ray Serve places them.

Invariant: a replica stands on one machine and has whole GPUs, or a part of one; sums over the
cluster do not tell that. Serve is told to pack (cluster/connect.py): each replica goes where it
leaves the least room, in the order in which models are deployed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actors.spec import ModelSpec

# Ray counts in parts of 1/10000.
ROUNDING = 1e-4


@dataclass(frozen=True, slots=True)
class Machine:
    """What is free: cores, and of each GPU the part that is not lent."""

    cores: float
    gpus: tuple[float, ...] = ()

    def with_replica(self, spec: ModelSpec) -> "Machine | None":
        """What stays free beside one replica more; None if it does not fit."""
        cores, gpus = self.cores - spec.cpus_per_replica, self._gpus_left(spec.gpus_per_replica)
        return None if gpus is None or cores < -ROUNDING else Machine(cores, gpus)

    def _gpus_left(self, wanted: float) -> tuple[float, ...] | None:
        if wanted == 0:
            return self.gpus
        part = wanted if wanted < 1 else 1.0
        count = 1 if wanted < 1 else int(wanted)
        fitting = sorted(
            (free, place) for place, free in enumerate(self.gpus) if free >= part - ROUNDING
        )
        taken = {place for _, place in fitting[:count]}
        left = (free - part * (place in taken) for place, free in enumerate(self.gpus))
        return tuple(left) if len(taken) == count else None


@dataclass(frozen=True, slots=True)
class Unplaced:
    """The model whose replicas do not all fit, and how many of them do."""

    spec: ModelSpec
    placed: int


def packed(
    machines: Sequence[Machine], models: Iterable[ModelSpec]
) -> "tuple[Machine, ...] | Unplaced":
    """The machines with all replicas on them, or the first model that does not fit."""
    free = tuple(machines)
    for spec in models:
        for placed in range(spec.replicas):
            after = _placed(free, spec)
            if after is None:
                return Unplaced(spec, placed)
            free = after
    return free


def _placed(machines: tuple[Machine, ...], spec: ModelSpec) -> tuple[Machine, ...] | None:
    """One replica on the machine where it leaves the least room."""
    after = [(machine.with_replica(spec), place) for place, machine in enumerate(machines)]
    fitting = [(sum(left.gpus), left.cores, place) for left, place in after if left is not None]
    if not fitting:
        return None
    *_, chosen = min(fitting)
    return tuple(
        left if place == chosen and left is not None else machine
        for machine, (left, place) in zip(machines, after, strict=True)
    )
