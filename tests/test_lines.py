"""Lines to replicas, over real sockets: a call is answered, or lost, or cancelled where it runs."""

import asyncio
import contextlib
import pickle
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from yarl import URL

from actors import line_security
from actors.batching import answer_as_finished
from actors.lines import CallsOf, Line, answers, line_to
from actors.listener import Answer, Listener
from search.errors import ClusterError, EngineLostError, PolicyError

pytestmark = pytest.mark.unit

HERE = "127.0.0.1"
PATIENCE_S = 60.0
Result = TypeVar("Result")


class Gate:
    """A replica: answers "now" at once, others when it is opened; keeps who came and who left."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    def answer(self, items: Sequence[str]) -> AsyncIterator[list[tuple[int, Any]]]:
        return answer_as_finished(items, self._upper)

    async def _upper(self, item: str) -> str:
        self.asked.append(item)
        try:
            if item != "now":
                await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        return item.upper()


def run(work: Coroutine[Any, Any, Result]) -> Result:
    async def bounded() -> Result:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


@contextlib.asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[tuple[Listener, str]]:
    """A replica's end, and where it is."""
    listener = Listener(answer)
    try:
        yield listener, await listener.address(HERE)
    finally:
        await listener.close()


async def replies(line: Line, *items: str) -> list[tuple[int, Any]]:
    return [answer async for reply in line.call(items) for answer in reply]


