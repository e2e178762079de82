"""When the answer of a problem has settled, so that no more solutions are needed.

Solutions come in waves of whole groups (samples, or subtrees with their M candidates), and a
rule looks at the votes after each wave. Invariant: a decision depends on the problem's own
solutions in the order of their subtrees, so a full run replayed decides as a run that stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from search.votes import Floats, Integers, Vote


class StopRule(StrEnum):
    """`vote_margin`: the lead of the best class over the second, as a share of all votes.

    `posterior`: the probability that the best class stays ahead of the second when sampling
    goes on for ever, Beta(first + 1, second + 1) above one half (Adaptive-Consistency,
    arXiv 2305.11860, section 3).
    """

    VOTE_MARGIN = "vote_margin"
    POSTERIOR = "posterior"


@dataclass(frozen=True, slots=True)
class Stopping:
    """A rule, the value from which it holds, and when it is asked.

    at_least, every: solutions before the first look and between two. vote: MAJORITY counts
    solutions, WEIGHTED adds up their scores.
    """

    rule: StopRule
    threshold: float
    at_least: int
    every: int
    vote: Vote

    def holds(self, answer_class: Integers, score: Floats) -> bool:
        """Whether the answer has settled; (S,) classes, negative without an answer, and scores."""
        from scipy.special import betainc

        first, second, total = _leaders(answer_class, score, self.vote)
        if not first:
            return False
        if self.rule is StopRule.VOTE_MARGIN:
            return (first - second) / total >= self.threshold
        # P(p > 1/2) for p ~ Beta(first + 1, second + 1).
        return float(1.0 - betainc(first + 1.0, second + 1.0, 0.5)) >= self.threshold

    def looks(self, n: int, group: int) -> Iterator[int]:
        """After how many groups the rule is asked, the last being all: n solutions in groups."""
        groups, step = n // group, max(1, self.every // group)
        place = max(1, self.at_least // group)
        while place < groups:
            yield place
            place += step
        yield groups


def settled_after(
    stopping: Stopping, subtree: Integers, answer_class: Integers, score: Floats, n: int, group: int
) -> int | None:
    """After how many groups of a full run the rule would have held; None if it never did.

    Columns of the (S,) solutions of one problem, in any order.
    """
    for place in stopping.looks(n, group):
        seen = subtree < place
        if place * group < n and stopping.holds(answer_class[seen], score[seen]):
            return place
    return None


def _leaders(answer_class: Integers, score: Floats, vote: Vote) -> tuple[float, float, float]:
    """The votes for the best class and for the second, and all votes."""
    voting = answer_class >= 0
    weights = score[voting] if vote is Vote.WEIGHTED else np.ones(int(voting.sum()))
    _, place = np.unique(answer_class[voting], return_inverse=True)
    sums = np.sort(np.bincount(place, weights))[::-1]
    first, second = [*map(float, sums[:2]), 0.0, 0.0][:2]
    return first, second, float(sums.sum())
