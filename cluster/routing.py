"""Which replica answers a task: always the same one, and each as much as the others.

Each replica has an affinity key: the address at which it takes calls (`actors.lines`). Serve tells
them, and a task takes the key with the least work under way, or several if one replica cannot hold
all of it at once (`actors.spread`).
Invariant: where a task's calls go changes no result, only its speed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

# Serve answers a session from the same replica always (consistent hashing). With as many sessions a
# replica, one that has none is met once in thousands of runs.
SESSIONS = 16
SESSIONS_AT_ONCE = 4
# Replicas that are asked in turn when one is lost, before Serve is asked for another.
OTHERS = 2


# The affinity keys of the policy's and of the PRM's replicas.
Keys: TypeAlias = "tuple[tuple[str, ...], tuple[str, ...]]"


@dataclass(frozen=True, slots=True)
class Route:
    """The affinity keys of one task's calls, one for each replica that it uses."""

    policy: tuple[str, ...] = ("",)
    prm: tuple[str, ...] = ("",)


@dataclass(slots=True)
class Balance:
    """Work under way by affinity key; `batch` solutions at once are enough for all of them."""

    keys: tuple[str, ...]
    batch: int
    _solutions: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def take(self, solutions: int) -> tuple[str, ...]:
        """The keys with the least work, as many as can hold this much more at once."""
        wanted = -(-solutions * len(self.keys) // self.batch)
        keys = tuple(sorted(self.keys, key=self._solutions.__getitem__)[:wanted])
        self._add(keys, solutions)
        return keys

    def give_back(self, keys: tuple[str, ...], solutions: int) -> None:
        """The work is done."""
        self._add(keys, -solutions)

    def follow(self, keys: tuple[str, ...], batch: int) -> None:
        """Other replicas are ready now; work with a key that left counts if the key comes back."""
        self.keys, self.batch = keys, batch

    def _add(self, keys: tuple[str, ...], solutions: int) -> None:
        for key in keys:
            self._solutions[key] += solutions / len(keys)


def with_others(
    keys: Sequence[str], of_replicas: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each key with some of other replicas, to go on with if its own is lost."""
    for key in keys:
        place = of_replicas.index(key) if key in of_replicas else 0
        ring = (*of_replicas[place + 1 :], *of_replicas[:place])
        yield key, tuple(each for each in ring if each != key)[:OTHERS]


async def keys_of_replicas(handle: Any, replicas: int) -> tuple[str, ...]:
    """The key of each replica: sessions are tried until every replica has answered one."""
    found: dict[str, None] = {}
    for tried in range(0, SESSIONS * replicas, SESSIONS_AT_ONCE * replicas):
        sessions = [str(tried + place) for place in range(SESSIONS_AT_ONCE * replicas)]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(address_of(handle, session)) for session in sessions]
        found |= dict.fromkeys(each.result() for each in asked)
        if len(found) >= replicas:
            break
    return tuple(found)


async def address_of(handle: Any, session: str) -> str:
    """Where the replica that Serve finds for a session takes calls."""
    address: str = await handle.options(session_id=session).address.remote()
    return address
