"""Two runs problem by problem: which problems both have, and how differently they were answered.

Invariant: a problem counts as the same only if its id, its text and its right answer are equal, and
only what both runs have a value for is compared.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.intervals import clustered_interval
from jobs.results import table_parts
from jobs.storage import Storage

# What names a search at one N with one vote.
SEARCH = ("policy", "strategy", "variant", "n", "branching", "reduction", "vote")
Key = tuple[Any, ...]
Correct = dict[str, float]
_SAME = ("problem_id", "text", "reference_answer", "error")


@dataclass(frozen=True, slots=True)
class Shared:
    """Problems of two runs. changed: those with one id and another text or right answer."""

    ids: frozenset[str]
    changed: int
    only_first: int
    only_second: int

    @property
    def is_most(self) -> bool:
        """Whether at least half of what either run has is in both."""
        larger = len(self.ids) + self.changed + max(self.only_first, self.only_second)
        return 2 * len(self.ids) >= max(larger, 1)


def shared_problems(first: Storage, second: Storage) -> Shared:
    """The problems that both runs have searched; raises StorageError."""
    ours, theirs = _problems(first), _problems(second)
    both = ours.keys() & theirs.keys()
    same = frozenset(name for name in both if ours[name] == theirs[name])
    return Shared(same, len(both) - len(same), len(ours) - len(both), len(theirs) - len(both))


def _problems(folder: Storage) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for part in table_parts(folder, "problems", _SAME):
        for name, text, answer, error in _rows(part, _SAME):
            if error is None:
                found[name] = (text, answer)
    return found


@dataclass(frozen=True, slots=True)
class Answered:
    """One search at one N: expected correctness by problem, read off a run of `searched_n`."""

    searched_n: int
    correct: Correct


def answered(folder: Storage, search: Mapping[str, Any] | None = None) -> dict[Key, Answered]:
    """Of each search, or of one, by the columns of `SEARCH`; raises StorageError.

    Of several that give the same N that with the largest `searched_n`, which averages over most.
    """
    found: dict[Key, Answered] = {}
    names = (*SEARCH, "searched_n", "problem_id", "expected_correct")
    for part in table_parts(folder, "answers", names):
        for *key, searched_n, problem, value in _rows(_kept(part, search or {}), names):
            place = tuple(key)
            held = found.get(place)
            if held is None or held.searched_n < searched_n:
                held = found[place] = Answered(searched_n, {})
            if held.searched_n == searched_n:
                held.correct[problem] = value
    return found


def _kept(part: pa.Table, search: Mapping[str, Any]) -> pa.Table:
    keep = pc.is_valid(part["problem_id"])
    for name, value in search.items():
        keep = pc.and_(keep, pc.equal(part[name], value))
    return part.filter(keep)


def _rows(part: pa.Table, names: Collection[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(part[name].to_pylist() for name in names), strict=True)


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of both over the problems that both answered; second minus first with its 95 %
    interval, which is NaN for a single problem."""

    problems: int
    first: float
    second: float
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0.0 or self.high < 0.0


def difference(first: Correct, second: Correct, ids: Collection[str]) -> Difference | None:
    """Over those of the problems that both have a value for; None without any."""
    both = [name for name in sorted(ids) if name in first and name in second]
    if not both:
        return None
    ours, theirs = (np.array([each[name] for name in both]) for each in (first, second))
    _, low, high = (float(side) for side in clustered_interval(theirs - ours))
    return Difference(len(both), float(ours.mean()), float(theirs.mean()), low, high)
