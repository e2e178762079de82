"""How much of a run may be under way at once, and how large its tasks are.

Invariant: what is under way follows what the replicas hold, never the size of the data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from search.partition import WorkUnit

# Sequences wait for scores and for their siblings. With four times as many as a batch holds it is
# 96 to 99 % full, with twice as many 72 to 85 % (DVTS; docs/performance.md).
ROOM = 4
# So few at first: they fill a batch while all write their first step.
FIRST_ROOM = 2
# A search that fills the room alone leaves its batch half empty whenever a step of it ends.
AT_LEAST = 2
# Enough that the last ones to end leave the replicas idle for a small part of the run only.
TASKS_A_REPLICA = 16


@dataclass(frozen=True, slots=True)
class Bundle:
    """The units that one Ray task runs side by side in one event loop.

    slots: sequences that they may write at once if they write ahead; 0 means that they do not.
    """

    units: tuple[WorkUnit, ...]
    is_last: bool = False
    slots: int = 0

    @property
    def solutions(self) -> int:
        return sum(unit.solutions for unit in self.units)

    def slots_of(self, unit: WorkUnit) -> int:
        """A unit's part of the slots."""
        return self.slots * unit.solutions // self.solutions


def task_size(solutions: int, replicas: int, max_batch: int, solutions_per_unit: int) -> int:
    """Solutions that one task carries: as many as a replica computes together.

    Fewer and larger tasks cost less, but never so few that a replica has none; a unit at least.
    """
    fair = solutions // (TASKS_A_REPLICA * replicas)
    return max(solutions_per_unit, min(max_batch, fair))


@dataclass(frozen=True, slots=True)
class Admission:
    """How much may be under way: what the replicas can hold, never the size of the data.

    `batch`: sequences that all `replicas` compute together; under way are up to `room` times as
    many. A task carries units of `per_task` solutions in all, at least one unit; `tasks` bounds
    their number.
    """

    batch: int
    per_task: int
    tasks: int | None = None
    speculation: bool = True
    room: int = ROOM
    replicas: int = 1

    def of(self, replicas: int) -> "Admission":
        """The same for as many replicas as are ready now."""
        return replace(self, batch=self.batch * replicas // self.replicas, replicas=replicas)

    @property
    def first(self) -> "Admission":
        """The same for the first moments, when what is under way has only begun."""
        return replace(self, room=min(self.room, FIRST_ROOM))

    @property
    def solutions(self) -> int:
        """How many may be under way."""
        return self.room * self.batch

    @property
    def tasks_at_once(self) -> int:
        """How many full tasks run side by side."""
        fitting = max(1, self.room * self.batch // self.per_task)
        return fitting if self.tasks is None else min(self.tasks, fitting)

    def admits(self, under_way: Iterable[Bundle], next_one: Bundle) -> bool:
        """Whether one more bundle may start; the first ones always may."""
        counts = [bundle.solutions for bundle in under_way]
        return self.has_room(len(counts), sum(counts), next_one)

    def has_room(self, tasks: int, solutions: int, next_one: Bundle) -> bool:
        """Whether one more bundle may start beside so many tasks with so many solutions in all."""
        if self.tasks is not None and tasks >= self.tasks:
            return False
        return tasks < AT_LEAST or solutions + next_one.solutions <= self.solutions

    def started(self, under_way: Iterable[Bundle], bundle: Bundle) -> Bundle:
        """The bundle as it starts; what only the last one leaves empty it may spend."""
        if not bundle.is_last:
            return bundle
        return replace(bundle, slots=self.slots(under_way, bundle))

    def slots(self, under_way: Iterable[Bundle], last_one: Bundle) -> int:
        """What the last bundle may spend on writing ahead: of the batch, what would stay empty.

        Alone it has the whole batch, in which what it needs comes first.
        """
        others = sum(bundle.solutions for bundle in under_way)
        if not self.speculation:
            return 0
        if others + last_one.solutions <= self.batch:
            return last_one.solutions
        return 0 if others else self.batch


def admission_of(
    solutions: int,
    *,
    replicas: int,
    max_batch: int,
    solutions_per_unit: int,
    tasks: int | None = None,
    speculation: bool = True,
) -> Admission:
    """What so many replicas of one policy admit of a run with so many solutions."""
    per_task = task_size(solutions, replicas, max_batch, solutions_per_unit)
    return Admission(replicas * max_batch, per_task, tasks, speculation, replicas=replicas)
