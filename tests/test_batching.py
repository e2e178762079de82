"""Batches: answered as they finish, sent once a turn, and never left without an answer."""

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from actors.batching import answer_as_finished, sendable
from actors.client import BatchingCaller, RemotePolicy, RemotePRM
from actors.engines.compute_thread import ComputeThread
from actors.wire import Failure, ScoreItem
from search.errors import (
    BranchwiseError,
    ClusterError,
    EngineLostError,
    PolicyError,
    PRMError,
    first_cause,
)
from search.protocols import Expansion, PolicyPath, PRMPath, Sampling, Score

HANG_S = 60
TURNS = 20
Compute = Callable[[Any], Awaitable[Any]]


class Gates:
    """A compute function whose items finish when they are let go, and that records them."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Event] = {}
        self.started: list[str] = []
        self.cancelled: list[str] = []

    async def compute(self, item: str) -> str:
        self.started.append(item)
        try:
            await self._gate(item).wait()
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        return item.upper()

    def let_go(self, *items: str) -> None:
        for item in items:
            self._gate(item).set()

    def _gate(self, item: str) -> asyncio.Event:
        return self.open.setdefault(item, asyncio.Event())


class StreamingMethod:
    """A Serve handle's streaming method, in this process: `remote` streams what a replica would."""

    def __init__(self, replica: Callable[[Sequence[Any]], AsyncIterator[Any]]) -> None:
        self._replica = replica
        self.batches: list[list[Any]] = []

    def remote(self, items: Sequence[Any]) -> AsyncIterator[Any]:
        self.batches.append(list(items))
        return self._replica(items)


def computing(compute: Compute) -> StreamingMethod:
    """A replica as it should be."""
    return StreamingMethod(lambda items: answer_as_finished(items, compute))


async def echo(item: Any) -> Any:
    return item


async def fail_odd(item: int) -> int:
    if item % 2:
        raise PolicyError(f"{item} is odd")
    return item


async def let_others_run() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def answers(items: Sequence[Any], compute: Compute) -> list[tuple[int, Any]]:
    replies = answer_as_finished(items, compute)
    return [answer async for reply in replies for answer in reply]


async def call_all(
    method: StreamingMethod, items: Sequence[Any], border: type[BranchwiseError] = PolicyError
) -> list[Any]:
    """What a caller gets for items that are ready in one turn: results or errors."""
    caller: BatchingCaller[Any, Any] = BatchingCaller(method, border)
    async with asyncio.timeout(HANG_S):
        return await asyncio.gather(*map(caller.call, items), return_exceptions=True)


@pytest.mark.unit
def test_every_item_is_answered_once_under_its_place() -> None:
    assert sorted(asyncio.run(answers("abcde", echo))) == list(enumerate("abcde"))
    assert asyncio.run(answers("", echo)) == []


@pytest.mark.unit
def test_a_slow_item_does_not_hold_back_fast_ones() -> None:
    async def run() -> list[Any]:
        gates = Gates()
        stream = answer_as_finished(["slow", "b", "c"], gates.compute)
        gates.let_go("c")
        replies = [await anext(stream)]
        gates.let_go("b")
        replies.append(await anext(stream))
        gates.let_go("slow")
        return replies + [reply async for reply in stream]

    assert asyncio.run(run()) == [[(2, "C")], [(1, "B")], [(0, "SLOW")]]


@pytest.mark.unit
def test_what_finished_meanwhile_comes_in_one_reply() -> None:
    async def run() -> list[tuple[int, str | Failure]]:
        gates = Gates()
        stream = answer_as_finished(["a", "b", "c"], gates.compute)
        gates.let_go("a")
        await anext(stream)
        gates.let_go("b", "c")
        await let_others_run()
        return await anext(stream)

    assert asyncio.run(run()) == [(1, "B"), (2, "C")]


@pytest.mark.unit
def test_a_failure_belongs_to_its_item() -> None:
    results = dict(asyncio.run(answers(range(4), fail_odd)))
    assert (results[0], results[2]) == (0, 2)
    for place in (1, 3):
        assert isinstance(results[place].error, PolicyError)
        assert str(pickle.loads(pickle.dumps(results[place])).error) == f"{place} is odd"


