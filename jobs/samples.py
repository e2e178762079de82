"""Independent samples of a policy: from the `solutions` table to the `samples` table.

The evaluation of VibeThinker (arXiv 2511.06221): k samples a problem, pass@1 as their mean,
pass@k, cons@k, how many were cut off, and how much a problem can still teach. Invariant: a row
depends on nothing but the solutions of one search over one problem, whatever their order.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.curves import without_routed
from jobs.intervals import accuracy_interval
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
_N = _KEYS.index("n")
_PROBLEM = _KEYS.index("problem_id")

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


def samples_of_parts(
    parts: Iterable[pa.Table], problem_ids: Sequence[str] | None, strength: float
) -> pa.Table:
    """`SAMPLES`: for each search that samples independently a row a problem, then their means.

    parts: graded rows of at least `SAMPLE_COLUMNS`, one part in memory at a time; all solutions
    of a search over a problem stand in one part, else ValueError. problem_ids: the problems to
    look at, None for all. strength: lambda of the weights.
    """
    found: dict[Key, list[_Class]] = {}
    for part in parts:
        for key, classes in _by_problem(part, problem_ids).items():
            if key in found:
                raise ValueError(f"the solutions of {key[_PROBLEM]!r} stand in several parts")
            found[key] = classes
    searches: defaultdict[Key, list[Row]] = defaultdict(list)
    for key in sorted(found, key=lambda key: (_without_problem(key), key[_PROBLEM])):
        searches[_without_problem(key)].append(_problem_row(key, found[key], strength))
    rows = [row for rows in searches.values() for row in (*rows, _mean_row(rows))]
    return pa.Table.from_pylist(rows, SAMPLES)


def _without_problem(key: Key) -> Key:
    return key[:_PROBLEM] + key[_PROBLEM + 1 :]


def _by_problem(part: pa.Table, problem_ids: Sequence[str] | None) -> dict[Key, list[_Class]]:
    independent = [name for name, kind in STRATEGIES.items() if kind.samples]
    rows = without_routed(part.filter(pc.is_in(part["strategy"], pa.array(independent))))
    if problem_ids is not None:
        rows = rows.filter(pc.is_in(rows["problem_id"], pa.array(problem_ids, pa.string())))
    classes: defaultdict[Key, list[_Class]] = defaultdict(list)
    for row in _counted(rows).to_pylist():
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
    success = correct / samples
    # A problem whose units failed in part has fewer samples than the search asked for.
    ks = [k for k in group_grid(key[_N]) if k <= samples]
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


def _consensus(classes: list[_Class]) -> float:
    """Whether the most frequent answer is correct; the mean over those that tie, 0 without any."""
    voting = [c for c in classes if c.answer_class >= 0]
    most = max((c.samples for c in voting), default=0)
    tied = [c.correct > 0 for c in voting if c.samples == most]
    return sum(tied) / len(tied) if tied else 0.0


def _mean_row(rows: list[Row]) -> Row:
    """The mean over problems, with an interval of pass@1 that counts problems as draws."""
    mean, low, high = accuracy_interval(np.array([row["pass_at_1"] for row in rows]))
    means = {name: float(np.mean([row[name] for row in rows])) for name in _MEANS}
    ks = max((row["ks"] for row in rows), key=len)
    return (
        {name: rows[0][name] for name in _KEYS}
        | means
        | {
            "problem_id": None,
            "samples": sum(row["samples"] for row in rows),
            "pass_at_1": float(mean),
            "ci_low": _share(float(low)),
            "ci_high": _share(float(high)),
            "ks": ks,
            "pass_at_k": [_mean_at(rows, place) for place in range(len(ks))],
        }
    )


def _mean_at(rows: list[Row], place: int) -> float:
    """pass@k over the problems with at least k samples."""
    return float(np.mean([row["pass_at_k"][place] for row in rows if len(row["ks"]) > place]))


def _share(value: float) -> float | None:
    """A limit of an interval, in [0, 1]; None where one problem gives none."""
    return None if np.isnan(value) else min(1.0, max(0.0, value))
