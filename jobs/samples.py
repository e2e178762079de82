"""Independent samples of a policy: from the `solutions` table to the `samples` table.

The evaluation of VibeThinker (arXiv 2511.06221): k samples a problem, pass@1 as their mean,
pass@k, cons@k, how many were cut off, and how much a problem can still teach. Invariant: a row
depends on nothing but the solutions of one search over one problem, whatever their order.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import comb
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.curves import PROBLEMS_A_PART, without_routed
from jobs.intervals import accuracy_interval
from search.config import is_uneven
from search.max_entropy import divergence_from_half, max_entropy_weight
from search.protocols import StopReason
from search.schemas import SAMPLES
from search.strategies import STRATEGIES
from search.subsampling import group_grid

# What names a search over a problem: all that comes before the counts.
_KEYS = SAMPLES.names[: SAMPLES.names.index("samples")]
SAMPLE_COLUMNS = (*_KEYS, "answer_class", "verdict", "policy_tokens", "stop_reason")
CUT = (StopReason.MAX_TOKENS, StopReason.MAX_STEPS, StopReason.THINKING)
_MEANS = ("cons_at_k", "cut_share", "mean_tokens", "divergence", "weight")
# Rows of Python objects, each of which takes ten times what it takes in a table.
_ROWS_AT_ONCE = 1024
_N = _KEYS.index("n")
_PROBLEM = _KEYS.index("problem_id")
_VARIANT = _KEYS.index("variant")

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Class:
    """The samples of one problem with one answer; a negative `answer_class` is no answer."""

    answer_class: int
    samples: int
    correct: int
    cut: int
    tokens: int


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The probability that any of k samples is correct, given `correct` of `samples`.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374,
    equation 1), exact for whole numbers of any size.
    """
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def samples_in_parts(
    parts: Iterable[pa.Table], problem_ids: Sequence[str] | None, strength: float
) -> Iterator[pa.Table]:
    """`SAMPLES`: for each search that samples independently a row a problem, then their means.

    parts: graded rows of at least `SAMPLE_COLUMNS`, one part in memory at a time; all solutions
    of a search over a problem stand in one part, else ValueError. problem_ids: the problems to
    look at, None for all. strength: lambda of the weights.
    """
    found: defaultdict[Key, dict[str, list[_Class]]] = defaultdict(dict)
    for part in parts:
        for key, classes in _by_problem(part, problem_ids).items():
            problems = found[_without_problem(key)]
            if key[_PROBLEM] in problems:
                raise ValueError(f"the solutions of {key[_PROBLEM]!r} stand in several parts")
            problems[key[_PROBLEM]] = classes
    for search in sorted(found):
        rows = _search_rows(search, found[search], strength)
        while batch := list(islice(rows, PROBLEMS_A_PART)):
            yield pa.Table.from_pylist(batch, SAMPLES)


def _search_rows(search: Key, problems: dict[str, list[_Class]], strength: float) -> Iterator[Row]:
    """A row for each problem, then their mean, of which each row leaves a few numbers."""
    seen = _Seen()
    for problem_id in sorted(problems):
        key = _with_problem(search, problem_id)
        row = _problem_row(key, problems[problem_id], strength)
        seen.add(row)
        yield row
    yield dict(zip(_KEYS, _with_problem(search, None), strict=True)) | seen.mean_row()


def _without_problem(key: Key) -> Key:
    return key[:_PROBLEM] + key[_PROBLEM + 1 :]


def _with_problem(search: Key, problem_id: str | None) -> Key:
    return (*search[:_PROBLEM], problem_id, *search[_PROBLEM:])


def _number_lists() -> "dict[str, array[float]]":
    return {name: array("d") for name in ("pass_at_1", *_MEANS)}


