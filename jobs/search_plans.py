"""What a search runs of a problem: all of its units at once, or one part after the other.

A plan is a `jobs.dispatch.SearchPlan`. Invariant: which units are run follows from the recipe and
from the problem's own solutions, never from what other problems do at the same time.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, TypeAlias

import numpy as np
import pyarrow as pa

from jobs.dispatch import Run
from jobs.saved_budget import SavedBudget, SharedBudget
from jobs.stopping import Stopping
from search.config import SearchConfig
from search.partition import WorkUnit, partition, partition_range
from search.problem import Problem
from search.rewards import reduce_rewards
from search.seeds import derive_seed
from search.strategies import subtree_count

# Fills in the answer classes of solutions of one problem.
Judge: TypeAlias = "Callable[[Problem, pa.Table], Awaitable[pa.Table]]"
_DRAWS = 1 << 32


@dataclass(frozen=True, slots=True)
class WholeSearch:
    """All units at once."""

    config: SearchConfig
    solutions_per_unit: int
    is_whole: ClassVar[bool] = True

    def first_units(self, problem: Problem) -> list[WorkUnit]:
        """See `SearchPlan`."""
        return list(partition(problem, self.config, self.solutions_per_unit))

    async def finish(self, problem: Problem, found: pa.Table, run: Run) -> pa.Table:
        """See `SearchPlan`."""
        return found


@dataclass(frozen=True, slots=True)
class Stop:
    """What one problem's search did under a stopping rule.

    decided_at: solutions after which the rule held, None if it never did; solutions: those that
    were run, in units that failed too; audited: run to the end to see what stopping would have
    changed.
    """

    problem_id: str
    decided_at: int | None
    solutions: int
    audited: bool


@dataclass(slots=True)
class StoppingSearch:
    """One part after the other until a rule holds; what is saved goes to undecided problems.

    audit: the share of problems, drawn by seed, that run to the end all the same. most_extra:
    solutions that an undecided problem may have beyond N, from what others saved.
    """

    config: SearchConfig
    solutions_per_unit: int
    stopping: Stopping
    audit: float
    most_extra: int
    judge: Judge
    is_whole: ClassVar[bool] = False
    stops: list[Stop] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _saved: SavedBudget = field(init=False)

    def __post_init__(self) -> None:
        self._saved = SavedBudget(self._group)

    @property
    def _group(self) -> int:
        """Solutions of a subtree."""
        config = self.config
        return config.n // subtree_count(config.strategy, config.n, config.branching)

    def first_units(self, problem: Problem) -> list[WorkUnit]:
        """See `SearchPlan`."""
        self._places.setdefault(problem.problem_id, len(self._places))
        return self._units(problem, range(self._looks[0]))

    async def finish(self, problem: Problem, found: pa.Table, run: Run) -> pa.Table:
        """See `SearchPlan`."""
        place, audited = self._places[problem.problem_id], self._is_audited(problem)
        found, decided_at = await self.judge(problem, found), None
        # Counted as asked for: a unit that failed brought nothing, but saved nothing either.
        solutions = self._looks[0] * self._group
        for before, groups in pairwise(self._looks):
            if decided_at is None and self._has_settled(found):
                decided_at = solutions
            if decided_at is not None and not audited:
                break
            found = await self._longer(problem, found, range(before, groups), run)
            solutions = groups * self._group
        self.stops.append(Stop(problem.problem_id, decided_at, solutions, audited))
        if decided_at is None:
            return await self._with_extra(problem, place, found, run)
        self._saved.save(place, self.config.n - solutions)
        return found

    def place(self, problem_id: str) -> int:
        """Where a problem stands among all that were begun."""
        return self._places[problem_id]

    @property
    def _looks(self) -> list[int]:
        return list(self.stopping.looks(self.config.n, self._group))

    async def _with_extra(
        self, problem: Problem, place: int, found: pa.Table, run: Run
    ) -> pa.Table:
        """Goes on beyond N for as long as others have saved enough and nothing has settled."""
        groups, each = self.config.n // self._group, max(1, self.stopping.every // self._group)
        left = await self._saved.grant(place, self.most_extra) // self._group
        while left and not self._has_settled(found):
            more = min(left, each)
            found = await self._longer(problem, found, range(groups, groups + more), run)
            groups, left = groups + more, left - more
        return found

    async def _longer(
        self, problem: Problem, found: pa.Table, subtrees: range, run: Run
    ) -> pa.Table:
        more = await run(self._units(problem, subtrees))
        return await self.judge(problem, pa.concat_tables([found, more]))

    def _has_settled(self, found: pa.Table) -> bool:
        scores = [
            reduce_rewards(each, self.config.reduction) for each in found["rewards"].to_pylist()
        ]
        classes = found["answer_class"].to_numpy().astype(np.int64)
        return self.stopping.holds(classes, np.array(scores, np.float64))

    def _is_audited(self, problem: Problem) -> bool:
        draw = derive_seed(self.config.run_seed, problem.problem_id, "audit")
        return draw % _DRAWS < self.audit * _DRAWS

    def _units(self, problem: Problem, subtrees: range) -> list[WorkUnit]:
        return list(partition_range(problem, self.config, self.solutions_per_unit, subtrees))


@dataclass(slots=True)
class WeightedSearch:
    """A probe of every problem, then the rest of the budget by each problem's weight.

    probe: groups that every problem begins with. problems: how many there are; all of them have
    N solutions on average. weight: of a problem, from its judged probe.
    """

    config: SearchConfig
    solutions_per_unit: int
    probe: int
    problems: int
    judge: Judge
    weight: Callable[[pa.Table], float]
    is_whole: ClassVar[bool] = False
    _places: dict[str, int] = field(default_factory=dict)
    _budget: SharedBudget = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        groups = subtree_count(config.strategy, config.n, config.branching) - self.probe
        self._budget = SharedBudget(groups * self.problems, self.problems)

    def first_units(self, problem: Problem) -> list[WorkUnit]:
        """See `SearchPlan`."""
        self._places.setdefault(problem.problem_id, len(self._places))
        return self._units(problem, range(self.probe))

    async def finish(self, problem: Problem, found: pa.Table, run: Run) -> pa.Table:
        """See `SearchPlan`."""
        weight = self.weight(await self.judge(problem, found))
        groups = await self._budget.share(self._places[problem.problem_id], weight)
        more = await run(self._units(problem, range(self.probe, self.probe + groups)))
        return pa.concat_tables([found, more])

    def _units(self, problem: Problem, subtrees: range) -> list[WorkUnit]:
        return list(partition_range(problem, self.config, self.solutions_per_unit, subtrees))
