"""All votes with all reductions, as papers print them: the columns of run folders.

Invariant: everything is read from the tables; nothing is searched or graded again.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.compat_columns import compat_columns
from jobs.curves import NO_REDUCTION, PASS, Point, summary
from jobs.results import load_record, load_table
from jobs.storage import Storage, Where, folder_to_read
from jobs.vote_table import COVERAGE, MAJORITY, SCORED_ROWS, Cell, Column
from search.compat_votes import VoteRule
from search.config import COMPUTE_OPTIMAL
from search.errors import StorageError
from search.strategies import STRATEGIES

_NAMES = {(str(reduction), str(vote)): name for name, (reduction, vote) in SCORED_ROWS.items()}


def vote_columns(run_folder: Where, rule: VoteRule | None) -> list[Column]:
    """A run's columns at every N, in the order of its tables; raises StorageError.

    rule: None for the votes of `search.votes`, at N below the full one expectations over
    sub-samples; a published system's else, at those N where it would give an answer.
    """
    folder = folder_to_read(run_folder)
    record = load_record(folder)
    answers = load_table(folder, "answers")
    answers = answers.filter(pc.not_equal(answers["strategy"], COMPUTE_OPTIMAL))
    _check_rewards(folder, answers)
    run, prm = str(record.get("run_id", folder.name)), _prm_name(record)
    if rule is not None:
        return compat_columns(folder, rule, run, prm)
    return _equivalence_columns(answers, run, prm)


def _check_rewards(folder: Storage, answers: pa.Table) -> None:
    strategies = pc.unique(answers["strategy"]).to_pylist()
    if not strategies:
        raise StorageError(f"{folder} has no solutions to vote on: its report says what failed")
    if not any(STRATEGIES[name].uses_prm for name in strategies):
        raise StorageError(
            f"{folder} has no PRM rewards, so there is one vote only: "
            "give a run with a strategy that uses the PRM, such as best_of_n"
        )


def _prm_name(record: dict[str, Any]) -> str:
    prm = (record.get("recipe") or {}).get("prm") or {}
    return Path(str(prm.get("model") or "")).name


def _equivalence_columns(answers: pa.Table, run: str, prm: str) -> list[Column]:
    problems, columns = _problem_counts(answers), dict[tuple[str, ...], Column]()
    for point in summary(answers):
        place = (point.policy, point.rule, str(point.branching), str(point.n))
        column = Column(run, prm, point.policy, point.rule, point.branching, point.n, {})
        cells = columns.setdefault(place, column).cells
        count = problems[_counted(point)]
        cell = Cell(point.expected_correct, point.ci_low, point.ci_high, count)
        cells.setdefault(_row_name(point), cell)
    return list(columns.values())


def _row_name(point: Point) -> str:
    if point.vote == PASS:
        return COVERAGE
    return _NAMES.get((point.reduction, point.vote), MAJORITY)


_COUNTED = ("policy", "strategy", "variant", "branching", "searched_n", "n")


def _counted(point: Point) -> tuple[Any, ...]:
    return tuple(getattr(point, name) for name in _COUNTED)


def _problem_counts(answers: pa.Table) -> dict[tuple[Any, ...], int]:
    """Problems behind each point; coverage has one row for each of them."""
    rows = answers.filter(pc.is_valid(answers["problem_id"]))
    rows = rows.filter(
        pc.and_(pc.equal(rows["vote"], PASS), pc.equal(rows["reduction"], NO_REDUCTION))
    )
    counts = rows.group_by(list(_COUNTED)).aggregate([("problem_id", "count")]).to_pylist()
    return {tuple(row[name] for name in _COUNTED): row["problem_id_count"] for row in counts}
