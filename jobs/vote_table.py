"""The shape of a vote table: a row for each vote and reduction, a column a search at an N."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search.rewards import Reduction
from search.votes import Vote

MAJORITY, COVERAGE = "Majority", "Pass@N"
_REDUCTIONS = {
    Reduction.MIN: "Min",
    Reduction.LAST: "Last",
    Reduction.MEAN: "Avg",
    Reduction.PROD: "Prod",
}
_VOTES = {Vote.MAX: "Max", Vote.WEIGHTED: "Vote"}
# The paper's order (arXiv 2502.06703, table 2), with `prod` and the ceiling after it.
SCORED_ROWS = {
    f"PRM-{scoring}-{voting}": (reduction, vote)
    for reduction, scoring in _REDUCTIONS.items()
    for vote, voting in _VOTES.items()
}
ROWS = (MAJORITY, *SCORED_ROWS, COVERAGE)


@dataclass(frozen=True, slots=True)
class Cell:
    """Accuracy in [0, 1] over so many problems, and its 95 % interval (None for one problem)."""

    accuracy: float
    low: float | None
    high: float | None
    problems: int


@dataclass(frozen=True, slots=True)
class Column:
    """The votes of one search at one N; `cells` by the names of `ROWS`, not all need be there."""

    run: str
    prm: str
    policy: str
    strategy: str
    branching: int
    n: int
    cells: dict[str, Cell]

    @property
    def line(self) -> tuple[str, str, str, int]:
        """What the columns of one search at several N have in common."""
        return self.run, self.policy, self.strategy, self.branching


def at_full_n(columns: Iterable[Column]) -> list[Column]:
    """Of each search the column with the largest N."""
    widest: dict[tuple[str, str, str, int], Column] = {}
    for column in columns:
        if column.line not in widest or column.n > widest[column.line].n:
            widest[column.line] = column
    return list(widest.values())


def shown_rows(columns: Sequence[Column]) -> list[str]:
    """The rows that any column has."""
    return [row for row in ROWS if any(row in column.cells for column in columns)]
