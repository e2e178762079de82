"""Splitting a problem's search into work units.

A work unit is what one Ray task runs, what is retried and what is committed. Invariant: every
subtree of the search is in exactly one unit, and how many units there are changes no result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from search.config import SearchConfig
from search.growth import Growth
from search.problem import Problem
from search.protocols import PRM, Policy
from search.strategies import STRATEGIES, subtree_count


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """A range of subtrees [first, stop) of one search over one problem."""

    unit_id: str
    problem: Problem
    config: SearchConfig
    first: int
    stop: int

    @property
    def solutions(self) -> int:
        """How many solutions the unit is asked for."""
        total = subtree_count(self.config.strategy, self.config.n, self.config.branching)
        return (self.stop - self.first) * self.config.n // total


def partition(
    problem: Problem, config: SearchConfig, solutions_per_unit: int
) -> Iterator[WorkUnit]:
    """Units of about `solutions_per_unit` solutions, in order.

    A unit holds whole subtrees, at least one; a strategy that does not split is one unit.
    """
    total = subtree_count(config.strategy, config.n, config.branching)
    yield from partition_range(problem, config, solutions_per_unit, range(total))


def partition_range(
    problem: Problem, config: SearchConfig, solutions_per_unit: int, subtrees: range
) -> Iterator[WorkUnit]:
    """Units of these subtrees alone, which may lie beyond those that N asks for."""
    total = subtree_count(config.strategy, config.n, config.branching)
    size = max(1, solutions_per_unit * total // config.n)
    for first in range(subtrees.start, subtrees.stop, size):
        stop = min(first + size, subtrees.stop)
        yield WorkUnit(unit_id(problem, config, first, stop), problem, config, first, stop)


def unit_id(problem: Problem, config: SearchConfig, first: int, stop: int) -> str:
    """A name that is the same in every run of the same recipe."""
    search = f"{config.strategy}-{config.n}x{config.branching} {config.variant}".rstrip()
    return f"{problem.problem_id}/{search}/{first}-{stop}"


def search_and_subtrees(name: str) -> tuple[str, range]:
    """What a unit's name says: its search over a problem, and its part of it."""
    search, part = name.rsplit("/", 1)
    first, stop = map(int, part.split("-"))
    return search, range(first, stop)


async def run_unit(unit: WorkUnit, policy: Policy, prm: PRM | None, slots: int = 0) -> Growth:
    """Grows a unit's part of the tree and returns it with what it cost.

    `slots` > 0 lets a strategy that can speculate write up to so many sequences at once, the
    needed ones among them; the tree is the same.
    """
    strategy, scorer = STRATEGIES[unit.config.strategy], prm
    growth = Growth(
        unit.problem, policy, scorer if strategy.uses_prm else None, unit.config, slots=slots
    )
    grow = strategy.rule(unit.config.compat)
    await grow(growth, range(unit.first, unit.stop))
    return growth