class OddError(Exception):
    """Cannot be read back: it is made from two arguments and keeps one."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


class OfReplicasError(Exception):
    """Can be read where there is this module: on the replica, but not by every caller."""


class HeldError(Exception):
    """Cannot be written: it holds a lock."""

    def __init__(self, what: str) -> None:
        super().__init__(what, threading.Lock())


@pytest.mark.unit
@pytest.mark.parametrize(
    "error",
    [
        OddError("no room", "layer 3"),
        HeldError("no room"),
        type("Local", (ValueError,), {})("no room"),
        OfReplicasError("no room"),
        ExceptionGroup("all", [OfReplicasError("no room")]),
        ValueError(OfReplicasError("no room")),
    ],
)
def test_an_error_that_cannot_be_sent_says_what_it_is(error: Exception) -> None:
    async def fail_one(item: int) -> int:
        if item == 1:
            raise error
        return item

    found = dict(asyncio.run(answers(range(3), fail_one)))
    assert (found[0], found[2]) == (0, 2)
    sent = pickle.loads(pickle.dumps(found[1]))
    assert isinstance(sent.error, ClusterError)
    assert type(first_cause(error)).__name__ in str(sent.error)
    assert "no room" in str(sent.error)


@pytest.mark.unit
@pytest.mark.parametrize(
    "error", [EngineLostError("it died"), PRMError("too long"), TimeoutError(), KeyError("place")]
)
def test_an_error_that_every_caller_knows_is_sent_as_it_is(error: Exception) -> None:
    assert sendable(error) is error


@pytest.mark.unit
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_items_still_running_are_cancelled_when_the_caller_goes(how: str) -> None:
    async def run() -> list[str]:
        gates = Gates()
        stream = answer_as_finished(["a", "b", "c"], gates.compute)
        gates.let_go("b")
        await anext(stream)
        if how == "close":
            await stream.aclose()  # type: ignore[attr-defined]
        else:
            reading = asyncio.ensure_future(anext(stream))
            await let_others_run()
            reading.cancel()
        await let_others_run()
        return gates.cancelled

    assert asyncio.run(run()) == ["a", "c"]


@pytest.mark.unit
def test_everything_ready_in_one_turn_goes_in_one_call() -> None:
    method = computing(echo)
    assert asyncio.run(call_all(method, range(50))) == list(range(50))
    assert method.batches == [list(range(50))]


@pytest.mark.unit
def test_nothing_waits_for_a_slow_item_of_its_batch_or_of_an_earlier_one() -> None:
    async def run() -> tuple[str, str, bool]:
        gates = Gates()
        caller: BatchingCaller[str, str] = BatchingCaller(computing(gates.compute), PolicyError)
        slow, fast = (asyncio.create_task(caller.call(item)) for item in ("slow", "fast"))
        await let_others_run()
        gates.let_go("fast", "later")
        later = await asyncio.wait_for(caller.call("later"), HANG_S)
        found = (await asyncio.wait_for(fast, HANG_S), later, slow.done())
        gates.let_go("slow")
        await slow
        return found

    assert asyncio.run(run()) == ("FAST", "LATER", False)


@pytest.mark.unit
def test_an_item_that_fails_raises_its_own_error() -> None:
    zero, one, two = asyncio.run(call_all(computing(fail_odd), range(3)))
    assert (zero, two) == (0, 2)
    assert (type(one), str(one)) == (PolicyError, "1 is odd")


@pytest.mark.unit
def test_a_stream_that_ends_early_fails_the_open_items_only() -> None:
    async def answer_first(items: Sequence[int]) -> AsyncIterator[list[tuple[int, int]]]:
        yield [(0, items[0])]

    first, *others = asyncio.run(call_all(StreamingMethod(answer_first), range(3)))
    assert first == 0
    assert [type(error) for error in others] == [ClusterError, ClusterError]


@pytest.mark.unit
@pytest.mark.parametrize("border", [PolicyError, PRMError])
@pytest.mark.parametrize("error", [OSError("lost\n  replica died"), ClusterError("no replica")])
def test_a_call_that_breaks_fails_its_open_items(
    border: type[BranchwiseError], error: Exception
) -> None:
    async def break_after_first(items: Sequence[int]) -> AsyncIterator[list[tuple[int, int]]]:
        yield [(0, items[0])]
        raise error

    method = StreamingMethod(break_after_first)
    first, *others = asyncio.run(call_all(method, range(3), border))
    expected = error if isinstance(error, BranchwiseError) else border("")
    assert first == 0
    assert [type(found) for found in others] == [type(expected)] * 2
    assert all(str(error).splitlines()[-1].strip() in str(found) for found in others)


@pytest.mark.unit
def test_a_call_that_cannot_start_fails_its_items() -> None:
    def refuse(items: Sequence[int]) -> AsyncIterator[Any]:
        raise OSError("no such deployment")

    errors = asyncio.run(call_all(StreamingMethod(refuse), range(2), PRMError))
    assert [type(error) for error in errors] == [PRMError, PRMError]


@pytest.mark.unit
def test_a_cancelled_caller_leaves_the_others_of_its_batch_alone() -> None:
    async def run() -> str:
        gates = Gates()
        caller: BatchingCaller[str, str] = BatchingCaller(computing(gates.compute), PolicyError)
        leaving, staying = (asyncio.create_task(caller.call(item)) for item in "ab")
        await let_others_run()
        leaving.cancel()
        gates.let_go("a", "b")
        return await asyncio.wait_for(staying, HANG_S)

    assert asyncio.run(run()) == "B"


@pytest.mark.unit
def test_a_batch_that_nobody_waits_for_any_more_is_cancelled() -> None:
    async def run() -> list[str]:
        gates = Gates()
        caller: BatchingCaller[str, str] = BatchingCaller(computing(gates.compute), PolicyError)
        calls = [asyncio.create_task(caller.call(item)) for item in "ab"]
        await let_others_run()
        for call in calls:
            call.cancel()
        await let_others_run()
        return sorted(gates.cancelled)

    assert asyncio.run(run()) == ["a", "b"]


@pytest.mark.unit
def test_the_remote_policy_sends_what_it_was_asked() -> None:
    async def describe(item: Any) -> Expansion:
        return Expansion((), item.n, item.seed, f"{item.path.problem} {item.max_tokens}")

    async def run() -> Expansion:
        policy = RemotePolicy(computing(describe))
        return await policy.expand(PolicyPath("p", b""), 3, Sampling(), 17, 5)

    assert asyncio.run(run()) == Expansion((), 3, 5, "p 17")


@pytest.mark.unit
def test_prm_scores_come_in_the_order_of_their_paths() -> None:
    async def later_first(item: ScoreItem) -> Score:
        place = int(item.path.steps[0])
        for _ in range(TURNS - place):
            await asyncio.sleep(0)
        return Score(place / 10, 0, 0)

    async def run() -> tuple[list[Score], int]:
        method = computing(later_first)
        paths = [PRMPath("p", (str(place),)) for place in range(10)]
        return await RemotePRM(method).score(paths), len(method.batches)

    scores, calls = asyncio.run(run())
    assert [score.reward for score in scores] == [place / 10 for place in range(10)]
    assert calls == 1


@pytest.mark.unit
def test_a_prm_path_that_fails_is_a_prm_error() -> None:
    async def refuse(item: ScoreItem) -> Score:
        raise PRMError("too long")

    with pytest.raises((PRMError, ExceptionGroup)) as caught:
        asyncio.run(RemotePRM(computing(refuse)).score([PRMPath("p", ("a",))]))
    assert isinstance(first_cause(caught.value), PRMError)


def doubling() -> ComputeThread[int, int]:
    """A thread that doubles numbers and breaks at a negative one."""

    def work() -> None:
        for waiting in thread.take_all(block=True):
            if waiting.item < 0:
                raise ValueError("negative")
            waiting.resolve(2 * waiting.item)

    thread: ComputeThread[int, int] = ComputeThread("doubling", work)
    thread.start()
    return thread


async def compute_all(thread: ComputeThread[int, int], items: Sequence[int]) -> list[Any]:
    async with asyncio.timeout(HANG_S):
        return await asyncio.gather(*map(thread.compute, items), return_exceptions=True)


@pytest.mark.unit
def test_a_thread_answers_every_item_from_any_loop() -> None:
    thread = doubling()
    for _ in range(2):
        results = asyncio.run(compute_all(thread, range(100)))
        assert results == [2 * item for item in range(100)]
    thread.check_health()


@pytest.mark.unit
def test_work_that_raises_fails_all_that_wait_and_all_that_come() -> None:
    thread = doubling()
    results = asyncio.run(compute_all(thread, [-1, 1, 2, 3]))
    results += asyncio.run(compute_all(thread, [4]))
    assert isinstance(results[0], ValueError)
    assert all(isinstance(r, ValueError) or r == 2 * i for i, r in enumerate(results[1:4], 1))
    assert isinstance(results[4], ValueError)
    with pytest.raises(ValueError, match="negative"):
        thread.check_health()


@pytest.mark.unit
def test_an_item_that_comes_while_the_work_breaks_fails_too() -> None:
    """The thread breaks after the item's look at its health and before the item is queued."""
    broken, thread = threading.Event(), doubling()

    class BreaksFirst(set[Any]):
        def add(self, waiting: Any) -> None:
            if not broken.is_set():
                broken.set()
                thread._incoming.put(type(waiting)(-1, waiting.future, waiting.loop))
                thread._thread.join(timeout=5)
            super().add(waiting)

    thread._unsettled = BreaksFirst()
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(asyncio.wait_for(thread.compute(1), timeout=5))


@pytest.mark.unit
def test_a_loop_that_closed_does_not_break_the_thread() -> None:
    release, taken = threading.Event(), threading.Event()

    def work() -> None:
        for waiting in thread.take_all(block=True):
            taken.set()
            assert release.wait(HANG_S)
            waiting.resolve(waiting.item)

    thread: ComputeThread[int, int] = ComputeThread("slow", work)
    thread.start()

    async def give_up() -> None:
        call = asyncio.create_task(thread.compute(1))
        await asyncio.to_thread(taken.wait, HANG_S)
        call.cancel()

    asyncio.run(give_up())
    release.set()
    assert asyncio.run(compute_all(thread, [7])) == [7]
    thread.check_health()


@pytest.mark.unit
def test_the_thread_sees_who_no_longer_waits() -> None:
    thread: ComputeThread[int, int] = ComputeThread("never started", lambda: None)

    async def cancel_one() -> list[bool]:
        calls = [asyncio.create_task(thread.compute(item)) for item in range(2)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        seen = [waiting.cancelled for waiting in thread.take_all(block=True)]
        calls[1].cancel()
        return seen

    assert asyncio.run(cancel_one()) == [True, False]
