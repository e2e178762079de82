"""Policies and PRMs without a model: scripted trees for tests, and a seeded synthetic pair.

Each byte of a step's UTF-8 text is one token, so packed ids can be read back as text; an end
of text is one more token, `EOS_ID`. Invariant: `SeededPolicy` and `SeededPRM` are pure
functions of their fields and arguments, as the protocols ask of every engine.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TypeAlias

from search.errors import PRMError
from search.protocols import (
    Completion,
    Expansion,
    PolicyPath,
    PRMPath,
    Sampling,
    Score,
    StopReason,
)
from search.seeds import derive_seed
from search.token_ids import BYTES_PER_TOKEN, count_ids, pack_ids

Script: TypeAlias = Mapping[tuple[str, ...], Sequence[str]]

EOS_ID = 256
EOS_MARK = "<eos>"
CUT_MARK = "<cut>"
WRONG = "wrong"
FILLER = "."

_EOS = pack_ids([EOS_ID])
_DRAW_BITS = 21
_DRAWS = 1 << _DRAW_BITS
_NOISE = NormalDist()


def encode_text(text: str) -> bytes:
    """The packed ids of a text, one token a byte."""
    return pack_ids(list(text.encode()))


def decode_ids(packed: bytes) -> str:
    """The text of ids packed here; the end of text adds nothing to it."""
    # An id below 256 is its own lowest byte, so no unpacking is needed.
    return packed.removesuffix(_EOS)[::BYTES_PER_TOKEN].decode(errors="replace")


def written_step(text: str, end: StopReason, max_tokens: int, logprob: float) -> Completion:
    """One step as an engine returns it: with its end of text, cut at `max_tokens`."""
    packed = encode_text(text) + (_EOS if end is StopReason.EOS else b"")
    if count_ids(packed) <= max_tokens:
        return Completion(text, packed, logprob, end)
    packed = packed[: max_tokens * BYTES_PER_TOKEN]
    return Completion(decode_ids(packed), packed, logprob, StopReason.LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """What all fakes share: how they account and how long each call takes.

    `cached`: a prefix costs nothing, as with a perfect cache; otherwise all of it is computed.
    """

    cached: bool = True
    delay_s: float = 0.0
    replica: str = ""

    async def wait(self) -> None:
        """Takes `delay_s`; without a delay the event loop is not even asked."""
        if self.delay_s > 0:
            await asyncio.sleep(self.delay_s)

    def paid_expansion(self, path: PolicyPath, completions: Sequence[Completion]) -> Expansion:
        """The completions and the cost of their prefix."""
        length = len(path.problem.encode()) + count_ids(path.token_ids)
        prefix = len(completions) * length
        return Expansion(tuple(completions), prefix, 0 if self.cached else prefix, self.replica)

    def paid_score(self, path: PRMPath, reward: float) -> Score:
        """The reward and its cost, one token a byte."""
        minimal = sum(len(step.encode()) for step in path.steps[-path.new_steps :])
        whole = len(path.problem.encode()) + sum(len(step.encode()) for step in path.steps)
        return Score(reward, minimal if self.cached else whole, minimal, self.replica)


@dataclass(frozen=True, slots=True)
class ScriptedPolicy(Fake):
    """Writes the steps a script lists for a path, each call the next n of its list.

    A call with `first` > 0 goes on in the part of the list that its seed's call with `first` = 0
    began, so that a node's samples may be asked for in order, together or one by one.

    A step is written with the delimiter, unless it ends with `EOS_MARK` (the text ends there)
    or `CUT_MARK` (it hit its token limit); marks are not written. Keys spell their steps as the
    lists do. A path that is not in the script, or whose list is spent, gets too few steps.
    `calls` keeps (path as text, n, max_tokens, seed) of every call.
    """

    script: Script
    delimiter: str = "\n\n"
    calls: list[tuple[str, int, int, int]] = field(default_factory=list)
    _steps: dict[str, Sequence[str]] = field(init=False, default_factory=dict)
    _spent: dict[str, int] = field(init=False, default_factory=lambda: defaultdict(int))
    _begun: dict[tuple[str, int], int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for path, steps in self.script.items():
            self._steps["".join(self._read(step)[0] for step in path)] = steps

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """The next n scripted steps after `path`."""
        prefix = decode_ids(path.token_ids)
        self.calls.append((prefix, n, max_tokens, seed))
        if first == 0:
            self._begun[prefix, seed] = self._spent[prefix]
        start = self._begun.get((prefix, seed), 0) + first
        self._spent[prefix] = max(self._spent[prefix], start + n)
        steps = [self._read(step) for step in self._steps.get(prefix, ())[start : start + n]]
        await self.wait()
        completions = [written_step(text, end, max_tokens, -1.0) for text, end in steps]
        return self.paid_expansion(path, completions)

    def _read(self, step: str) -> tuple[str, StopReason]:
        if step.endswith(EOS_MARK):
            return step.removesuffix(EOS_MARK), StopReason.EOS
        if step.endswith(CUT_MARK):
            return step.removesuffix(CUT_MARK), StopReason.LENGTH
        return step + self.delimiter, StopReason.DELIMITER


@dataclass(frozen=True, slots=True)
class ScriptedPRM(Fake):
    """Rewards by the text of the last step; `calls` keeps the paths of every call."""

    rewards: Mapping[str, float]
    calls: list[tuple[PRMPath, ...]] = field(default_factory=list)

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """The scripted reward of each path's last step; PRMError where the script has none."""
        self.calls.append(tuple(paths))
        await self.wait()
        return [self.paid_score(path, self._reward(path.steps[-1])) for path in paths]

    def _reward(self, step: str) -> float:
        if step not in self.rewards:
            raise PRMError(f"the scripted PRM has no reward for the step {step!r}: add one")
        return self.rewards[step]


