"""What stopping early did in a run: solutions saved, and accuracy against not stopping.

Some problems run to the end although their answer had settled (`stop.audit`): on these the vote
at the stop is compared with the vote of all solutions. Invariant: everything is read off the
run's own tables.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from jobs.curves import (
    Search,
    ballots_of,
    scores_of,
    solutions_by_problem,
    vote_of,
)
from jobs.intervals import clustered_interval
from search.rewards import Reduction
from search.votes import Vote, decide


@dataclass(frozen=True, slots=True)
class StopReport:
    """One search with a stopping rule.

    saved: share of the solutions that N for every problem would have had, audited problems left
    out. audited: problems that had settled and ran on. difference, low, high: accuracy at the
    stop less accuracy with all solutions, with its 95 % interval; NaN if nothing was audited.
    """

    search: Search
    problems: int
    settled: int
    saved: float
    audited: int
    difference: float
    low: float
    high: float


def stop_reports(
    parts: Iterable[pa.Table], stops: pa.Table, reduction: Reduction, vote: Vote
) -> list[StopReport]:
    """One for each search of `STOPS`; parts: the graded solutions, as `answers_of_parts` takes."""
    rows: defaultdict[Search, dict[str, dict[str, object]]] = defaultdict(dict)
    for row in stops.to_pylist():
        rows[_search(row)][row["problem_id"]] = row
    changes: defaultdict[Search, list[float]] = defaultdict(list)
    for part in parts if rows else ():
        for search, problem_id, solutions in solutions_by_problem(part):
            row = rows[search].get(problem_id) if search in rows else None
            if row and row["audited"] and row["decided_at"] is not None:
                stop = int(str(row["decided_at"]))
                changes[search].append(_change(search, solutions, stop, reduction, vote))
    return [_report(search, list(rows[search].values()), changes[search]) for search in rows]


def _report(search: Search, rows: list[dict[str, object]], changes: list[float]) -> StopReport:
    spent = [int(str(row["solutions"])) for row in rows if not row["audited"]]
    mean, low, high = clustered_interval(np.array(changes, np.float64)[:, None])
    return StopReport(
        search=search,
        problems=len(rows),
        settled=sum(row["decided_at"] is not None for row in rows),
        saved=1.0 - sum(spent) / max(1, search.n * len(spent)),
        audited=len(changes),
        difference=float(mean[0]),
        low=float(low[0]),
        high=float(high[0]),
    )


def _change(
    search: Search, solutions: pa.Table, stop: int, reduction: Reduction, vote: Vote
) -> float:
    ballots, score = ballots_of(solutions), scores_of(solutions, reduction)
    seen, held = ballots.group < stop // search.group, vote_of(search, vote)
    stopped = decide(ballots.part(seen), score[seen], held).expected_correct
    return stopped - decide(ballots, score, held).expected_correct


def _search(row: dict[str, object]) -> Search:
    return Search(*(row[each.name] for each in fields(Search)))  # type: ignore[arg-type]
