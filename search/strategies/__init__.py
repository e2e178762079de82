"""The registry: one line a strategy. Nothing else in Branchwise knows them by name."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from search.config import Compat
from search.growth import Growth
from search.strategies import compute_optimal_tts, search_and_learn
from search.strategies.beam import beam
from search.strategies.best_of_n import best_of_n
from search.strategies.dvts import dvts
from search.strategies.majority import majority
from search.strategies.rebase import rebase

Grow: TypeAlias = Callable[[Growth, range], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a strategy grows, whether it needs a PRM, and how its work may be split.

    `grow` fills `growth.tree` with the given subtrees. `branches`: M > 1 candidates a node.
    `splits`: subtrees are independent, so any range of them is a work unit, and any subset of
    them is a valid smaller run. `published`: the rules of systems that have one of their own.
    """

    grow: Grow
    summary: str
    uses_prm: bool
    branches: bool
    splits: bool
    published: Mapping[Compat, Grow] = field(default_factory=dict)

    @property
    def samples(self) -> bool:
        """Whether its solutions are independent samples of the policy."""
        return self.splits and not self.branches

    def rule(self, compat: Compat | None) -> Grow:
        """The rule to grow by; raises KeyError for a system that has none."""
        return self.grow if compat is None else self.published[compat]


def _published(name: str) -> Mapping[Compat, Grow]:
    """A strategy's rule in each system, by the name of its function."""
    return {
        Compat.SEARCH_AND_LEARN: getattr(search_and_learn, name),
        Compat.COMPUTE_OPTIMAL_TTS: getattr(compute_optimal_tts, name),
    }


STRATEGIES = {
    "majority": Strategy(majority, "N samples, most frequent answer; no PRM", False, False, True),
    "best_of_n": Strategy(
        best_of_n, "N samples, every step scored", True, False, True, _published("best_of_n")
    ),
    "beam": Strategy(
        beam, "keep the N/M best steps of the whole tree", True, True, False, _published("beam")
    ),
    "dvts": Strategy(
        dvts, "N/M subtrees, each keeps its best step", True, True, True, _published("dvts")
    ),
    "rebase": Strategy(rebase, "N paths, width divided by softmax of scores", True, False, False),
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
