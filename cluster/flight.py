"""What of one policy's work is under way, for those who watch a run.

Invariant: it is looked at, never told: whoever runs units does nothing for it, and it may be
asked from any thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.admission import Bundle
from cluster.attempts import Attempts
from cluster.machines import Machines


@dataclass(frozen=True, slots=True)
class InFlight:
    """What is under way at one moment.

    solutions_admitted: as many may be in flight. units_waiting: units that failed and will be run
    again; units_again: how often that has happened; tasks_lost: how many tasks ended with their
    worker or machine. The names are those of the metrics (`cluster.metrics`).
    """

    tasks_in_flight: int = 0
    units_in_flight: int = 0
    solutions_in_flight: int = 0
    solutions_admitted: int = 0
    units_waiting: int = 0
    units_again: int = 0
    tasks_lost: int = 0


@dataclass(slots=True)
class Flight:
    """Filled in by `cluster.fanout.run_units`; empty before."""

    _running: Mapping[Any, Bundle] = field(default_factory=dict)
    _attempts: Attempts | None = None
    _machines: Machines | None = None
    _admitted: Callable[[], int] = lambda: 0

    def follow(
        self,
        running: Mapping[Any, Bundle],
        attempts: Attempts,
        machines: Machines,
        admitted: Callable[[], int],
    ) -> None:
        """From now on it looks at these. admitted: how many solutions may be under way."""
        self._running, self._attempts = running, attempts
        self._machines, self._admitted = machines, admitted

    def now(self) -> InFlight:
        """What is under way."""
        if self._attempts is None or self._machines is None:
            return InFlight()
        bundles = list(self._running.values())
        return InFlight(
            tasks_in_flight=len(bundles),
            units_in_flight=sum(len(bundle.units) for bundle in bundles),
            solutions_in_flight=sum(bundle.solutions for bundle in bundles),
            solutions_admitted=self._admitted(),
            units_waiting=self._attempts.waiting,
            units_again=self._attempts.again,
            tasks_lost=self._machines.tasks_lost,
        )
