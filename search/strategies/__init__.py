"""The registry: one line a strategy. Nothing else in Branchwise knows them by name."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from search.growth import Growth
from search.strategies.beam import beam
from search.strategies.best_of_n import best_of_n
from search.strategies.dvts import dvts
from search.strategies.majority import majority


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a strategy grows, whether it needs a PRM, and how its work may be split.

    `grow` fills `growth.tree` with the given subtrees. `branches`: M > 1 candidates a node.
    `splits`: subtrees are independent, so any range of them is a work unit, and any subset of
    them is a valid smaller run.
    """

    grow: Callable[[Growth, range], Coroutine[Any, Any, None]]
    summary: str
    uses_prm: bool
    branches: bool
    splits: bool

    @property
    def samples(self) -> bool:
        """Whether its solutions are independent samples of the policy."""
        return self.splits and not self.branches


STRATEGIES = {
    "majority": Strategy(majority, "N samples, most frequent answer; no PRM", False, False, True),
    "best_of_n": Strategy(best_of_n, "N samples, every step scored", True, False, True),
    "beam": Strategy(beam, "keep the N/M best steps of the whole tree", True, True, False),
    "dvts": Strategy(dvts, "N/M subtrees, each keeps its best step", True, True, True),
}


def keep_count(strategy: str, n: int, branching: int) -> int:
    """How many nodes a strategy keeps at a step: N samples, N/M beams, or 1 in each subtree."""
    kind = STRATEGIES[strategy]
    if not kind.branches:
        return n
    return 1 if kind.splits else n // branching


def subtree_count(strategy: str, n: int, branching: int) -> int:
    """Independent parts of a search: one a sample, one for each group of M, or one in all."""
    kind = STRATEGIES[strategy]
    if not kind.splits:
        return 1
    return n // branching if kind.branches else n
