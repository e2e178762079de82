"""Grading answers: verdicts, and classes of answers that mean the same, by killable children.

math-verify can spend seconds or stall for good on one hostile answer, so it runs in child
processes that are killed and replaced. Invariants: each distinct answer of a problem is graded
once until the problem is forgotten; an answer is `correct` if and only if its class is
`REFERENCE_CLASS`; nothing an answer contains can stop a run.
"""

import asyncio
import contextlib
import json
import multiprocessing
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import psutil

from jobs.grader_process import (
    READY,
    Checker,
    MathChecker,
    Verdict,
    normalised,
    plain_number,
    serve_questions,
    verdict_at_sight,
)
from search.errors import BranchwiseError
from search.problem import Problem
from search.rows import NO_CLASS

__all__ = ["REFERENCE_CLASS", "Graders", "GradingError", "Judgement", "Verdict"]

REFERENCE_CLASS = 0
MAX_COMPARISONS_PER_ANSWER = 32
MAX_COMPARISONS_PER_PROBLEM = 1000
START_TIMEOUT_S = 120.0
ATTEMPTS = 2
PATIENCE = 4
SHORTEST_WAIT_S = 0.05


class GradingError(BranchwiseError):
    """No grading process could be started."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one answer: the verdict, its class among the problem's answers, the task's own score.

    `answer_class` is 0 for what equals the reference, -1 for an empty answer, and otherwise
    counts from 1. `task_score` is None unless the problem comes from reasoning-gym.
    """

    verdict: Verdict
    answer_class: int
    task_score: float | None


class _ChildDied(Exception):
    """The child ended while it was asked."""


class _TooSlow(Exception):
    """The child did not answer in time."""


class _Refused(Exception):
    """The question cannot be answered: it raised, or it ended every child that was asked."""


@dataclass(slots=True, eq=False)
class _Child:
    """One process and the parent's end of its pipe; `process` is None before the first start.

    `is_wanted` is taken back from another thread to end a start that is under way.
    """

    checker: type[Checker]
    process: BaseProcess | None = None
    pipe: Connection | None = None
    is_wanted: bool = True

    def alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def start(self) -> None:
        """Blocks until the child has imported what it needs, or is not wanted.

        Raises GradingError.
        """
        for _ in range(ATTEMPTS):
            self._spawn()
            if self._is_ready() and self.is_wanted:
                return
            self.kill()
            if not self.is_wanted:
                return
        raise GradingError(
            "a grading process did not start: check that math-verify and reasoning-gym can be "
            "imported and that memory is left"
        )

    def ask(self, question: str, arguments: tuple[Any, ...], timeout_s: float) -> tuple[bool, Any]:
        """Blocks for the answer; raises _TooSlow or _ChildDied."""
        assert self.pipe is not None
        try:
            self.pipe.send((question, arguments))
            in_time = self._answers_within(timeout_s)
            reply: tuple[bool, Any] = self.pipe.recv() if in_time else (False, None)
        except (EOFError, OSError, psutil.NoSuchProcess) as error:
            raise _ChildDied from error
        if not in_time:
            raise _TooSlow
        return reply

    def _answers_within(self, timeout_s: float) -> bool:
        """Whether the child answers within this much of its own processor time.

        On a busy machine a good answer may wait longer than a hostile one computes. A child that
        does not compute at all is given up too, after `PATIENCE` times as long.
        """
        assert self.pipe is not None
        assert self.process is not None
        child = psutil.Process(self.process.pid)
        used_s, until_s = _processor_s(child), time.monotonic() + PATIENCE * timeout_s
        left_s = timeout_s
        while left_s > 0 and time.monotonic() < until_s:
            if self.pipe.poll(max(SHORTEST_WAIT_S, left_s)):
                return True
            left_s = timeout_s - (_processor_s(child) - used_s)
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _spawn(self) -> None:
        # Not fork: the parent has threads, and forked locks could stay locked for ever.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=serve_questions, args=(theirs, self.checker), daemon=True)
        process.start()
        # Not before: what is there can be killed.
        self.process = process
        theirs.close()

    def _is_ready(self) -> bool:
        assert self.pipe is not None
        until_s = time.monotonic() + START_TIMEOUT_S
        try:
            while not self.pipe.poll(SHORTEST_WAIT_S):
                if not self.is_wanted or time.monotonic() > until_s:
                    return False
            return bool(self.pipe.recv() == READY)
        except (EOFError, OSError):
            return False


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(slots=True)
class _Book:
    """What is known of one problem's answers: judgements, and one representative a class."""

    judged: dict[str, Judgement] = field(default_factory=dict)
    classes: dict[Fraction | str, int] = field(default_factory=dict)
    readable: dict[int, str] = field(default_factory=dict)
    numeric: set[int] = field(default_factory=set)
    next_class: int = REFERENCE_CLASS + 1
    comparisons: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add_class(self, key: Fraction | str, text: str, readable: bool) -> int:
        """Opens a class; what cannot be read is never compared with."""
        number, self.next_class = self.next_class, self.next_class + 1
        if readable:
            self.readable[number] = text
        if isinstance(key, Fraction):
            self.numeric.add(number)
        return number

    def rivals(self, key: Fraction | str) -> list[int]:
        """Classes an answer has to be compared with; numbers differ from numbers exactly."""
        skipped = self.numeric if isinstance(key, Fraction) else set()
        left = MAX_COMPARISONS_PER_PROBLEM - self.comparisons
        chosen = [number for number in self.readable if number not in skipped]
        return chosen[: max(0, min(left, MAX_COMPARISONS_PER_ANSWER))]


