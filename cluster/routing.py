"""Which replica answers a task: always the same one, and each as much as the others.

Serve sends equal affinity keys to the same replica (consistent hashing), but some replicas get
more keys than others. So a key is found for each replica, and a task takes the key with the
least work under way. Invariant: where a task's calls go changes no result, only its speed.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from actors.spec import ModelFacts

# With as many keys a replica, one that has none is met once in thousands of runs.
KEYS_TRIED = 16
KEYS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Route:
    """The affinity keys of one task's calls."""

    policy: str = ""
    prm: str = ""


@dataclass(slots=True)
class Balance:
    """Work under way by affinity key."""

    keys: tuple[str, ...]
    _solutions: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._solutions = dict.fromkeys(self.keys, 0)

    def take(self, solutions: int) -> str:
        """The key with the least work, which now has this much more."""
        key = min(self._solutions, key=self._solutions.__getitem__)
        self._solutions[key] += solutions
        return key

    def give_back(self, key: str, solutions: int) -> None:
        """The work is done."""
        self._solutions[key] -= solutions


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
