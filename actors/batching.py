"""The replica's side of a batch: start every item, answer with what has finished.

Invariant: every item of a batch is answered exactly once, with a result or a `Failure`, and
no item waits for a slower one, but for a tick. If the caller goes away, the items still
running are cancelled. The caller hears something all the time, if only that nothing has finished.
"""

import asyncio
import io
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from actors.wire import SIGN_OF_LIFE_S, TICK_S, Failure
from search.errors import ClusterError, first_cause, one_line

# What pickle raises for classes inside of functions, for locks, and for arguments of its own.
UNSENDABLE = (pickle.PickleError, AttributeError, TypeError)
# Classes from here are known to every caller. One of a package that only replicas have, such as
# vllm, would end the caller's line, over which others wait.
KNOWN = ("builtins", "search.errors")

Item = TypeVar("Item")
Result = TypeVar("Result")


async def answer_as_finished(
    items: Sequence[Item],
    compute: Callable[[Item], Awaitable[Result]],
    count: Callable[[int], None] = lambda change: None,
) -> AsyncIterator[list[tuple[int, Result | Failure]]]:
    """Yields lists of (place, result): each holds all that finished since the last one.

    An empty one comes whenever nothing has finished for `SIGN_OF_LIFE_S`. count: told by how much
    the number of items under way has changed.
    """
    finished: asyncio.Queue[tuple[int, Result | Failure]] = asyncio.Queue()

    async def answer(place: int, item: Item) -> None:
        finished.put_nowait((place, await _result_or_failure(compute, item)))

    tasks = [asyncio.create_task(answer(place, item)) for place, item in enumerate(items)]
    clock, next_reply_s = asyncio.get_running_loop().time, 0.0
    left = len(tasks)
    count(left)
    try:
        while left:
            ready = await _next_or_nothing(finished)
            if ready and finished.qsize() + 1 < left:
                await asyncio.sleep(next_reply_s - clock())
            while not finished.empty():
                ready.append(finished.get_nowait())
            left -= len(ready)
            count(-len(ready))
            next_reply_s = clock() + TICK_S
            yield ready
    finally:
        for task in tasks:
            task.cancel()
        count(-left)


async def _next_or_nothing(finished: asyncio.Queue[Result]) -> list[Result]:
    try:
        async with asyncio.timeout(SIGN_OF_LIFE_S):
            return [await finished.get()]
    except TimeoutError:
        return []


async def _result_or_failure(
    compute: Callable[[Item], Awaitable[Result]], item: Item
) -> Result | Failure:
    """An item that fails is data for its work unit, not the end of the batch."""
    try:
        return await compute(item)
    except Exception as error:
        return Failure(sendable(error))


class _ByCallers(pickle.Unpickler):
    """Reads what callers can read."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in KNOWN:
            raise pickle.UnpicklingError(f"callers may not have {module}")
        return super().find_class(module, name)


def sendable(error: Exception) -> Exception:
    """The error, or what it says if callers could not read it: it would take its batch along."""
    try:
        _ByCallers(io.BytesIO(pickle.dumps(error))).load()
    except UNSENDABLE:
        cause = first_cause(error)
        return ClusterError(f"the replica failed: {type(cause).__name__}: {one_line(cause)}")
    return error
