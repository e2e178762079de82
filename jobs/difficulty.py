"""How hard a problem is for a policy: counted from its samples, or guessed from a few of them.

Difficulty is pass@1, the share of independent samples that are right, in three bins (Liu et al.
2025, arXiv 2502.06703, section 3.2) or in quintiles (Snell et al. 2024, arXiv 2408.03314).
Invariant: the features of a probe look at no verdict. Answer classes are only compared with each
other, never with the number that stands for the right one.
"""

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict

from jobs.curves import without_routed
from search.errors import RecipeError
from search.strategies import STRATEGIES
from search.votes import Flags, Floats, Integers

QUINTILES = 5
# What a probe tells; each is between 0 and 1.
FEATURES = ("agreement", "entropy", "unanswered", "prm_mean", "prm_spread")
SAMPLE_COLUMNS = ("subtree", "answer_class", "verdict", "rewards")


class Difficulty(StrEnum):
    """The three bins, easiest first."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Pass@1 from `easy` on is easy, from `hard` on medium, and below that hard."""

    easy: float = 0.5
    hard: float = 0.1

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not 0.0 < self.hard < self.easy <= 1.0:
            raise RecipeError(
                f"thresholds easy={self.easy:g}, hard={self.hard:g}: choose 0 < hard < easy <= 1"
            )

    def bin_of(self, pass_at_1: float) -> Difficulty:
        """The bin of one problem."""
        if pass_at_1 >= self.easy:
            return Difficulty.EASY
        return Difficulty.MEDIUM if pass_at_1 >= self.hard else Difficulty.HARD

    def bins_of(self, pass_at_1: Floats) -> Flags:
        """(bins, P): which bin each of P problems is in."""
        easy, hard = pass_at_1 >= self.easy, pass_at_1 < self.hard
        return np.stack([easy, ~easy & ~hard, hard])


def quintiles(pass_at_1: Floats) -> Integers:
    """(P,): 1 for the easiest fifth of the problems to 5 for the hardest.

    Equal values are in the same quintile, the easiest that any of them reaches, so with many
    ties quintiles are not of equal size, and some are empty.
    """
    edges = np.quantile(pass_at_1, np.arange(1, QUINTILES) / QUINTILES)
    return QUINTILES - np.searchsorted(edges, pass_at_1, side="right").astype(np.int64)


def samples_independently(strategy: str) -> bool:
    """Whether a strategy's solutions are independent samples of the policy.

    Those of `majority` and `best_of_n` are. Those of `dvts` and `beam` are chosen by the PRM
    step by step and share their first steps, so they say nothing unbiased about pass@1; nor
    do the first steps of their trees, which hold no answers.
    """
    kind = STRATEGIES[strategy]
    return kind.splits and not kind.branches


@dataclass(frozen=True, slots=True)
class Samples:
    """S independent samples of one problem, in the order of their numbers.

    answer_class (S,): negative for an empty answer; correct (S,); score (S,): the reward of the
    last scored step, 0 without one.
    """

    answer_class: Integers
    correct: Flags
    score: Floats

    def __len__(self) -> int:
        return len(self.answer_class)


def samples_of(solutions: pa.Table) -> Samples:
    """The samples of one search over one problem, from graded rows of `SOLUTIONS`."""
    rows = solutions.select(SAMPLE_COLUMNS).sort_by("subtree")
    last = [rewards[-1] if rewards else 0.0 for rewards in rows["rewards"].to_pylist()]
    return Samples(
        rows["answer_class"].to_numpy().astype(np.int64),
        pc.equal(rows["verdict"], "correct").to_numpy(zero_copy_only=False).astype(bool),
        np.array(last, dtype=np.float64),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """How many of a problem's independent samples were right."""

    correct: int
    samples: int

    @property
    def pass_at_1(self) -> float:
        """The share that was right."""
        return self.correct / self.samples


def measured(solutions: pa.Table) -> dict[tuple[str, str], Measured]:
    """By (policy, problem id): pass@1 as counted from the rows that sample independently.

    solutions: graded rows of `SOLUTIONS` of one run, at least `policy`, `strategy`, `n`,
    `problem_id` and `verdict`. Of several N of a strategy only the largest counts, for the
    smaller ones hold the same samples. Problems without such rows are not in the result.
    """
    columns = ["policy", "problem_id", "strategy", "n"]
    if "variant" in solutions.column_names:
        # Those of compute-optimal searches are the samples of best_of_n once more.
        solutions = without_routed(solutions)
    rows = solutions.select([*columns, "verdict"])
    right = pc.cast(pc.equal(rows["verdict"], "correct"), pa.int64())
    counted = rows.append_column("right", right).group_by(columns)
    widest: dict[tuple[str, str, str], tuple[int, Measured]] = {}
    for row in counted.aggregate([("right", "sum"), ("right", "count")]).to_pylist():
        place = (row["policy"], row["problem_id"], row["strategy"])
        if samples_independently(row["strategy"]) and row["n"] > widest.get(place, (0,))[0]:
            widest[place] = row["n"], Measured(row["right_sum"], row["right_count"])
    return _pooled(widest)


def _pooled(
    found: dict[tuple[str, str, str], tuple[int, Measured]],
) -> dict[tuple[str, str], Measured]:
    """`majority` and `best_of_n` draw from different seeds, so their samples add up."""
    together: defaultdict[tuple[str, str], list[Measured]] = defaultdict(list)
    for (policy, problem_id, _), (_, counts) in found.items():
        together[policy, problem_id].append(counts)
    return {
        place: Measured(sum(c.correct for c in parts), sum(c.samples for c in parts))
        for place, parts in together.items()
    }


def probe_features(answer_class: Integers, score: Floats) -> Floats:
    """(FEATURES,): what k samples of one problem tell about it without their verdicts.

    agreement: samples in the largest class over k; entropy: of the classes, over log k, where a
    sample without an answer is a class of its own, as it agrees with no other; unanswered: share
    without an answer; prm_mean and prm_spread: mean and standard deviation of the final scores.
    """
    k, voting = len(answer_class), answer_class >= 0
    _, sizes = np.unique(answer_class[voting], return_counts=True)
    shares = np.concatenate([sizes, np.ones(k - voting.sum())]) / k
    entropy = -(shares * np.log(shares)).sum() / np.log(k) if k > 1 else 0.0
    agreement = sizes.max(initial=0) / k
    tells = (agreement, entropy, 1.0 - voting.mean(), score.mean(), score.std())
    return np.clip(np.array(tells, dtype=np.float64), 0.0, 1.0)
