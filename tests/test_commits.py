"""Commits: solutions wait for their own problem only, and what is done leaves nothing behind."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from cluster.fanout import UnitTables
from jobs.commits import Commits
from jobs.grading import Graders
from jobs.progress import ProgressDisplay
from jobs.results import RunWriter, load_table, new_record
from search.config import Limits, SearchConfig
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.rewards import Reduction
from search.rows import node_table, search_columns, solution_table
from search.schemas import NODES, SOLUTIONS, UNITS
from search.scripted import SeededPolicy, SeededPRM

pytestmark = pytest.mark.unit

POLICY = "scripted"
CONFIG = SearchConfig("dvts", 16, 4, 1, Reduction.LAST, 1, Limits())
UNITS_A_PROBLEM = 2


def units(problem_id: str) -> list[WorkUnit]:
    problem = Problem(problem_id, "1 + 1?", "42")
    return list(partition(problem, CONFIG, CONFIG.n // UNITS_A_PROBLEM))


def unit_row(unit: WorkUnit, status: str) -> pa.Table:
    row: dict[str, Any] = search_columns(unit, POLICY) | {"status": status}
    return pa.Table.from_pylist([row], UNITS)


def searched(unit: WorkUnit) -> UnitTables:
    growth = asyncio.run(run_unit(unit, SeededPolicy(), SeededPRM()))
    nodes, solutions = node_table(unit, POLICY, growth.tree), solution_table(unit, POLICY, growth)
    return UnitTables(unit, nodes, solutions, unit_row(unit, "done"))


def failed(unit: WorkUnit) -> UnitTables:
    row = unit_row(unit, "error")
    return UnitTables(unit, NODES.empty_table(), SOLUTIONS.empty_table(), row)


def committed(folder: Path, arriving: list[UnitTables]) -> tuple[list[int], list[str], pa.Table]:
    """Rows graded by each commit, what progress said after it, and the solutions."""
    rows, facts = [], []

    async def commit_all(writer: RunWriter, progress: ProgressDisplay) -> None:
        async with Graders(1, 60.0) as graders:
            commits = Commits(writer, graders, UNITS_A_PROBLEM)
            for done in arriving:
                graded = await commits.take(done)
                progress.update(done.units, graded)
                rows.append(graded.num_rows)
                facts.append(progress.facts().partition(",")[0])

    display = ProgressDisplay(POLICY, 3, UNITS_A_PROBLEM, Console(quiet=True))
    with RunWriter(folder, new_record("test", {"seed": 1}, "digest")) as writer, display as shown:
        asyncio.run(commit_all(writer, shown))
    assert not display.tally.came_back
    return rows, facts, load_table(writer.folder, "solutions")


def test_a_problem_is_graded_when_its_last_unit_is_back(tmp_path: Path) -> None:
    (a, b), (c, d), (e, f) = units("p"), units("q"), units("r")
    arriving = [searched(a), searched(c), searched(b), failed(d), failed(e), failed(f)]
    rows, facts, solutions = committed(tmp_path, arriving)
    assert rows == [0, 0, 16, 8, 0, 0]
    done = ["0", "0", "1", "2", "2", "3"]
    assert facts == [f"{number}/3 problems" for number in done]
    assert solutions["problem_id"].to_pylist() == ["p"] * 16 + ["q"] * 8
    assert solutions["verdict"].null_count == 0
