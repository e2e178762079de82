"""The replica's end of its lines: batches come in, what has finished goes out.

Invariant: a batch whose caller or connection has gone is cancelled. A replica that is taken away
says so, takes nothing new, and finishes what it has.
"""

import asyncio
import base64
import contextlib
import hmac
import pickle
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from aiohttp import hdrs, web
from yarl import URL

from actors.batching import sendable
from actors.line_security import server_tls
from actors.wire import HEARTBEAT_S, LEAVES, LEAVING, Failure
from search.errors import EngineLostError

# What was begun has so long to end when the replica is taken away; Serve ends it after 20 s.
LAST_CALLS_S = 15.0
# For a caller to say that it has heard the end.
FAREWELL_S = 1.0
WHO = "replica"

Answer = Callable[[Sequence[Any]], AsyncIterator[list[tuple[int, Any]]]]


class Listener:
    """Takes calls at an address of its own, once it has been asked for it.

    answer: a batch's replies, as they come.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._secret = secrets.token_urlsafe()
        self._starting: asyncio.Task[str] | None = None
        self._runner: web.AppRunner | None = None
        self._sockets: set[web.WebSocketResponse] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._is_leaving = False

    async def address(self, host: str) -> str:
        """Where calls are taken: a URL that carries a secret. Listens on `host` from now on."""
        self._starting = self._starting or asyncio.create_task(self._listen(host))
        return await asyncio.shield(self._starting)

    async def leave(self) -> None:
        """Takes no new calls, tells everyone, and waits until those under way have ended."""
        self._is_leaving = True
        for socket in list(self._sockets):
            await _send(socket, LEAVING, None)
        if self._calls:
            await asyncio.wait(self._calls, timeout=LAST_CALLS_S)
        await self.close()

    async def close(self) -> None:
        """Ends all connections, and with them what is still under way."""
        for socket in list(self._sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _listen(self, host: str) -> str:
        application = web.Application()
        application.router.add_get("/", self._serve)
        runner = self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=FAREWELL_S
        )
        await runner.setup()
        tls = server_tls()
        await web.TCPSite(runner, host, 0, ssl_context=tls).start()
        port, scheme = runner.addresses[0][1], "wss" if tls else "ws"
        url = URL.build(scheme=scheme, user=WHO, password=self._secret, host=host, port=port)
        return str(url)

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        """One connection, from its first message to its last."""
        given = request.headers.get(hdrs.AUTHORIZATION, "").encode(errors="replace")
        if not hmac.compare_digest(given, self._password):
            raise web.HTTPUnauthorized
        if self._is_leaving:
            raise web.HTTPServiceUnavailable
        socket = web.WebSocketResponse(
            timeout=FAREWELL_S, heartbeat=HEARTBEAT_S, max_msg_size=0, compress=False
        )
        await socket.prepare(request)
        self._sockets.add(socket)
        calls: dict[int, asyncio.Task[None]] = {}
        try:
            async for message in socket:
                self._take(socket, calls, *pickle.loads(message.data))
        finally:
            self._sockets.discard(socket)
            for call in calls.values():
                call.cancel()
        return socket

    @property
    def _password(self) -> bytes:
        return b"Basic " + base64.b64encode(f"{WHO}:{self._secret}".encode())

    def _take(
        self,
        socket: web.WebSocketResponse,
        calls: "dict[int, asyncio.Task[None]]",
        number: int,
        items: Sequence[Any] | None,
    ) -> None:
        """Begins a call, or cancels it if there are no items."""
        if items is None:
            if number in calls:
                calls[number].cancel()
            return
        call = calls[number] = asyncio.create_task(self._reply(socket, number, items))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.add_done_callback(lambda _: calls.pop(number, None))

    async def _reply(
        self, socket: web.WebSocketResponse, number: int, items: Sequence[Any]
    ) -> None:
        try:
            if self._is_leaving:
                raise EngineLostError(LEAVES)
            async for reply in self._answer(items):
                await _send(socket, number, reply)
        except Exception as error:
            # The failure of one batch must not end the line, over which others wait.
            await _send(socket, number, Failure(sendable(error)))


async def _send(socket: web.WebSocketResponse, number: int, reply: Any) -> None:
    """Sends a message, unless nobody hears it any more."""
    with contextlib.suppress(ConnectionError):
        await socket.send_bytes(pickle.dumps((number, reply), pickle.HIGHEST_PROTOCOL))
