"""Equal requests computed once: finished results remembered, running ones shared.

Invariants: a request runs for as long as somebody waits for it, and is cancelled when nobody
does; a caller that is cancelled harms no other; a failure is not remembered.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True)
class _Running(Generic[Result]):
    task: "asyncio.Task[Result]"
    waiting: int = 0
    handed_over: bool = False


class SharedRequests(Generic[Result]):
    """Results by key, at most `kept` of them: then it starts anew."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._finished: dict[bytes, Result] = {}
        self._running: dict[bytes, _Running[Result]] = {}

    def forget(self) -> None:
        """Computes anew what is asked from now on."""
        self._finished.clear()

    def keep(self, key: bytes, result: Result) -> None:
        """Remembers a result that was computed with another."""
        if len(self._finished) >= self._kept:
            self._finished.clear()
        self._finished[key] = result

    async def settled(self, key: bytes) -> None:
        """Waits while another request with this key is under way, however it ends.

        A request may ask for its own key, and does not wait for itself.
        """
        running = self._running.get(key)
        if running is not None and running.task is not asyncio.current_task():
            await asyncio.wait([running.task])

    async def once(
        self, key: bytes, compute: Callable[[], Coroutine[Any, Any, Result]]
    ) -> tuple[Result, bool]:
        """The result, and whether this caller is the first to get it and so bears its cost."""
        if key in self._finished:
            return self._finished[key], False
        running = self._running.get(key) or self._start(key, compute)
        running.waiting += 1
        try:
            result = await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting:
                self._leave(key, running)
        first, running.handed_over = not running.handed_over, True
        return result, first

    def _start(
        self, key: bytes, compute: Callable[[], Coroutine[Any, Any, Result]]
    ) -> _Running[Result]:
        running = self._running[key] = _Running(asyncio.create_task(compute()))
        running.task.add_done_callback(lambda task: self._finish(key, task))
        return running

    def _finish(self, key: bytes, task: "asyncio.Task[Result]") -> None:
        if task.cancelled() or task.exception() is not None:
            return
        self.keep(key, task.result())

    def _leave(self, key: bytes, running: _Running[Result]) -> None:
        """The last one has gone; who asks from now on must not wait for a cancelled request."""
        running.task.cancel()
        if self._running.get(key) is running:
            del self._running[key]
