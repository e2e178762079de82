"""The event loop of a worker: one for its life, which runs between tasks and ends what is left."""

import asyncio
import signal
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator

import pytest

from cluster.worker_loop import run_in_worker_loop

pytestmark = pytest.mark.unit


async def loop_and_thread() -> tuple[asyncio.AbstractEventLoop, str]:
    return asyncio.get_running_loop(), threading.current_thread().name


async def failing() -> None:
    raise TimeoutError("the unit ran too long")


def test_all_tasks_of_a_worker_run_in_one_loop() -> None:
    first, second = run_in_worker_loop(loop_and_thread()), run_in_worker_loop(loop_and_thread())
    assert first == second
    assert first[1] != threading.current_thread().name


def test_what_a_task_raises_is_raised() -> None:
    with pytest.raises(TimeoutError, match="ran too long"):
        run_in_worker_loop(failing())


def test_the_loop_runs_between_tasks() -> None:
    heard = threading.Event()

    async def leave_something_behind() -> None:
        asyncio.get_running_loop().call_later(0.05, heard.set)

    run_in_worker_loop(leave_something_behind())
    assert heard.wait(60)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A shell has what it starts in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_task_that_ray_interrupts_is_cancelled() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    def interrupt() -> None:
        begun.wait(60)
        time.sleep(0.05)
        interrupt_main()

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_worker_loop(endless())
    interrupting.join()
    assert cancelled.wait(60)
