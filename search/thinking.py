"""Policies that think aloud before they answer: what of a text is thinking and what is not.

Pure. Invariant: a text is read from its beginning and begins with thinking, whether its start
mark was written by the policy or stands in the prompt. The first end mark ends the thinking; a
start mark after that begins another thinking part, which the next end mark ends. All else is
spoken: answers are read from it, and of a text without an end mark nothing is spoken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from search.protocols import Carried


class Scored(StrEnum):
    """What the PRM reads and scores: the spoken part of each step alone, or all of it."""

    ANSWER = "answer"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Thinking(Carried):
    """The marks around a thinking part, and what the PRM scores; neither mark is empty."""

    end: str = "</think>"
    start: str = "<think>"
    score: Scored = Scored.ANSWER

    def is_cut(self, text: str) -> bool:
        """Whether the first thinking part has not ended."""
        return self.end not in text

    def spoken(self, text: str) -> str:
        """All of a text that is not thinking; empty if its thinking has not ended."""
        return "".join(text[start:stop] for start, stop in self._spoken_spans(text))

    def spoken_steps(self, steps: Sequence[str]) -> list[str]:
        """What each step of one text has that is not thinking; a mark may span steps."""
        spans, parts, place = self._spoken_spans("".join(steps)), [], 0
        for step in steps:
            cut = [(max(a, place), min(b, place + len(step))) for a, b in spans]
            parts.append("".join(step[a - place : b - place] for a, b in cut if a < b))
            place += len(step)
        return parts

    def read_steps(self, steps: Sequence[str]) -> Sequence[str]:
        """What the PRM reads of each step."""
        return self.spoken_steps(steps) if self.score is Scored.ANSWER else steps

    def _spoken_spans(self, text: str) -> list[tuple[int, int]]:
        """Places [start, stop) between an end mark and the next start mark, or the end."""
        spans, ended = [], text.find(self.end)
        while ended >= 0:
            start = ended + len(self.end)
            begun = text.find(self.start, start)
            spans.append((start, len(text) if begun < 0 else begun))
            ended = -1 if begun < 0 else text.find(self.end, begun + len(self.start))
        return spans