@dataclass(frozen=True, slots=True)
class SeededPolicy(Fake):
    """Each step is right with probability `p`; a solution is right if all its steps are.

    A solution has `mean_steps` steps, give or take `spread` (uniform). A right one ends with
    `answer` in a box, a wrong one with one of `wrong_answers` whole numbers after 1000.
    `step_tokens` fills steps up to lengths drawn from a lognormal distribution with that mean
    and the coefficient of variation `step_cv`; 0 leaves them as they are.
    """

    p: float = 0.75
    mean_steps: int = 6
    spread: int = 2
    answer: str = "42"
    wrong_answers: int = 16
    step_tokens: float = 0.0
    step_cv: float = 0.6

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """Draws n steps; sample i depends on the path, `seed` and i alone."""
        await self.wait()
        so_far = decode_ids(path.token_ids)
        step, wrong = so_far.count("Step ") + 1, WRONG in so_far
        completions = [
            self._write(step, wrong, derive_seed(seed, i), sampling.delimiter, max_tokens)
            for i in range(first, first + n)
        ]
        return self.paid_expansion(path, completions)

    def _write(
        self, step: int, wrong: bool, draw: int, delimiter: str, max_tokens: int
    ) -> Completion:
        # One hash gives three draws: is it right, is it the last, and a mark of its own.
        right = draw % _DRAWS < self.p * _DRAWS
        mark = draw >> 2 * _DRAW_BITS
        text = f"Step {step}: {'ok' if right else WRONG} {mark}"
        text = text.ljust(self._length(draw), FILLER)
        logprob = math.log(self.p if right else 1 - self.p)
        if not self._is_last(step, (draw >> _DRAW_BITS) % _DRAWS):
            return written_step(text + delimiter, StopReason.DELIMITER, max_tokens, logprob)
        answer = self.answer if right and not wrong else str(1001 + mark % self.wrong_answers)
        text = f"{text}\nThe answer is \\boxed{{{answer}}}"
        return written_step(text, StopReason.EOS, max_tokens, logprob)

    def _length(self, draw: int) -> int:
        """Tokens of a step; sums to `step_tokens` on average, delimiter not counted."""
        if not self.step_tokens:
            return 0
        sigma = math.sqrt(math.log1p(self.step_cv**2))
        normal = _NOISE.inv_cdf((derive_seed("length", draw) % _DRAWS + 0.5) / _DRAWS)
        return round(self.step_tokens * math.exp(sigma * normal - sigma**2 / 2))

    def _is_last(self, step: int, draw: int) -> bool:
        """Ends the solution so that every length in mean +- spread is equally likely."""
        left = self.mean_steps + self.spread - step
        return left <= 0 or (step >= self.mean_steps - self.spread and draw * (left + 1) < _DRAWS)


@dataclass(frozen=True, slots=True)
class SeededPRM(Fake):
    """Tells right from wrong partial solutions of `SeededPolicy` with the given ROC area.

    Binormal: the evidence is normal with variance 1, its mean higher by sqrt(2) * z(auc) when
    all steps so far are right; the reward is its rank in (0, 1). Equal texts, equal rewards.
    """

    auc: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.auc < 1.0:
            raise ValueError(f"auc must lie between 0 and 1, not {self.auc}")

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """One reward for each path."""
        await self.wait()
        gap = math.sqrt(2.0) * _NOISE.inv_cdf(self.auc)
        return [self.paid_score(path, self._reward(path, gap)) for path in paths]

    def _reward(self, path: PRMPath, gap: float) -> float:
        draw = derive_seed(self.seed, path.problem, *path.steps)
        noise = _NOISE.inv_cdf(((draw >> 11) + 0.5) / (1 << 52))
        right = not any(WRONG in step for step in path.steps)
        return _NOISE.cdf(noise + (gap / 2 if right else -gap / 2))
