"""One thread that computes, many coroutines that wait: how an engine batches what is waiting.

Invariant: only the thread touches the model; results go back through the event loop that
asked. A request whose waiter was cancelled is dropped before it is computed.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Waiting(Generic[Item, Result]):
    """An item, and who waits for its result."""

    item: Item
    future: "asyncio.Future[Result]"
    loop: asyncio.AbstractEventLoop
    cancelled: bool = False

    def resolve(self, result: Result) -> None:
        self._hand_over(result, None)

    def fail(self, error: Exception) -> None:
        self._hand_over(None, error)

    def _hand_over(self, result: Result | None, error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop that asked is closed: nobody waits
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Result | None, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]


class ComputeThread(Generic[Item, Result]):
    """Runs `work` in a thread of its own for as long as the process lives.

    `work` takes new items with `take_all` (which blocks while there is nothing to do) and
    resolves them. If it raises, the engine is broken: everything that waits fails with that
    error, and so does every later item, until the replica is replaced.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._incoming: queue.SimpleQueue[Waiting[Item, Result]] = queue.SimpleQueue()
        self._unsettled: set[Waiting[Item, Result]] = set()
        self.broken_by: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check_health(self) -> None:
        """Raises what broke the work, if anything did."""
        if self.broken_by is not None:
            raise self.broken_by

    async def compute(self, item: Item) -> Result:
        """Hands an item to the thread and waits for its result."""
        self.check_health()
        loop = asyncio.get_running_loop()
        waiting: Waiting[Item, Result] = Waiting(item, loop.create_future(), loop)
        self._unsettled.add(waiting)
        self._incoming.put(waiting)
        try:
            self.check_health()  # it may have broken before it could see this item
            return await waiting.future
        finally:
            waiting.cancelled = True
            self._unsettled.discard(waiting)

    def take_all(self, block: bool) -> list[Waiting[Item, Result]]:
        """Everything that waits; blocks for the first one if asked to."""
        taken = [self._incoming.get()] if block else []
        while True:
            try:
                taken.append(self._incoming.get_nowait())
            except queue.Empty:
                return taken

    def _run(self) -> None:
        while self.broken_by is None:
            try:
                self._work()
            except Exception as error:
                self.broken_by = error
        for waiting in list(self._unsettled):
            waiting.fail(self.broken_by)
