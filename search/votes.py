"""Votes: how the scored solutions of one problem become one answer.

Invariants: a solution without an answer has no vote; the result depends on no order, because
ties are split evenly and count with their expected correctness.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from search.rows import NO_CLASS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Equal sums added up in another order differ in their last bits.
_TIE = 1e-12


class Vote(StrEnum):
    """`majority`: most frequent; `max`: best score; `weighted`: largest sum of scores.

    Papers call the last two PRM-Max and PRM-Vote.
    """

    MAJORITY = "majority"
    MAX = "max"
    WEIGHTED = "weighted"


@dataclass(frozen=True, slots=True)
class Ballots:
    """The S solutions of one problem.

    group (S,): what was drawn together (a sample, or a subtree with its M candidates);
    answer_class (S,): answers that mean the same, negative for an empty answer; correct (S,):
    the same for all solutions of a class.
    """

    group: Integers
    answer_class: Integers
    correct: Flags

    @property
    def voting(self) -> Flags:
        """(S,): which solutions have an answer."""
        return self.answer_class >= 0

    def part(self, seen: Flags) -> "Ballots":
        """Some of the solutions, (S,) flags."""
        return Ballots(self.group[seen], self.answer_class[seen], self.correct[seen])


@dataclass(frozen=True, slots=True)
class Decision:
    """The winning class, and the probability that the answer is correct.

    With ties they may disagree: of tied classes the one named is the first to appear.
    `NO_CLASS` if nothing voted.
    """

    answer_class: int
    expected_correct: float


def decide(ballots: Ballots, score: Floats, vote: Vote) -> Decision:
    """The outcome of one vote; `score` (S,) is not looked at by `majority`.

    Tied classes share a `majority` or `weighted` vote evenly. A tie for `max` is won by the
    first solution in an order of groups, and of candidates in a group, that is random: each
    tied group gets the same share, and each tied solution the same part of its group's.
    """
    voting = ballots.voting
    if not voting.any():
        return Decision(NO_CLASS, 0.0)
    if vote is Vote.MAX:
        return _best_solution(ballots, np.where(voting, score, -np.inf))
    weight = score if vote is Vote.WEIGHTED else np.ones(len(score))
    return _heaviest_class(ballots.answer_class[voting], ballots.correct[voting], weight[voting])


def _best_solution(ballots: Ballots, score: Floats) -> Decision:
    best = score == score.max()
    _, group = np.unique(ballots.group[best], return_inverse=True)
    correct = ballots.correct[best]
    share = np.bincount(group, correct) / np.bincount(group)
    return Decision(int(ballots.answer_class[best][0]), float(share.mean()))


def _heaviest_class(answer_class: Integers, correct: Flags, weight: Floats) -> Decision:
    classes, first, place = np.unique(answer_class, return_index=True, return_inverse=True)
    sums = np.bincount(place, weight).astype(np.float64)
    tied = heaviest(sums, np.ones(len(classes), dtype=bool))
    winner = classes[tied][np.argmin(first[tied])]
    return Decision(int(winner), float(correct[first][tied].mean()))


def heaviest(totals: Floats, present: Flags) -> Flags:
    """(..., C) sums of weights: the classes with the largest sum among those present."""
    standing = np.where(present, totals, -np.inf)
    top = standing.max(axis=-1, keepdims=True, initial=0.0)
    return np.asarray(present & (standing >= top * (1.0 - _TIE)))
