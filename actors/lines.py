"""Standing connections to replicas, over which all work units of a worker make their calls.

Serve finds replicas and keeps them alive; a call through it costs milliseconds of a core on both
sides, and over a connection that stands a third of one. Invariant: a call gets the replies of its
replica in order, or `EngineLostError` if the connection ends before the last one. A call that its
caller leaves is cancelled in the replica. There is one line to a replica in each event loop.
"""

import asyncio
import itertools
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from actors.line_security import client_tls
from actors.wire import HEARTBEAT_S, LEAVES, LEAVING, LONGEST_SILENCE_S, Failure
from search.errors import EngineLostError, one_line

# A machine whose network is cut does not even refuse.
CONNECT_S = 5.0


class Line:
    """One connection. Made by `line_to`."""

    def __init__(
        self, address: URL, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse
    ) -> None:
        self._name = f"{address.host}:{address.port}"
        self._session, self._socket = session, socket
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Queue[Any]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self.is_leaving = False
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(self._fail_all)

    @property
    def is_open(self) -> bool:
        """Whether the replica is still there, as far as is known."""
        return not self._reading.done()

    async def call(self, items: Sequence[Any]) -> AsyncIterator[list[tuple[int, Any]]]:
        """Sends a batch; yields what the replica replies until each item is answered."""
        number, replies, left = next(self._numbers), asyncio.Queue[Any](), len(items)
        self._calls[number] = replies
        try:
            await self._send((number, items))
            while left:
                reply = await replies.get()
                if isinstance(reply, Failure):
                    raise reply.error
                left -= len(reply)
                yield reply
        finally:
            del self._calls[number]
            if left and self.is_open:
                self._cancel(number)

    async def _send(self, message: tuple[int, Sequence[Any] | None]) -> None:
        if not self.is_open:
            raise self._lost()
        try:
            await self._socket.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except (ConnectionError, aiohttp.ClientError) as error:
            raise self._lost() from error

    def _cancel(self, number: int) -> None:
        """Tells the replica, from a task of its own: this one may be cancelled itself."""
        sending = asyncio.create_task(self._send((number, None)))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        sending.add_done_callback(_look_at)

    async def _read(self) -> None:
        """Hands each reply to its call, for as long as the connection stands."""
        try:
            async for message in self._socket:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return
                number, reply = pickle.loads(message.data)
                if number == LEAVING:
                    self.is_leaving = True
                elif number in self._calls:
                    self._calls[number].put_nowait(reply)
        finally:
            await self._session.close()

    def _fail_all(self, reading: "asyncio.Task[None]") -> None:
        error = None if reading.cancelled() else reading.exception()
        failure = Failure(error if isinstance(error, Exception) else self._lost())
        for replies in self._calls.values():
            replies.put_nowait(failure)

    def _lost(self) -> EngineLostError:
        return EngineLostError(f"the connection to the replica at {self._name} has ended")


def _look_at(task: "asyncio.Task[Any]") -> None:
    """What is sent to a replica that has gone need not arrive."""
    if not task.cancelled():
        task.exception()


# One for each event loop: connections belong to the loop that they were made in.
_Lines = dict[str, "asyncio.Task[Line]"]
_LINES: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lines] = WeakKeyDictionary()


async def line_to(address: str) -> Line:
    """The line to the replica at this address (see `Listener.address`); raises EngineLostError."""
    lines = _LINES.setdefault(asyncio.get_running_loop(), {})
    connecting = lines.get(address)
    if connecting is None or _has_ended(connecting):
        connecting = lines[address] = asyncio.create_task(_connected(URL(address)))
        connecting.add_done_callback(_look_at)
    line = await asyncio.shield(connecting)
    if line.is_leaving:
        raise EngineLostError(LEAVES)
    return line


def _has_ended(connecting: "asyncio.Task[Any]") -> bool:
    if not connecting.done():
        return False
    failed = connecting.cancelled() or connecting.exception() is not None
    return failed or not connecting.result().is_open


async def _connected(address: URL) -> Line:
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S))
    try:
        async with asyncio.timeout(CONNECT_S):
            socket = await session.ws_connect(
                address, heartbeat=HEARTBEAT_S, max_msg_size=0, ssl=client_tls() or True
            )
    except (OSError, TimeoutError, aiohttp.ClientError) as error:
        await session.close()
        where = f"the replica at {address.host}:{address.port}"
        reason = one_line(error) or f"it does not answer within {CONNECT_S:g} s"
        raise EngineLostError(f"{where} cannot be reached: {reason}") from error
    return Line(address, session, socket)


async def answers(address: str) -> bool:
    """Whether a replica takes calls at this address now."""
    try:
        return (await line_to(address)).is_open
    except EngineLostError:
        return False


class CallsOf:
    """The batches that a replica takes, as `actors.client.BatchingCaller` calls it.

    find: asked for the replica's address before the first call, and again when its line has ended.
    """

    def __init__(self, find: Callable[[], Awaitable[str]]) -> None:
        self._find = find
        self._line: Line | None = None

    async def remote(self, items: Sequence[Any]) -> AsyncIterator[list[tuple[int, Any]]]:
        """The replies to a batch; raises EngineLostError if the replica is lost."""
        async for reply in (await self._standing_line()).call(items):
            yield reply

    async def _standing_line(self) -> Line:
        if self._line is None or self._line.is_leaving or not self._line.is_open:
            try:
                async with asyncio.timeout(LONGEST_SILENCE_S):
                    address = await self._find()
            except TimeoutError as error:
                raise EngineLostError("no replica answers") from error
            self._line = await line_to(address)
        return self._line
