"""Models that several runs use at once on one cluster: who uses which, and when one may go.

A keeper, an actor on the head node, knows which runs use which Serve application. Each run says
every few seconds that it still does. Invariant: an application is removed when no run uses it, also
if its last run was killed; while a run uses it, it stays. Of runs that want the same one at once
the first deploys it.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time
import uuid
from collections import defaultdict
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, Self

from actors.spec import ModelSpec
from cluster.repository import REPOSITORY

# A run that says nothing for this long is gone.
USE_S, RENEWAL_S = 60.0, 5.0
# A run that ends waits this long for the keeper at most, which removes the replicas in any case.
LONGEST_LEAVE_S = 30.0
KEEPER, NAMESPACE = "branchwise-keeper", "branchwise"
# What replicas run: those of another version are not shared.
CODE = ("actors", "search")
# Ray's own mark of the head node: there the keeper keeps no machine from leaving.
HEAD = {"node:__internal_head__": 0.001}


class Use(Protocol):
    """One run's use of an application, for as long as the context lasts."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def deploys(self, is_there: bool) -> bool:
        """Whether this run is to deploy it now."""
        ...


class OwnUse:
    """An application of this run alone: deployed once, removed at the end."""

    def __init__(self, application: str) -> None:
        self._application, self._is_deployed = application, False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(_remove, self._application, not _is_stopped(kind))

    async def deploys(self, is_there: bool) -> bool:
        """Once, also in the place of what a killed run has left."""
        first, self._is_deployed = not self._is_deployed, True
        return first


class SharedUse:
    """An application that other runs may use too."""

    def __init__(self, application: str) -> None:
        self._application, self._run = application, uuid.uuid4().hex
        self._renewals: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._renew()
        self._renewals = asyncio.create_task(self._keep_renewing())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        if self._renewals is not None:
            self._renewals.cancel()
        leave = keeper().leave_later if _is_stopped(kind) else keeper().leave
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LONGEST_LEAVE_S):
                await leave.remote(self._application, self._run)

    async def deploys(self, is_there: bool) -> bool:
        """If nobody has, and no other run came first."""
        return not is_there and await self._renew()

    async def _renew(self) -> bool:
        return bool(await keeper().renew.remote(self._application, self._run))

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_S)
            with contextlib.suppress(Exception):  # a keeper that is lost is started by the next one
                await self._renew()


class Uses:
    """Which runs use which applications, by when they were last heard of; knows no Ray."""

    def __init__(self, use_s: float = USE_S) -> None:
        self._heard: dict[str, dict[str, float]] = {}
        self._use_s = use_s

    def renew(self, application: str, run: str, now_s: float) -> bool:
        """Notes a use; says whether this run is the one that uses it for the longest time."""
        runs = self._heard.setdefault(application, {})
        runs[run] = now_s
        return next(iter(runs)) == run

    def leave(self, application: str, run: str) -> bool:
        """Notes that a use has ended; says whether it was the last one."""
        runs = self._heard.get(application, {})
        was_there = runs.pop(run, None) is not None
        if was_there and not runs:
            del self._heard[application]
        return was_there and not runs

    def silent(self, now_s: float) -> list[tuple[str, str]]:
        """Uses that were not heard of for too long."""
        return [
            (application, run)
            for application, runs in self._heard.items()
            for run, heard_s in runs.items()
            if now_s - heard_s > self._use_s
        ]


class Keeper:
    """The actor: removes what no run uses. use_s: how long a run may be silent."""

    def __init__(self, use_s: float = USE_S) -> None:
        self._uses = Uses(use_s)
        # One for each application: while one is removed the runs of others must be heard.
        self._removing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watch: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def renew(self, application: str, run: str) -> bool:
        """See `Uses.renew`; waits while the application is being removed."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._look_for_silent_ones())
        async with self._removing[application]:
            return self._uses.renew(application, run, time.monotonic())

    async def leave(self, application: str, run: str) -> None:
        """Ends a use; returns when the application is gone, if it was the last one."""
        async with self._removing[application]:
            await self._end(application, run)

    async def leave_later(self, application: str, run: str) -> None:
        """The same for one who has no time to wait for it."""
        leaving = asyncio.create_task(self.leave(application, run))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _end(self, application: str, run: str) -> None:
        if self._uses.leave(application, run):
            await asyncio.to_thread(_remove, application)

    async def _look_for_silent_ones(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_S)
            for application, run in self._uses.silent(time.monotonic()):
                with contextlib.suppress(Exception):
                    await self._end_if_silent(application, run)

    async def _end_if_silent(self, application: str, run: str) -> None:
        """Looks again: it may have been heard of while another was removed."""
        async with self._removing[application]:
            if (application, run) in self._uses.silent(time.monotonic()):
                await self._end(application, run)


def application_name(role: str, spec: ModelSpec) -> str:
    """The same for the same model, settings and code."""
    document = json.dumps(dataclasses.asdict(spec), sort_keys=True)
    return f"{role}-{hashlib.sha256((code_digest() + document).encode()).hexdigest()[:10]}"


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 (hexadecimal) of the code that replicas run."""
    digest = hashlib.sha256()
    for path in sorted(path for name in CODE for path in (REPOSITORY / name).rglob("*.py")):
        digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def keeper(use_s: float = USE_S) -> Any:
    """The cluster's keeper, started if there is none."""
    import ray

    return (
        ray.remote(Keeper)
        .options(
            name=KEEPER,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            resources=HEAD,
        )
        .remote(use_s)
    )


def _is_stopped(kind: type[BaseException] | None) -> bool:
    """Whether a context ends because the run is stopped: it may be killed seconds later."""
    return kind is not None and issubclass(kind, asyncio.CancelledError)


def _remove(application: str, waits: bool = True) -> None:
    from ray import serve

    serve.delete(application, _blocking=waits)