async def first_reply(calls: CallsOf, *items: str) -> list[tuple[int, Any]]:
    return await anext(calls.remote(items))


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 (what is waited for is not this test's own)
        await asyncio.sleep(0.01)


def test_every_item_is_answered_as_it_finishes() -> None:
    async def work() -> list[list[tuple[int, Any]]]:
        gate, found = Gate(), []
        async with listening(gate.answer) as (_, address):
            async for reply in (await line_to(address)).call(["slow", "now"]):
                found.append(reply)
                gate.opened.set()
        return found

    assert run(work()) == [[(1, "NOW")], [(0, "SLOW")]]


def test_calls_share_a_connection_and_do_not_wait_for_each_other() -> None:
    async def work() -> tuple[list[tuple[int, Any]], int]:
        gate = Gate()
        async with listening(gate.answer) as (listener, address):
            slow = asyncio.create_task(replies(await line_to(address), "slow"))
            fast = await replies(await line_to(address), "now")
            connections = len(listener._sockets)
            slow.cancel()
        return fast, connections

    assert run(work()) == ([(0, "NOW")], 1)


def test_a_call_that_is_left_is_cancelled_in_the_replica_and_no_other() -> None:
    async def work() -> list[str]:
        gate = Gate()
        async with listening(gate.answer) as (_, address):
            line = await line_to(address)
            left, stays = (asyncio.create_task(replies(line, name)) for name in ("left", "stays"))
            await until(lambda: len(gate.asked) == 2)
            left.cancel()
            await until(lambda: gate.cancelled)
            gate.opened.set()
            assert await stays == [(0, "STAYS")]
        return gate.cancelled

    assert run(work()) == ["left"]


def test_what_a_caller_that_is_gone_had_under_way_is_cancelled() -> None:
    async def work() -> list[str]:
        gate = Gate()
        async with listening(gate.answer) as (_, address):
            line = await line_to(address)
            call = asyncio.create_task(replies(line, "a", "b"))
            await until(lambda: len(gate.asked) == 2)
            await line._session.close()
            await until(lambda: len(gate.cancelled) == 2)
            with pytest.raises(EngineLostError, match=r"connection to the replica at 127\.0\.0\.1"):
                await call
        return sorted(gate.cancelled)

    assert run(work()) == ["a", "b"]


def test_all_calls_of_a_line_that_ends_are_lost_and_the_next_one_asks_where_to_go() -> None:
    async def work() -> tuple[list[tuple[int, Any]], int]:
        gate, asked, closed = Gate(), list[str](), list[bool]()
        async with listening(gate.answer) as (first, _), listening(gate.answer) as (second, _):

            async def find() -> str:
                asked.append("where")
                return await (second if closed else first).address(HERE)

            calls = CallsOf(find)
            lost = [asyncio.create_task(first_reply(calls, name)) for name in ("a", "b")]
            await until(lambda: len(gate.asked) == 2)
            before = len(asked)
            await first.close()
            closed.append(True)
            for each in lost:
                with pytest.raises(EngineLostError, match="has ended"):
                    await each
            return await first_reply(calls, "now"), len(asked) - before

    assert run(work()) == ([(0, "NOW")], 1)


def test_only_who_knows_the_secret_is_answered() -> None:
    async def work() -> list[str]:
        gate = Gate()
        async with listening(gate.answer) as (_, text):
            address = URL(text)
            for stranger in (address.with_password("guessed"), address.with_user(None)):
                with pytest.raises(EngineLostError, match="cannot be reached: 401") as refused:
                    await line_to(str(stranger))
                assert str(address.password) not in str(refused.value)
        return gate.asked

    assert run(work()) == []


def test_a_replica_that_leaves_finishes_what_it_has_and_takes_nothing_new() -> None:
    async def work() -> list[tuple[int, Any]]:
        gate = Gate()
        async with listening(gate.answer) as (listener, address):
            under_way = asyncio.create_task(replies(await line_to(address), "slow"))
            await until(lambda: gate.asked)
            leaving = asyncio.create_task(listener.leave())
            while await answers(address):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises(EngineLostError, match="the replica leaves"):
                await line_to(address)
            assert not leaving.done()
            gate.opened.set()
            await leaving
            return await under_way

    assert run(work()) == [(0, "SLOW")]


def test_an_address_where_nobody_listens_is_a_lost_replica_in_one_line() -> None:
    async def work() -> str:
        assert not await answers("ws://replica:secret@127.0.0.1:9")
        with pytest.raises(EngineLostError) as unreachable:
            await line_to("ws://replica:secret@127.0.0.1:9")
        return str(unreachable.value)

    said = run(work())
    assert said.startswith("the replica at 127.0.0.1:9 cannot be reached: ")
    assert "secret" not in said
    assert "\n" not in said


def test_a_replica_that_cannot_be_found_is_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.lines.LONGEST_SILENCE_S", 0.05)

    async def never() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(EngineLostError, match="no replica answers"):
        run(first_reply(CallsOf(never), "now"))


class Broken:
    """Fails as a whole for a batch that begins with "bad"."""

    async def answer(self, items: Sequence[str]) -> AsyncIterator[list[tuple[int, Any]]]:
        if items[0] == "locked":
            raise ValueError("no room", threading.Lock())
        if items[0] == "bad":
            raise PolicyError("no such batch")
        yield list(enumerate(items))


@pytest.mark.parametrize(
    ("first", "error", "words"),
    [("bad", PolicyError, "no such batch"), ("locked", ClusterError, "the replica failed: Value")],
)
def test_a_batch_that_fails_takes_no_other_with_it(
    first: str, error: type[Exception], words: str
) -> None:
    async def work() -> list[tuple[int, Any]]:
        async with listening(Broken().answer) as (_, address):
            line = await line_to(address)
            with pytest.raises(error, match=words):
                await replies(line, first)
            return await replies(line, "good")

    assert run(work()) == [(0, "good")]


def test_a_reply_that_cannot_be_read_is_the_error_of_the_calls() -> None:
    """Such as one of another version of this code; asking again would not help."""

    async def work() -> None:
        gate = Gate()
        async with listening(gate.answer) as (listener, address):
            line = await line_to(address)
            call = asyncio.create_task(replies(line, "slow"))
            await until(lambda: gate.asked)
            [socket] = listener._sockets
            await socket.send_bytes(b"no pickle")
            with pytest.raises(pickle.UnpicklingError):
                await call
            assert not line.is_open

    run(work())


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A certificate of the cluster's own, set as Ray wants it."""
    from ray._common.tls_utils import generate_self_signed_tls_certs

    files = dict(zip(("certificate", "key"), generate_self_signed_tls_certs(), strict=True))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    wanted = {"SERVER_CERT": "certificate", "SERVER_KEY": "key", "CA_CERT": "certificate"}
    for name, file in wanted.items():
        monkeypatch.setenv(f"RAY_TLS_{name}", str(tmp_path / file))
    monkeypatch.setenv("RAY_USE_TLS", "1")
    contexts = line_security.client_tls, line_security.server_tls
    for context in contexts:
        context.cache_clear()
    yield
    for context in contexts:
        context.cache_clear()


@pytest.mark.usefixtures("tls")
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow")
def test_where_ray_uses_tls_so_do_lines() -> None:
    async def work() -> list[tuple[int, Any]]:
        async with listening(Gate().answer) as (_, address):
            assert address.startswith("wss://")
            with pytest.raises(EngineLostError, match="cannot be reached"):
                await line_to(str(URL(address).with_scheme("ws")))
            return await replies(await line_to(address), "now")

    assert run(work()) == [(0, "NOW")]
