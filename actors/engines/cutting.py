"""A solution that was written in one piece, cut into the steps that its rules make of it.

Invariant: the steps are those of the same tokens written step by step: each ends with the first
token that completes the delimiter, at its own limit, or with the text.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from actors.wire import ExpandItem
from search.protocols import Completion, Expansion, PolicyPath, Sampling, StopReason
from search.token_ids import count_ids, pack_ids

LOGPROB_DECIMALS = 9
# What a tokenizer writes for a part of a character.
_PART_OF_CHARACTER = "\ufffd"
_PIECES_KEPT = 1 << 16
# Tokens before a step's last one that are looked at, at most, for the delimiter's characters.
_MOST_LOOKED_AT = 64


class Pieces:
    """Text of token ids; `one` is what a single token adds, as far as that can be told."""

    def __init__(self, text_of: Callable[[Sequence[int]], str]) -> None:
        self.text_of = text_of
        self.one = lru_cache(_PIECES_KEPT)(lambda token: text_of([token]))

    def may_end(self, token: int, delimiter: str) -> bool:
        """Whether text that ends with this token may end with the delimiter."""
        piece = self.one(token)
        return delimiter[-1] in piece or _PART_OF_CHARACTER in piece


@dataclass(frozen=True, slots=True)
class WrittenSolution:
    """`search.protocols.Policy` over the tokens of one solution.

    logprobs: of each token; ended: the last token is an end token; prompt_tokens and
    prompt_tokens_computed: of the prompt. beyond: asked for what was not written.
    """

    ids: Sequence[int]
    logprobs: Sequence[float]
    ended: bool
    prompt_tokens: int
    prompt_tokens_computed: int
    pieces: Pieces
    beyond: Callable[[ExpandItem], Awaitable[Expansion]]

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """The step that follows on the path's tokens."""
        start = count_ids(path.token_ids)
        if start >= len(self.ids):
            item = ExpandItem(path, n, sampling, max_tokens, seed, first)
            return await self.beyond(item)
        step = self._step(start, self._end(start, max_tokens, sampling.delimiter), sampling)
        computed = 0 if start else self.prompt_tokens_computed
        return Expansion((step,), self.prompt_tokens + start, computed)

    def tokens_past(self, steps: Sequence[Expansion]) -> int:
        """Tokens that were written after the last of these steps, with which the solution ends."""
        taken = sum(count_ids(each.token_ids) for step in steps for each in step.completions)
        return max(0, len(self.ids) - taken)

    def _step(self, start: int, end: int, sampling: Sampling) -> Completion:
        ids = self.ids[start:end]
        text, logprob = self.pieces.text_of(ids), sum(self.logprobs[start:end])
        reason = self._reason(text, end, sampling)
        return Completion(text, pack_ids(ids), round(logprob, LOGPROB_DECIMALS), reason)

    def _reason(self, text: str, end: int, sampling: Sampling) -> StopReason:
        if sampling.delimiter in text:
            return StopReason.DELIMITER
        return StopReason.EOS if self.ended and end == len(self.ids) else StopReason.LENGTH

    def _end(self, start: int, max_tokens: int, delimiter: str) -> int:
        """Where the step ends that begins at `start`; decodes only where it may end."""
        most = min(len(self.ids), start + max_tokens)
        for end in range(start + 1, most):
            if not self.pieces.may_end(self.ids[end - 1], delimiter):
                continue
            near = self._near(start, end, delimiter)
            if delimiter not in self.pieces.text_of(self.ids[near:end]):
                continue
            if delimiter in self.pieces.text_of(self.ids[start:end]):
                return end
        return most

    def _near(self, start: int, end: int, delimiter: str) -> int:
        """From where on tokens must be decoded to see a delimiter that ends with the last one.

        Looking at whole steps would take the square of their length, where a text is full of
        what may be a part of the delimiter.
        """
        place, characters = end, 0
        while place > start:
            place -= 1
            piece = self.pieces.one(self.ids[place])
            whole = _PART_OF_CHARACTER not in piece
            if whole and characters > len(delimiter):
                return place
            if end - place >= _MOST_LOOKED_AT + len(delimiter):
                return place
            # The last token may go on behind the delimiter, so its own length says nothing.
            characters += len(piece) if whole and place < end - 1 else 0
        return start
