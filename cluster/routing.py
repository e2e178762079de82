"""Which replica answers a task: always the same one, and each as much as the others.

Serve sends equal affinity keys to the same replica (consistent hashing), but some replicas get
more keys than others. So a key is found for each replica, and a task takes the key with the
least work under way, or several if one replica cannot hold all of it at once (`actors.spread`).
Invariant: where a task's calls go changes no result, only its speed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from actors.spec import ModelFacts

# With as many keys a replica, one that has none is met once in thousands of runs.
KEYS_TRIED = 16
KEYS_AT_ONCE = 4
# Replicas that are asked in turn when one is lost; a handle for each costs a little.
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
    """A key for each replica: keys are tried until every replica has answered one."""
    found: dict[str, str] = {}
    for tried in range(0, KEYS_TRIED * replicas, KEYS_AT_ONCE * replicas):
        keys = [str(tried + place) for place in range(KEYS_AT_ONCE * replicas)]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_facts(handle, key)) for key in keys]
        for key, facts in zip(keys, asked, strict=True):
            found.setdefault(facts.result().replica, key)
        if len(found) >= replicas:
            break
    return tuple(found.values())


async def _facts(handle: Any, key: str) -> ModelFacts:
    facts: ModelFacts = await handle.options(session_id=key).facts.remote()
    return facts
