"""What a beam will probably need next: the rule of speculation, free of any time.

A beam step ends with its slowest candidate, and most candidates are known long before. This
module says which children are needed for certain and which with what chance, given what is
written so far; `search.drafts` writes them. Invariant: a child with the chance 1 is needed by
the search whatever is still to come, and no such child is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from search.tree import ROOT

# Less likely ones are not looked at: what is being written of them is given up.
STOP_CHANCE = 0.1
CERTAIN = 1.0
ALMOST_CERTAIN = 1.0 - 1e-9

# A node and the number of its child.
Place: TypeAlias = tuple[int, int]


class Candidate(NamedTuple):
    """A scored step, and the chance that the search keeps it."""

    node: int
    score: float
    ended: bool
    chance: float = CERTAIN


class Wish(NamedTuple):
    """A child that the search needs with this chance, and in which round from now."""

    place: Place
    chance: float
    rounds_ahead: int


@dataclass(frozen=True, slots=True)
class Widths:
    """Children of the root and of every other node, and nodes kept at a step."""

    first: int
    branching: int
    keep: int

    def children(self, node: int) -> int:
        """How many children a node gets."""
        return self.first if node == ROOT else self.branching


def wishes(
    kept: Sequence[Candidate], written: Mapping[Place, Candidate], widths: Widths
) -> Iterator[Wish]:
    """All children that are, or may be, needed after `kept`, round by round, best parent first.

    `kept` is what the search kept for certain; what it will keep in the rounds after is guessed.
    """
    rounds_ahead = 0
    while any(not each.ended for each in kept):
        places = list(_places(kept, widths))
        for place, chance in places:
            if place not in written:
                yield Wish(place, chance, rounds_ahead)
        standing = [each for each in kept if each.ended]
        standing += [
            _with_chance(written[place], chance) for place, chance in places if place in written
        ]
        total = _round_size(kept, widths)
        # Beyond the next round the number of rivals is itself a guess, and nothing is certain.
        most = ALMOST_CERTAIN if rounds_ahead else CERTAIN
        kept = _likely(standing, total, widths.keep, most)
        rounds_ahead += 1


def _places(kept: Sequence[Candidate], widths: Widths) -> Iterator[tuple[Place, float]]:
    for parent in kept:
        if not parent.ended:
            for number in range(widths.children(parent.node)):
                yield (parent.node, number), parent.chance


def _with_chance(found: Candidate, chance: float) -> Candidate:
    if chance == found.chance:  # most are: this runs for every candidate at every change
        return found
    return Candidate(found.node, found.score, found.ended, chance)


def _round_size(kept: Sequence[Candidate], widths: Widths) -> int:
    """Candidates of the round after `kept`; who is not known to be kept will have M children."""
    if len(kept) == 1 and kept[0].node == ROOT:
        return widths.first
    ended = sum(each.chance for each in kept if each.ended)
    return round(ended + (widths.keep - ended) * widths.branching)


def _likely(standing: Sequence[Candidate], total: int, keep: int, most: float) -> list[Candidate]:
    """Who of a round may be kept, best first, each with its chance."""
    ranked = sorted(standing, key=lambda each: each.score, reverse=True)
    known = sum(each.chance for each in ranked)
    chance_of_rank = chances(round(known), max(0, total - round(known)), keep)
    likely, better = [], 0.0
    for each in ranked:
        rank = int(better)
        chance = each.chance * (chance_of_rank[rank] if rank < len(chance_of_rank) else 0.0)
        if chance < STOP_CHANCE:
            break
        likely.append(_with_chance(each, min(chance, most)))
        better += each.chance
    return likely


@lru_cache(1 << 16)
def chances(known: int, missing: int, keep: int) -> tuple[float, ...]:
    """For each of the known candidates, best first, the chance to be among the `keep` best of all.

    If scores do not tell how long a step takes, the known ones are a random part of all: the
    r-th best of them is kept if at least r of the `keep` best of all are known, and how many of
    those are known has a hypergeometric distribution. Exactly 1 and 0 where nothing is open.
    """
    fewest, most = max(0, keep - missing), min(keep, known)
    import numpy as np  # not with the command line, which knows strategies too

    counts = np.arange(fewest, most, dtype=np.float64)
    up = (known - counts) * (keep - counts)
    steps = np.log(up) - np.log((counts + 1) * (missing - keep + counts + 1))
    weights = np.concatenate([[0.0], np.cumsum(steps)])
    # Products of hundreds of factors leave the range of floats; their logarithms do not.
    weights = np.exp(weights - weights.max())
    at_least = np.cumsum(weights[::-1])[::-1] / weights.sum()
    certain = [CERTAIN] * min(fewest, known)
    likely = np.minimum(at_least[1:], ALMOST_CERTAIN).tolist()
    return tuple(certain + likely + [0.0] * (known - len(certain) - len(likely)))
