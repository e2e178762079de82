"""Accuracy at every smaller N, read off one run: expectations over random subsets of its groups.

A group is a sample (`majority`, `best_of_n`) or a subtree with its M candidates (`dvts`); any k
groups of a run are a valid run of k groups. Each function takes K groups and gives, for each k
of `ks`, the expected correctness of a vote among k groups drawn without replacement. Invariant:
at k = K the result is that of the vote itself.
"""

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from search.votes import Ballots, Flags, Floats, Integers, heaviest

PERMUTATIONS = 200
EXACT_SUBSETS = 2000


def group_grid(groups: int) -> list[int]:
    """Powers of two below the number of groups, and that number: the k of a curve."""
    return [2**power for power in range((groups - 1).bit_length())] + [groups]


def expected_pass(ballots: Ballots, ks: list[int]) -> Floats:
    """(len(ks),): the probability that any of k groups holds a correct solution. Exact.

    The unbiased estimator 1 - C(K - c, k) / C(K, k) (Chen et al. 2021, arXiv 2107.03374,
    equation 1) with c groups out of K that hold one.
    """
    groups, group = _dense(ballots.group)
    holding = np.bincount(group, ballots.correct, groups) > 0
    return np.array([1.0 - _missed(groups, k)[holding.sum()] for k in ks])


def expected_max(ballots: Ballots, score: Floats, ks: list[int]) -> Floats:
    """(len(ks),): expected correctness of the best-scored solution of k groups. Exact.

    By order statistics: a group decides if it is drawn and none above it is. Groups with the
    same best score are tied and each is as likely to be first; within a group tied solutions
    share evenly (as in `search.votes.decide`). A group without an answer stands below all.
    """
    groups, group = _dense(ballots.group)
    standing = np.where(ballots.voting, score, -np.inf)
    best = np.full(groups, -np.inf)
    np.maximum.at(best, group, standing)
    tied = ballots.voting & (standing == best[group])
    right = np.bincount(group, tied & ballots.correct, groups)
    share = right / np.maximum(np.bincount(group, tied, groups), 1.0)
    ranked = _mean_of_ties(best, share.astype(np.float64))
    return np.array([-np.diff(_missed(groups, k)) @ ranked for k in ks])


def expected_sums(ballots: Ballots, weights: Floats, ks: list[int], seed: int) -> Floats:
    """(R, len(ks)): expected correctness of the class with the largest sum of weights.

    weights (R, S): ones for `majority`, scores for `weighted`. Exact, over all subsets, where
    there are at most `EXACT_SUBSETS` of them; else the mean over `PERMUTATIONS` random orders
    of the groups, the same for all weights and nested over k.
    """
    groups, group = _dense(ballots.group)
    booth = _Booth.of(ballots, weights, groups, group)
    orders = _random_orders(groups, seed) if _needs_orders(groups, ks) else None
    shares = [booth.shares(_subsets(groups, k, orders)) for k in ks]
    return np.stack(shares, axis=1)


class _Booth:
    """Ballots laid out by group: (K, W) classes and (R, K, W) weights, W the widest group.

    Places without a vote hold the class C, one past the last, which is dropped from sums.
    """

    __slots__ = ("_classes", "_right", "_weights")

    def __init__(self, classes: Integers, weights: Floats, right: Flags) -> None:
        self._classes, self._weights, self._right = classes, weights, right

    @classmethod
    def of(cls, ballots: Ballots, weights: Floats, groups: int, group: Integers) -> "_Booth":
        voting = ballots.voting
        known, first, place = np.unique(
            ballots.answer_class[voting], return_index=True, return_inverse=True
        )
        rows, columns = group[voting], _place_in_group(group[voting], groups)
        width = int(columns.max(initial=0)) + 1
        classes = np.full((groups, width), len(known))
        classes[rows, columns] = place
        laid = np.zeros((len(weights), groups, width))
        laid[:, rows, columns] = weights[:, voting]
        return cls(classes, laid, ballots.correct[voting][first])

    def shares(self, subsets: Integers) -> Floats:
        """(R,): expected correctness, averaged over subsets (T, k) of groups."""
        rows = np.arange(len(subsets))[:, None] * (len(self._right) + 1)
        cells = (self._classes[subsets].reshape(len(subsets), -1) + rows).ravel()
        present = self._sums(cells, len(subsets), None) > 0
        chosen = (laid[subsets].ravel() for laid in self._weights)
        return np.array([self._share(self._sums(cells, len(subsets), w), present) for w in chosen])

    def _sums(self, cells: Integers, subsets: int, weights: Floats | None) -> Floats:
        classes = len(self._right) + 1
        sums = np.bincount(cells, weights, minlength=subsets * classes)
        return sums.astype(np.float64).reshape(subsets, classes)[:, :-1]

    def _share(self, totals: Floats, present: Flags) -> float:
        tied = heaviest(totals, present)
        right = tied[:, self._right].sum(axis=1)
        return float((right / np.maximum(tied.sum(axis=1), 1)).mean())


def _dense(group: Integers) -> tuple[int, Integers]:
    """How many groups there are, and each solution's group as 0, 1, 2, ..."""
    known, place = np.unique(group, return_inverse=True)
    return len(known), place


def _missed(groups: int, k: int) -> Floats:
    """(K + 1,): the probability that k of K groups miss a given set of 0, 1, ..., K of them."""
    left = np.arange(groups, 0, -1)
    return np.concatenate([[1.0], np.cumprod(np.maximum(left - k, 0) / left)])


def _mean_of_ties(best: Floats, share: Floats) -> Floats:
    """(K,): shares from the best group down, where tied groups all have their mean."""
    order = np.argsort(-best, kind="stable")
    _, level = np.unique(-best[order], return_inverse=True)
    means = np.bincount(level, share[order]) / np.bincount(level)
    return np.asarray(means[level])


def _place_in_group(group: Integers, groups: int) -> Integers:
    """0, 1, 2, ... for the solutions of each group."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=groups)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.empty(len(group), dtype=np.int64)
    places[order] = np.arange(len(group)) - starts
    return places


def _needs_orders(groups: int, ks: list[int]) -> bool:
    return any(comb(groups, k) > EXACT_SUBSETS for k in ks)


def _random_orders(groups: int, seed: int) -> Integers:
    one = np.tile(np.arange(groups), (PERMUTATIONS, 1))
    return np.random.default_rng(seed).permuted(one, axis=1)


def _subsets(groups: int, k: int, orders: Integers | None) -> Integers:
    """(T, k): all subsets if they are few, else the first k of each random order."""
    if orders is None or comb(groups, k) <= EXACT_SUBSETS:
        return _all_subsets(groups, k)
    return orders[:, :k]


@lru_cache(maxsize=64)
def _all_subsets(groups: int, k: int) -> Integers:
    return np.array(list(combinations(range(groups), k)), dtype=np.int64)
