"""Equal requests are computed once, for as long as somebody waits for them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from actors.engines.shared_requests import SharedRequests

pytestmark = pytest.mark.unit


class Computer:
    """Counts what it starts and what was cancelled; answers when it is let go."""

    def __init__(self) -> None:
        self.started = self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def compute(self) -> int:
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.started


def runs(test: Callable[[SharedRequests[int], Computer], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            await test(SharedRequests(kept=2), Computer())

    asyncio.run(run())


async def started(*awaited: Awaitable[tuple[int, bool]]) -> list[asyncio.Task[tuple[int, bool]]]:
    tasks = [asyncio.ensure_future(one) for one in awaited]
    await asyncio.sleep(0.01)
    return tasks  # type: ignore[return-value]


def test_one_of_many_bears_the_cost() -> None:
    async def test(shared: SharedRequests[int], computer: Computer) -> None:
        tasks = await started(*(shared.once(b"a", computer.compute) for _ in range(3)))
        computer.go.set()
        assert await asyncio.gather(*tasks) == [(1, True), (1, False), (1, False)]
        assert await shared.once(b"a", computer.compute) == (1, False)
        assert computer.started == 1

    runs(test)


def test_one_that_leaves_harms_no_other_and_leaves_it_the_cost() -> None:
    async def test(shared: SharedRequests[int], computer: Computer) -> None:
        first, second = await started(*(shared.once(b"a", computer.compute) for _ in range(2)))
        first.cancel()
        await asyncio.wait([first])
        computer.go.set()
        assert await second == (1, True)
        assert computer.cancelled == 0

    runs(test)


def test_nobody_waiting_cancels_and_a_later_one_starts_anew() -> None:
    async def test(shared: SharedRequests[int], computer: Computer) -> None:
        tasks = await started(*(shared.once(b"a", computer.compute) for _ in range(2)))
        for task in tasks:
            task.cancel()
        [later] = await started(shared.once(b"a", computer.compute))
        assert (computer.started, computer.cancelled) == (2, 1)
        computer.go.set()
        assert await later == (2, True)

    runs(test)


def test_a_failure_reaches_all_and_is_not_remembered() -> None:
    async def test(shared: SharedRequests[int], computer: Computer) -> None:
        computer.error = RuntimeError("no")
        computer.go.set()
        tasks = await started(*(shared.once(b"a", computer.compute) for _ in range(2)))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results == [computer.error] * 2
        computer.error = None
        assert await shared.once(b"a", computer.compute) == (2, True)

    runs(test)


def test_what_is_kept_is_bounded() -> None:
    async def test(shared: SharedRequests[int], computer: Computer) -> None:
        computer.go.set()
        for key in (b"a", b"b", b"c"):
            await shared.once(key, computer.compute)
        assert await shared.once(b"c", computer.compute) == (3, False)
        assert await shared.once(b"a", computer.compute) == (4, True)

    runs(test)


def test_a_request_waits_for_another_but_not_for_itself() -> None:
    async def test(shared: SharedRequests[int], computer: Computer) -> None:
        async def after(key: bytes) -> int:
            await shared.settled(key)
            return await computer.compute()

        first, second = await started(
            shared.once(b"a", lambda: after(b"a")), shared.once(b"b", lambda: after(b"a"))
        )
        assert computer.started == 1
        computer.go.set()
        assert (await first, await second) == ((1, True), (2, True))

    runs(test)