def _by_problem(part: pa.Table, problem_ids: Sequence[str] | None) -> dict[Key, list[_Class]]:
    independent = [name for name, kind in STRATEGIES.items() if kind.samples]
    rows = without_routed(part.filter(pc.is_in(part["strategy"], pa.array(independent))))
    if problem_ids is not None:
        rows = rows.filter(pc.is_in(rows["problem_id"], pa.array(problem_ids, pa.string())))
    classes: defaultdict[Key, list[_Class]] = defaultdict(list)
    batches = _counted(rows).to_batches(max_chunksize=_ROWS_AT_ONCE)
    for row in (row for batch in batches for row in batch.to_pylist()):
        classes[tuple(row[name] for name in _KEYS)].append(
            _Class(
                row["answer_class"],
                row["correct_count"],
                row["correct_sum"],
                row["cut_sum"],
                row["policy_tokens_sum"],
            )
        )
    return classes


def _counted(rows: pa.Table) -> pa.Table:
    """One row for each answer class of each problem."""
    cut = pc.is_in(rows["stop_reason"], pa.array([str(reason) for reason in CUT]))
    flags = {"correct": pc.equal(rows["verdict"], "correct"), "cut": cut}
    rows = rows.select([*_KEYS, "answer_class", "policy_tokens"])
    for name, flag in flags.items():
        rows = rows.append_column(name, flag.cast(pa.int64()))
    return rows.group_by([*_KEYS, "answer_class"], use_threads=False).aggregate(
        [("correct", "count"), ("correct", "sum"), ("cut", "sum"), ("policy_tokens", "sum")]
    )


def _problem_row(key: Key, classes: list[_Class], strength: float) -> Row:
    samples, correct = sum(c.samples for c in classes), sum(c.correct for c in classes)
    success, ks = correct / samples, _sizes(key, samples)
    return dict(zip(_KEYS, key, strict=True)) | {
        "samples": samples,
        "pass_at_1": success,
        "ks": ks,
        "pass_at_k": [pass_at_k(samples, correct, k) for k in ks],
        "cons_at_k": _consensus(classes),
        "cut_share": sum(c.cut for c in classes) / samples,
        "mean_tokens": sum(c.tokens for c in classes) / samples,
        "divergence": divergence_from_half(success),
        "weight": max_entropy_weight(success, strength),
    }


def _sizes(key: Key, samples: int) -> list[int]:
    """The k of pass@k: those that a problem whose units failed in part has samples for.

    None where solutions are given out unevenly: who settles stops, so that a mean at a larger k
    would be over the unsettled problems alone.
    """
    return [] if is_uneven(key[_VARIANT]) else [k for k in group_grid(key[_N]) if k <= samples]


def _consensus(classes: list[_Class]) -> float:
    """Whether the most frequent answer is correct; the mean over those that tie, 0 without any."""
    voting = [c for c in classes if c.answer_class >= 0]
    most = max((c.samples for c in voting), default=0)
    tied = [c.correct > 0 for c in voting if c.samples == most]
    return sum(tied) / len(tied) if tied else 0.0


@dataclass(slots=True)
class _Seen:
    """Of the rows of a search what their mean needs; `at_k` is a list of values for each k."""

    values: dict[str, "array[float]"] = field(default_factory=_number_lists)
    at_k: list["array[float]"] = field(default_factory=list)
    ks: list[int] = field(default_factory=list)
    samples: int = 0

    def add(self, row: Row) -> None:
        for name, values in self.values.items():
            values.append(row[name])
        self.ks = max(self.ks, row["ks"], key=len)
        self.at_k += (array("d") for _ in range(len(self.at_k), len(self.ks)))
        for values, value in zip(self.at_k, row["pass_at_k"], strict=False):
            values.append(value)
        self.samples += row["samples"]

    def mean_row(self) -> Row:
        """Means over problems, with an interval of pass@1 that counts problems as draws.

        pass@k is the mean over the problems with at least k samples.
        """
        mean, low, high = accuracy_interval(np.array(self.values["pass_at_1"]))
        return {name: float(np.mean(self.values[name])) for name in _MEANS} | {
            "samples": self.samples,
            "pass_at_1": float(mean),
            "ci_low": _share(float(low)),
            "ci_high": _share(float(high)),
            "ks": self.ks,
            "pass_at_k": [float(np.mean(values)) for values in self.at_k],
        }


def _share(value: float) -> float | None:
    """A limit of an interval, in [0, 1]; None where one problem gives none."""
    return None if np.isnan(value) else min(1.0, max(0.0, value))
