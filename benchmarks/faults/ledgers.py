"""What the fake engines of a run were asked, in how many tokens, and when.

Invariant: what an undisturbed run asks twice (equal texts in two trees) is not counted as redone.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Ledger:
    """All requests of one role: when each was asked (Unix seconds), and its tokens."""

    asked: dict[str, list[float]]
    tokens: dict[str, int]
    answers: int

    @property
    def total_tokens(self) -> int:
        """Tokens of everything that was asked, as often as it was."""
        return sum(len(times) * self.tokens.get(key, 0) for key, times in self.asked.items())

    @property
    def span_s(self) -> float:
        """From the first request to the last."""
        return max(map(max, self.asked.values())) - min(map(min, self.asked.values()))


@dataclass(frozen=True, slots=True)
class Redone:
    """What a disturbed run asked once more.

    tokens_share: of the undisturbed run's policy tokens. after_s: from the fault until lost work
    was asked again, the first and the last of it; empty if nothing was.
    """

    requests: int
    tokens_share: float
    after_s: tuple[float, ...]


def read_ledger(folder: Path, role: str) -> Ledger:
    """The ledgers of all engines of a role; a half-written last line is left out."""
    asked: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    answers = 0
    for line in _lines(folder, role):
        if "asked" in line:
            asked.setdefault(line["asked"], []).append(line["at_s"])
        else:
            tokens[line["answered"]] = line["tokens"]
            answers += 1
    return Ledger({key: sorted(times) for key, times in asked.items()}, tokens, answers)


def redone(disturbed: Ledger, undisturbed: Ledger, fault_at_s: float) -> Redone:
    """What was asked more often than in the undisturbed run, and when."""
    before = Counter({key: len(times) for key, times in undisturbed.asked.items()})
    more = {
        key: times[before[key] :]
        for key, times in disturbed.asked.items()
        if len(times) > before[key]
    }
    tokens = sum(len(times) * undisturbed.tokens.get(key, 0) for key, times in more.items())
    after = sorted(at_s - fault_at_s for times in more.values() for at_s in times)
    share = tokens / max(1, undisturbed.total_tokens)
    return Redone(sum(map(len, more.values())), share, (after[0], after[-1]) if after else ())


def unanswered(file: Path) -> int:
    """How many requests one engine has not answered."""
    return sum(1 if "asked" in line else -1 for line in _file_lines(file))


def _lines(folder: Path, role: str) -> list[dict[str, Any]]:
    return [line for file in sorted(folder.glob(f"{role}-*.jsonl")) for line in _file_lines(file)]


def _file_lines(file: Path) -> list[dict[str, Any]]:
    whole = file.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
