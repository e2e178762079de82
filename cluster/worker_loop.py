"""The event loop of a worker: one for its whole life, in a thread of its own.

Connections to replicas belong to the loop in which they were made, and stand longer than a task.
Invariant: it runs between two tasks as well, so that replicas hear that their caller is there.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

from actors.garbage import collect_seldom, uncollected
from cluster.logs import set_up_logging

# Ray interrupts the main thread of a task that is cancelled, and a thread that waits for a lock
# does not notice.
LOOK_S = 0.2
Result = TypeVar("Result")


def run_in_worker_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """What the coroutine returns; it is cancelled if this thread is interrupted."""
    running = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        while not running.done():
            concurrent.futures.wait([running], LOOK_S)
        return running.result()
    finally:
        running.cancel()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    with uncollected():
        import uvloop
    set_up_logging()
    collect_seldom()
    loop = uvloop.new_event_loop()
    threading.Thread(target=loop.run_forever, name="units", daemon=True).start()
    return loop
