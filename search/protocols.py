"""The two protocols every engine, remote client and fake implements.

A policy speaks token ids, so that no prefix is ever tokenised again; a PRM speaks text,
because its tokenizer is another. Both may be called concurrently from one event loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, Protocol


class StopReason(StrEnum):
    """Why a step or a solution ended.

    The first two end a step only; the others end the solution too. `THINKING`: a limit was
    reached before the thinking part ended. `UNFINISHED` marks a candidate that counts towards N
    but was never completed. Neither has an answer or a vote.
    """

    DELIMITER = "delimiter"
    LENGTH = "length"
    EOS = "eos"
    BOXED = "boxed"
    MAX_STEPS = "max_steps"
    MAX_TOKENS = "max_tokens"
    THINKING = "thinking"
    UNFINISHED = "unfinished"


class Carried:
    """What crosses process borders by the thousand: pickled by its fields, in a third of the time.

    (A frozen dataclass with slots is else read and written field by field, by name.)
    """

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), _reader(self.__slots__)(self)


@cache
def _reader(names: tuple[str, ...]) -> Callable[[Carried], tuple[Any, ...]]:
    """Reads the fields of these names."""
    # Of a single one `attrgetter` gives the value alone.
    return attrgetter(*names) if len(names) > 1 else lambda one: (getattr(one, *names),)


@dataclass(frozen=True, slots=True)
class Sampling(Carried):
    """How the policy draws tokens. `delimiter` ends a step and stays in its text."""

    temperature: float = 1.0
    top_p: float = 1.0
    delimiter: str = "\n\n"


@dataclass(frozen=True, slots=True)
class PolicyPath(Carried):
    """Where to continue: the problem, and the token ids of the steps so far (packed)."""

    problem: str
    token_ids: bytes


@dataclass(frozen=True, slots=True)
class PRMPath(Carried):
    """A partial solution as text; only its last step is to be scored.

    Steps come without their delimiter; `unfinished` says that the last one ended in it.
    `new_steps`: how many of the last steps no earlier path led to; it changes no reward, only
    what a perfect cache would have had to compute.
    """

    problem: str
    steps: tuple[str, ...]
    unfinished: bool = False
    new_steps: int = 1


@dataclass(frozen=True, slots=True)
class Completion(Carried):
    """One sampled step: its tokens (packed), their summed log-probability, how it ended.

    `stop_reason` is DELIMITER, LENGTH or EOS: what an engine can know.
    """

    text: str
    token_ids: bytes
    logprob: float
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Expansion(Carried):
    """The n completions of one path, and what its prefix cost.

    `prefix_tokens` counts prompt and steps so far, once for each completion, for each of them
    stands on all of it; `prefix_tokens_computed` what was computed
    of it because it was not in the KV cache. `replica` names who answered. `tokens_past_end`
    were sampled after the end of a solution that was written in one piece, and dropped.
    """

    completions: tuple[Completion, ...]
    prefix_tokens: int
    prefix_tokens_computed: int
    replica: str = ""
    tokens_past_end: int = 0

    def by(self, replica: str) -> "Expansion":
        """The same, written by this replica."""
        computed, past_end = self.prefix_tokens_computed, self.tokens_past_end
        return Expansion(self.completions, self.prefix_tokens, computed, replica, past_end)


@dataclass(frozen=True, slots=True)
class Score(Carried):
    """The reward of a path's last step in [0, 1], and its cost in PRM tokens.

    `tokens_minimal` is what a perfect cache would have computed: the new steps alone.
    """

    reward: float
    tokens_computed: int
    tokens_minimal: int
    replica: str = ""

    def by(self, replica: str) -> "Score":
        """The same, given by this replica."""
        return Score(self.reward, self.tokens_computed, self.tokens_minimal, replica)


class Policy(Protocol):
    """Writes steps."""

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """Samples n continuations of at most `max_tokens` tokens; raises PolicyError.

        Completion i is sample `first + i` of the path's node: it depends on `seed` and that number
        alone, never on what else is being sampled, so n samples may be asked for in any parts.
        """
        ...


class PRM(Protocol):
    """Scores steps."""

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """One score for the last step of each path, in order; raises PRMError."""
        ...
