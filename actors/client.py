"""Policy and PRM as a work unit sees them: batches calls, routes them by affinity.

A call costs ten times as much as one item more, so what becomes ready in the same tick goes in
one call: the first at once, what follows it within `TICK_S` together.
Invariant: every item that was sent is answered once, with its result or with an error. An item
whose caller has gone is given up in the engine, with its whole batch or, if it may be, alone. All
calls of a client go to the same replica, where their prefixes are cached, until that is lost: then
to another. A replica that says nothing for `LONGEST_SILENCE_S` is taken as lost.
"""

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import stamina

from actors.wire import LONGEST_SILENCE_S, TICK_S, ExpandItem, Failure, GiveUp, ScoreItem
from search.errors import BranchwiseError, ClusterError, EngineLostError, PolicyError, PRMError
from search.protocols import Expansion, PolicyPath, PRMPath, Sampling, Score
from search.whole_solutions import SolutionRequest

# A lost replica is replaced in a minute or so; a large model takes longer to load. A quarter of an
# hour of waits in all, however long the call had lasted before.
ATTEMPTS = 60
LONGEST_WAIT_S = 15.0
# So that a large call holds up neither side's event loop.
ITEMS_OF_A_CALL = 512

log = logging.getLogger("branchwise")
Item = TypeVar("Item")
Result = TypeVar("Result")


class TakesBatches(Protocol):
    """A replica as its callers see it: see `actors.lines.CallsOf`."""

    def remote(self, items: Sequence[Any]) -> AsyncIterator[Any]:
        """Lists of (place in the batch, result), until each item is answered."""
        ...


class BatchingCaller(Generic[Item, Result]):
    """Sends items to a replica that takes a batch and streams finished items back.

    others: other replicas, asked in turn when one was lost.
    """

    def __init__(
        self,
        calls: TakesBatches,
        border: type[BranchwiseError],
        give_up: Callable[[Item], Item] | None = None,
        others: Sequence[TakesBatches] = (),
    ) -> None:
        self._replicas, self._losses = (calls, *others), 0
        self._border, self._give_up = border, give_up
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._next_call_s = 0.0
        # Looked up for each item it would be a system call each.
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(self, item: Item) -> Result:
        """The result of one item; raises what the replica raised for it."""
        return await self.queue(item)

    def queue(self, item: Item) -> "asyncio.Future[Result]":
        """Sends an item with the next call; whoever cancels the future no longer needs it."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._waiting:
            # At the earliest in this turn's end, when everything that is ready has been queued.
            loop.call_at(self._next_call_s, self._send)
        self._waiting.append((item, future))
        return future

    def _send(self) -> None:
        """Runs once a tick."""
        self._next_call_s = asyncio.get_running_loop().time() + TICK_S
        batch = [entry for entry in self._waiting if not entry[1].done()]
        self._waiting = []
        for start in range(0, len(batch), ITEMS_OF_A_CALL):
            self._start_call(batch[start : start + ITEMS_OF_A_CALL])

    def _start_call(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        call = asyncio.create_task(self._exchange(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        _cancel_when_unwanted(call, [future for _, future in batch])
        if self._give_up is not None:
            for item, future in batch:
                notice = self._give_up(item)
                future.add_done_callback(partial(self._when_settled, call, notice))

    def _when_settled(
        self, call: "asyncio.Task[None]", notice: Item, future: "asyncio.Future[Result]"
    ) -> None:
        """If a caller has gone, looks a turn later: by then a call that all have left is over."""
        if future.cancelled():
            asyncio.get_running_loop().call_soon(self._give_up_alone, call, notice)

    def _give_up_alone(self, call: "asyncio.Task[None]", notice: Item) -> None:
        """Tells the replica to stop one item while others of its batch go on."""
        if not call.done() and not call.cancelling():
            self.queue(notice).add_done_callback(_forget)

    async def _exchange(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            async for attempt in stamina.retry_context(
                _replica_was_lost,
                attempts=ATTEMPTS,
                timeout=None,
                wait_max=LONGEST_WAIT_S,
            ):
                with attempt, self._moving_on():
                    await self._stream([entry for entry in batch if not entry[1].done()])
        except Exception as error:
            self._fail(batch, error)
        self._fail(batch, ClusterError("the replica ended a batch before all of it was answered"))

    @contextlib.contextmanager
    def _moving_on(self) -> Iterator[None]:
        """Leaves a replica that is lost meanwhile; calls that are lost with it leave it once."""
        losses = self._losses
        try:
            yield
        except Exception as error:
            if self._losses == losses and _replica_was_lost(error):
                self._losses += 1
                role = self._border.__name__.removesuffix("Error").lower()
                line = "a %s replica was lost, its calls are sent again: %s"
                log.warning(line, role, _last_line(error))
            raise

    async def _stream(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        lost: EngineLostError | None = None
        replica = self._replicas[self._losses % len(self._replicas)]
        async for reply in _heard(replica.remote([item for item, _ in batch])):
            for place, result in reply:
                if isinstance(result, Failure) and isinstance(result.error, EngineLostError):
                    lost = result.error
                else:
                    _settle(batch[place][1], result)
        if lost is not None:
            raise lost

    def _fail(self, batch: list[tuple[Item, "asyncio.Future[Result]"]], error: Exception) -> None:
        """Settles what is still open, under the name of the border that the call crossed."""
        named = error
        if not isinstance(error, BranchwiseError):
            named = self._border(f"the replica failed: {_last_line(error)}")
        for _, future in batch:
            _settle(future, Failure(named))


def _cancel_when_unwanted(
    call: "asyncio.Task[None]", futures: "Sequence[asyncio.Future[Any]]"
) -> None:
    """Ends a call whose callers have all gone, so that the engine stops working for it."""
    unsettled = set(futures)

    def settled(future: "asyncio.Future[Any]") -> None:
        unsettled.discard(future)
        if not unsettled and any(each.cancelled() for each in futures):
            call.cancel()

    for future in futures:
        future.add_done_callback(settled)


async def _heard(replies: AsyncIterator[Result]) -> AsyncIterator[Result]:
    """The replies, as long as they come."""
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield await _next_reply(replies)


async def _next_reply(replies: AsyncIterator[Result]) -> Result:
    try:
        async with asyncio.timeout(LONGEST_SILENCE_S) as silence:
            return await anext(replies)
    except TimeoutError as error:
        if not silence.expired():
            raise
        text = f"a replica said nothing for {LONGEST_SILENCE_S:g} s"
        raise EngineLostError(text) from error


def _forget(future: "asyncio.Future[Any]") -> None:
    """Looks at a result that nobody waits for, so that asyncio does not warn of its error."""
    if not future.cancelled():
        future.exception()


def _replica_was_lost(error: Exception) -> bool:
    """Another replica can answer instead: the seeds make it the same answer."""
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError | EngineLostError)


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Failure):
        future.set_exception(result.error)
    else:
        future.set_result(result)


def _last_line(error: Exception) -> str:
    """The last line of Ray's multi-line errors names the cause."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


