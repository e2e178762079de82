"""What a stopping rule would have saved in a full run, and what it would have cost.

Invariant: each problem is replayed by itself, from its stored solutions alone, exactly as a run
with that rule would have gone (`jobs.stopping`).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from jobs.curves import (
    SOLUTION_COLUMNS,
    Search,
    ballots_of,
    scores_of,
    solutions_by_problem,
    vote_of,
)
from jobs.intervals import clustered_interval
from jobs.results import table_parts
from jobs.stopping import Stopping, settled_after
from jobs.storage import Where, folder_to_read
from search.errors import StorageError
from search.rewards import Reduction
from search.strategies import STRATEGIES
from search.votes import decide

_COLUMNS = (*SOLUTION_COLUMNS, "policy_tokens")


@dataclass(frozen=True, slots=True)
class Replayed:
    """One problem: expected correctness of its full and its stopped vote, and what was spent.

    decided_at: solutions after which the rule held, None if it never did. tokens: of the
    solutions' own paths.
    """

    full: float
    stopped: float
    decided_at: int | None
    solutions: int
    spent: int
    tokens: int
    tokens_spent: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A rule replayed on one search over all problems; intervals are 95 %, by problem."""

    search: Search
    stopping: Stopping
    problems: Sequence[Replayed]

    @property
    def tokens_saved(self) -> float:
        """Share of all tokens of solutions."""
        return 1.0 - sum(p.tokens_spent for p in self.problems) / self._all_tokens

    @property
    def solutions_saved(self) -> float:
        """Share of all solutions."""
        spent = sum(p.spent for p in self.problems)
        return 1.0 - spent / sum(p.solutions for p in self.problems)

    @property
    def full(self) -> float:
        """Accuracy without stopping."""
        return float(np.mean([p.full for p in self.problems]))

    def difference(self) -> tuple[float, float, float]:
        """Accuracy with stopping less that without, paired by problem, and its interval."""
        changes = np.array([[p.stopped - p.full] for p in self.problems])
        mean, low, high = (float(part[0]) for part in clustered_interval(changes))
        return mean, low, high

    @property
    def _all_tokens(self) -> int:
        return max(1, sum(p.tokens for p in self.problems))


def replays(folder: Where, stoppings: Sequence[Stopping], reduction: Reduction) -> Iterator[Replay]:
    """Every rule on every search of a run that splits; raises StorageError if there is none."""
    found: defaultdict[tuple[Search, Stopping], list[Replayed]] = defaultdict(list)
    for part in table_parts(folder, "solutions", _COLUMNS):
        for search, _, rows in solutions_by_problem(part):
            if STRATEGIES[search.strategy].splits:
                for stopping in stoppings:
                    found[search, stopping].append(replayed(search, rows, stopping, reduction))
    if not found:
        raise StorageError(
            f"{folder_to_read(folder)} has no search that can be stopped early: majority, "
            "best_of_n and dvts can"
        )
    for (search, stopping), problems in found.items():
        yield Replay(search, stopping, problems)


def replayed(search: Search, rows: pa.Table, stopping: Stopping, reduction: Reduction) -> Replayed:
    """One problem's solutions, in any order."""
    stopping = replace(stopping, vote=vote_of(search, stopping.vote))
    ballots, score = ballots_of(rows), scores_of(rows, reduction)
    columns = (ballots.group, ballots.answer_class, score)
    stop = settled_after(stopping, *columns, search.n, search.group)
    seen = ballots.group < stop if stop is not None else np.ones(len(score), dtype=bool)
    tokens = rows["policy_tokens"].to_numpy()
    return Replayed(
        full=decide(ballots, score, stopping.vote).expected_correct,
        stopped=decide(ballots.part(seen), score[seen], stopping.vote).expected_correct,
        decided_at=stop if stop is None else stop * search.group,
        solutions=len(score),
        spent=int(seen.sum()),
        tokens=int(tokens.sum()),
        tokens_spent=int(tokens[seen].sum()),
    )
