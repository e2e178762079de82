"""Engines that take time as a continuously batching engine does, and compute nothing.

One iteration gives every running sequence a token and takes `iteration_s + sequence_s x
running`; tokens that are only read (prompts, steps for a PRM) take `prompt_token_s` each, before
the sequences go on. Sequences beyond `max_batch` wait in order. Works in any event loop: in a
virtual one (see `virtual_time`) the same search takes the same simulated time, but no real one.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from search.protocols import PRM, Expansion, Policy, PolicyPath, PRMPath, Sampling, Score
from search.token_ids import count_ids

# Of an iteration: clocks are floats.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTiming:
    """The cost of an engine's work in seconds."""

    iteration_s: float = 0.02
    sequence_s: float = 0.0
    prompt_token_s: float = 0.0
    max_batch: int = 64

    def __post_init__(self) -> None:
        if self.iteration_s <= 0 or min(self.sequence_s, self.prompt_token_s) < 0:
            raise ValueError("iteration_s must be more than 0, other times 0 or more")


@dataclass(slots=True, eq=False)
class _Sequence:
    """One sequence: tokens to be read first, tokens it still writes, and who waits for it."""

    prompt_tokens: int
    left: int
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class SimulatedEngine:
    """One replica's engine. `busy_s` is how long it had something to do."""

    timing: EngineTiming
    busy_s: float = 0.0
    tokens: int = 0
    _waiting: deque[_Sequence] = field(default_factory=deque)
    _running: list[_Sequence] = field(default_factory=list)
    _change: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: "asyncio.Task[None] | None" = None

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences are in the batch, and how many wait."""
        return len(self._running), len(self._waiting)

    async def run(self, prompt_tokens: int, new_tokens: int) -> None:
        """Returns when a sequence has been read and written; a cancelled one leaves the batch."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Sequence(prompt_tokens, max(1, new_tokens), done))
        if len(self._running) < self.timing.max_batch:
            self._change.set()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._iterate())
        try:
            await done
        except asyncio.CancelledError:
            self._change.set()
            raise

    async def _iterate(self) -> None:
        """Runs while there is work, many iterations at a time while the batch stays the same.

        One begins when the last one should have ended: on a busy machine this task is woken late,
        by up to an iteration, and the engine that it stands for would have gone on by itself.
        """
        clock = asyncio.get_running_loop().time
        began_s = clock()
        while True:
            began_s += await self._read(self._admitted(), began_s)
            if not self._running:
                return
            each_s, most = self._iteration_s(), min(sequence.left for sequence in self._running)
            await self._pass(began_s + most * each_s)
            # Who came or left in the middle of an iteration joins or leaves at its end.
            spent = min(most, max(1, math.ceil((clock() - began_s) / each_s - ROUNDING)))
            took_s = spent * each_s
            await self._pass_until(began_s + took_s)
            self._write(spent)
            self.busy_s += took_s
            began_s = max(began_s + took_s, clock() - each_s)

    def _iteration_s(self) -> float:
        return self.timing.iteration_s + self.timing.sequence_s * len(self._running)

    def _admitted(self) -> int:
        """Fills the batch; returns the tokens that those who joined bring to be read."""
        self._change.clear()
        prompt_tokens = 0
        while self._waiting and len(self._running) < self.timing.max_batch:
            sequence = self._waiting.popleft()
            if not sequence.done.done():
                self._running.append(sequence)
                prompt_tokens += sequence.prompt_tokens
        return prompt_tokens

    async def _read(self, prompt_tokens: int, began_s: float) -> float:
        """Returns how long it takes, when it is over."""
        seconds = prompt_tokens * self.timing.prompt_token_s
        if seconds:
            await self._pass_until(began_s + seconds)
            self.busy_s += seconds
        return seconds

    async def _pass(self, end_s: float) -> None:
        """Waits, but not longer than until a sequence can join or leaves early."""
        left_s = end_s - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._change.wait(), left_s)
        except TimeoutError:
            return

    async def _pass_until(self, end_s: float) -> None:
        left_s = end_s - asyncio.get_running_loop().time()
        if left_s > 0:
            await asyncio.sleep(left_s)

    def _write(self, tokens: int) -> None:
        """Every running sequence gets the tokens; those that end, or were cancelled, leave."""
        going_on = []
        for sequence in self._running:
            sequence.left -= tokens
            self.tokens += tokens
            if sequence.done.done():
                continue
            if sequence.left > 0:
                going_on.append(sequence)
            else:
                sequence.done.set_result(None)
        self._running = going_on


@dataclass(slots=True)
class SimulatedPolicy:
    """A policy that takes as long as `engine` says for what `policy` writes."""

    policy: Policy
    engine: SimulatedEngine

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """The completions of `policy`, when the last of them would have been written."""
        expansion = await self.policy.expand(path, n, sampling, max_tokens, seed, first)
        computed = expansion.prefix_tokens_computed
        async with asyncio.TaskGroup() as tasks:
            for place, completion in enumerate(expansion.completions):
                prompt = computed if place == 0 else 0
                tasks.create_task(self.engine.run(prompt, count_ids(completion.token_ids)))
        return expansion


@dataclass(slots=True)
class SimulatedPRM:
    """A PRM that takes as long as `engine` says for what `prm` reads."""

    prm: PRM
    engine: SimulatedEngine

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """The scores of `prm`, when the last of them would have been computed.

        The steps of one solution are computed one after the other, siblings together.
        """
        scores = await self.prm.score(paths)
        for _, level in groupby(zip(paths, scores, strict=True), lambda pair: len(pair[0].steps)):
            async with asyncio.TaskGroup() as tasks:
                for _, score in level:
                    tasks.create_task(self.engine.run(score.tokens_computed, 1))
        return scores