class RemotePolicy:
    """The policy protocol over calls to a replica.

    gives_up: single requests may be cancelled, as a search does that speculates. others: other
    replicas, for when one is lost.
    """

    def __init__(
        self, calls: TakesBatches, gives_up: bool = False, others: Sequence[TakesBatches] = ()
    ) -> None:
        self._caller: BatchingCaller[ExpandItem | GiveUp, Expansion] = BatchingCaller(
            calls, PolicyError, _give_up if gives_up else None, others
        )
        self._writer: BatchingCaller[SolutionRequest, list[Expansion]] = BatchingCaller(
            calls, PolicyError, None, others
        )
        name = uuid.uuid4().hex
        self._tickets = (f"{name}-{number}" if gives_up else "" for number in itertools.count())

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """See `search.protocols.Policy`."""
        ticket = next(self._tickets)
        item = ExpandItem(path, n, sampling, max_tokens, seed, first, ticket)
        return await self._caller.call(item)

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """See `search.whole_solutions.WritesSolutions`."""
        return await self._writer.call(request)


def _give_up(item: ExpandItem | GiveUp) -> GiveUp:
    return GiveUp(item.ticket)


class RemotePRM:
    """The PRM protocol over calls to a replica. others: as of `RemotePolicy`."""

    def __init__(self, calls: TakesBatches, others: Sequence[TakesBatches] = ()) -> None:
        self._caller: BatchingCaller[ScoreItem, Score] = BatchingCaller(
            calls, PRMError, None, others
        )

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """See `search.protocols.PRM`."""
        scores = [self._caller.queue(ScoreItem(path)) for path in paths]
        try:
            return [await score for score in scores]
        finally:
            for score in scores:
                score.cancel()
