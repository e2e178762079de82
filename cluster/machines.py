"""Tasks whose machine is lost are given up when Ray knows of it, not when a connection breaks.

A machine whose network is cut refuses nothing. Ray finds it dead by health checks, but fails a
task there only when gRPC has given the connection up too, which takes minutes. So a task says
first where it runs, and the driver asks which machines are dead. Invariant: what has begun is
given up only if its machine is dead by Ray's own account; what has not begun costs nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

LOOK_INTERVAL_S = 2.0

Replies: TypeAlias = AsyncIterator[Awaitable[Any]]
Dead: TypeAlias = frozenset[str]


@dataclass(slots=True, eq=False)
class _Call:
    """A task under way; `machine` is empty until it has said where it runs."""

    replies: Replies
    machine: str = ""
    lost: "asyncio.Future[None]" = field(default_factory=asyncio.Future)

    async def answer(self) -> Any:
        self.machine = await (await anext(self.replies))
        return await (await anext(self.replies))


async def dead_machines() -> Dead:
    """Ray's ids of the machines that it has lost."""
    import ray

    nodes = await asyncio.to_thread(ray.nodes)
    return frozenset(node["NodeID"] for node in nodes if not node["Alive"])


def this_machine() -> str:
    """Ray's id of the machine that a task runs on: the first thing that it yields."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def cancel_task(replies: Any) -> None:
    """Ends a task, if it can be reached."""
    import ray

    ray.cancel(replies)


class Machines:
    """The tasks under way; looks for lost machines while there are any.

    tasks_lost: how many tasks have ended with their worker or machine.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[Dead]] = dead_machines,
        cancel: Callable[[Replies], None] = cancel_task,
    ) -> None:
        self._look, self._cancel = look, cancel
        self._calls: set[_Call] = set()
        self.tasks_lost = 0
        self._watch: asyncio.Task[None] | None = None

    async def answer(self, start: Callable[[], Replies]) -> Any:
        """What a task yields second; the first is the name of its machine.

        Raises: NodeDiedError if its machine is lost, and what the task raises. A task that had not
        begun when a machine was lost may have been on the way there, and is started again.
        """
        from ray.exceptions import NodeDiedError

        while True:
            call = _Call(start())
            found = await self._answer_unless_lost(call)
            if found is not None:
                return found
            if call.machine:
                raise NodeDiedError(f"machine {call.machine} was lost")

    async def _answer_unless_lost(self, call: _Call) -> Any:
        answer = asyncio.ensure_future(call.answer())
        self._calls.add(call)
        self._watch_on()
        try:
            await asyncio.wait({answer, call.lost}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            self._calls.remove(call)
            if not answer.done():
                answer.cancel()
                self._cancel(call.replies)

    def _watch_on(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_while_any())

    async def _look_while_any(self) -> None:
        known = await self._dead(frozenset())
        while self._calls:
            await asyncio.sleep(LOOK_INTERVAL_S)
            if not self._calls:
                return
            dead = await self._dead(known)
            for call in self._calls:
                if call.machine in dead or (dead > known and not call.machine):
                    _set(call.lost)
            known = dead

    async def _dead(self, known: Dead) -> Dead:
        """All that were ever lost; a head that does not answer now is asked again later."""
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            return known | await self._look()
        return known


def _set(lost: "asyncio.Future[None]") -> None:
    if not lost.done():
        lost.set_result(None)