class Graders:
    """Grading processes for one run; use as an async context manager, in one event loop.

    They start beside what follows, or before, with `starting`; the first question to each waits
    until it has started.
    processes: children at work side by side. timeout_s: seconds of processor time for one question
    about one answer before the child is killed. problems_kept: problems whose judgements are
    remembered; an older one is forgotten, and its classes would be numbered anew. Raises
    GradingError.
    """

    def __init__(
        self,
        processes: int,
        timeout_s: float,
        *,
        problems_kept: int = 1024,
        checker: type[Checker] = MathChecker,
    ) -> None:
        self._timeout_s = timeout_s
        self._problems_kept = problems_kept
        self._books: OrderedDict[str, _Book] = OrderedDict()
        self._children = [_Child(checker) for _ in range(processes)]
        self._idle: asyncio.Queue[_Child] = asyncio.Queue()
        self._starts: dict[_Child, Future[None]] = {}
        self._starters = ThreadPoolExecutor(processes)

    @contextlib.contextmanager
    def starting(self) -> Iterator[Self]:
        """Starts them now, beside what the block does before there is a loop; ends them with it."""
        self._start()
        try:
            yield self
        finally:
            self._end()

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._end)

    def _start(self) -> None:
        for child in self._children if not self._starts else ():
            self._starts[child] = self._starters.submit(child.start)
            self._idle.put_nowait(child)

    def _end(self) -> None:
        for child in self._children:
            child.is_wanted = False
        # What still starts, its own thread ends.
        self._starters.shutdown()
        for child in self._children:
            child.kill()

    async def parses(self, reference_answer: str) -> bool:
        """Whether math-verify can read this reference at all."""
        try:
            return bool(await self._ask("parses", reference_answer))
        except (_TooSlow, _Refused):
            return False

    async def judge(self, problem: Problem, answers: Sequence[str]) -> list[Judgement]:
        """One judgement for each answer, in order; equal strings are graded once.

        New answers are taken shortest first, so the numbers of the classes depend on the set
        of answers of a call and of the calls before it, not on their order.
        """
        book = self._book(problem)
        async with book.lock:
            for answer in sorted(set(answers) - book.judged.keys(), key=lambda a: (len(a), a)):
                book.judged[answer] = await self._judge_one(book, problem, answer)
        return [book.judged[answer] for answer in answers]

    def forget(self, problem: Problem) -> None:
        """Frees what is known of a problem; should it come again, its classes start anew."""
        self._books.pop(problem.problem_id, None)

    def _book(self, problem: Problem) -> _Book:
        book = self._books.setdefault(problem.problem_id, _Book())
        self._books.move_to_end(problem.problem_id)
        if len(self._books) > self._problems_kept:
            self._books.popitem(last=False)
        return book

    async def _judge_one(self, book: _Book, problem: Problem, answer: str) -> Judgement:
        verdict = await self._verdict(problem.reference_answer, answer)
        if verdict is Verdict.NO_ANSWER:
            return Judgement(verdict, NO_CLASS, 0.0 if _task_of(problem) else None)
        number = REFERENCE_CLASS
        if verdict is not Verdict.CORRECT:
            number = await self._class_of(book, answer, verdict is Verdict.INCORRECT)
        return Judgement(verdict, number, await self._task_score(problem, answer))

    async def _verdict(self, reference: str, answer: str) -> Verdict:
        seen = verdict_at_sight(reference, answer)
        if seen is not None:
            return seen
        try:
            return Verdict(await self._ask("verdict", reference, answer))
        except _TooSlow:
            return Verdict.TIMEOUT
        except _Refused:
            return Verdict.PARSE_ERROR

    async def _class_of(self, book: _Book, answer: str, readable: bool) -> int:
        """The class of an answer that is not correct; opens one if no class fits."""
        text = normalised(answer)
        number = plain_number(text)
        key = text if number is None else number
        if key not in book.classes:
            known = await self._equal_class(book, key, answer) if readable else None
            book.classes[key] = known or book.add_class(key, answer, readable)
        return book.classes[key]

    async def _equal_class(self, book: _Book, key: Fraction | str, answer: str) -> int | None:
        rivals = book.rivals(key)
        if not rivals:
            return None
        book.comparisons += len(rivals)
        texts = tuple(book.readable[number] for number in rivals)
        try:
            place = int(await self._ask("first_equal", answer, texts))
        except (_TooSlow, _Refused):
            return None
        return rivals[place] if place >= 0 else None

    async def _task_score(self, problem: Problem, answer: str) -> float | None:
        task = _task_of(problem)
        if task is None:
            return None
        try:
            score: float | None = await self._ask("task_score", *task, answer)
        except (_TooSlow, _Refused):
            return None
        return score

    async def _ask(self, question: str, *arguments: Any) -> Any:
        """The child's answer; a question that ends a child is asked once more."""
        for _ in range(ATTEMPTS):
            try:
                answered, value = await self._ask_once(question, arguments)
            except _ChildDied:
                continue
            if answered:
                return value
            break
        raise _Refused

    async def _ask_once(self, question: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        child, reply = await self._idle.get(), None
        try:
            if child in self._starts:
                await asyncio.shield(asyncio.wrap_future(self._starts[child]))
            if not child.alive():
                await asyncio.to_thread(child.start)
            reply = await asyncio.to_thread(child.ask, question, arguments, self._timeout_s)
            return reply
        finally:
            # Without a reply (slow, dead or cancelled) the pipe may still bring an old one,
            # and a thread may still be reading it.
            self._idle.put_nowait(child if reply is not None else self._replace(child))

    def _replace(self, child: _Child) -> _Child:
        child.is_wanted = False
        child.kill()
        fresh = _Child(child.checker)
        self._children[self._children.index(child)] = fresh
        return fresh


def _task_of(problem: Problem) -> tuple[str, str] | None:
    """The reasoning-gym task and its entry as JSON, if the problem names one."""
    try:
        metadata = json.loads(problem.metadata or "{}")
    except ValueError:
        return None
    task = metadata.get("source_dataset") if isinstance(metadata, dict) else None
    if not isinstance(task, str) or not task:
        return None
    inner = metadata.get("metadata", metadata)
    entry = {"question": problem.text, "answer": problem.reference_answer, "metadata": inner}
    return task, json.dumps(entry)
