"""The keeper of shared models: while one is removed, the runs that use others are heard."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace

import pytest

from cluster import sharing
from cluster.sharing import USE_S, Keeper

pytestmark = pytest.mark.unit

HANG_S = 60


class Removals:
    """In the place of Serve: the first removal lasts until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.first, self.go = threading.Event(), threading.Event()

    def __call__(self, application: str, waits: bool = True) -> None:
        self.begun.append(application)
        if len(self.begun) == 1:
            self.first.set()
            assert self.go.wait(HANG_S)

    async def until_the_first(self) -> None:
        assert await asyncio.to_thread(self.first.wait, HANG_S)


@pytest.fixture
def removals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Removals]:
    removals = Removals()
    monkeypatch.setattr(sharing, "_remove", removals)
    yield removals
    removals.go.set()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(HANG_S):
            await test()

    asyncio.run(bounded())


def test_a_run_is_heard_while_the_model_of_another_is_removed(removals: Removals) -> None:
    async def test() -> None:
        keeper = Keeper()
        await keeper.renew("going", "ends")
        await keeper.leave_later("going", "ends")
        await removals.until_the_first()
        heard = asyncio.create_task(keeper.renew("used", "alive"))
        again = asyncio.create_task(keeper.renew("going", "next"))
        done, _ = await asyncio.wait({heard, again}, return_when=asyncio.FIRST_COMPLETED)
        removals.go.set()
        assert done == {heard}
        assert await again  # when the application has gone, to be deployed anew

    run(test)


def test_a_run_that_is_heard_of_meanwhile_keeps_its_model(
    removals: Removals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(sharing, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(sharing, "RENEWAL_S", 0.001)

    async def test() -> None:
        nonlocal now_s
        keeper = Keeper()
        for application in ("first", "used", "last"):
            await keeper.renew(application, "silent")
        now_s = USE_S + 1
        await removals.until_the_first()
        heard = asyncio.create_task(keeper.renew("used", "silent"))
        await asyncio.sleep(0.01)
        removals.go.set()
        while "last" not in removals.begun:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert await heard
        assert removals.begun == ["first", "last"]

    run(test)
