"""Dispatch and commits: solutions wait for their own problem only, and nothing is left behind."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from cluster.unit_tables import UnitTables
from jobs.commit_log import CommitLog
from jobs.commits import Commits
from jobs.dispatch import Dispatch
from jobs.grading import Graders
from jobs.progress import ProgressDisplay
from jobs.recall import PolicyRecall, Recall
from jobs.run_tables import last_rows
from jobs.run_writer import RunWriter
from jobs.search_plans import WholeSearch
from jobs.storage import storage_at
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


def committed(folder: Path, arriving: list[UnitTables]) -> tuple[list[str], pa.Table]:
    """What progress said after each unit, and the solutions."""
    facts: list[str] = []
    problems = list({done.unit.problem.problem_id: done.unit.problem for done in arriving}.values())

    async def run(progress: ProgressDisplay) -> None:
        log = CommitLog(storage_at(folder))
        async with (
            Graders(1, 60.0) as graders,
            RunWriter(log) as writer,
            asyncio.TaskGroup() as tasks,
        ):
            commits = Commits(writer, graders, 2)
            committed: asyncio.Queue[None] = asyncio.Queue()

            async def commit(problem: Problem, solutions: pa.Table) -> None:
                progress.finish_problem(await commits.commit(problem, solutions))
                committed.put_nowait(None)

            plans = [WholeSearch(CONFIG, CONFIG.n // UNITS_A_PROBLEM)]
            recall = PolicyRecall(Recall(log), POLICY)
            skip = progress.skip_problem
            dispatch = Dispatch(problems, plans, writer, commit, tasks, recall, skip)
            while dispatch.backlog.take(1):
                pass
            came_back: Counter[str] = Counter()
            for done in arriving:
                progress.add_unit(done.units, len(arriving))
                dispatch.deliver(done)
                came_back[done.unit.problem.problem_id] += 1
                if came_back[done.unit.problem.problem_id] == UNITS_A_PROBLEM:
                    await committed.get()
                facts.append(progress.facts().partition(",")[0])
            assert dispatch.backlog.is_over

    display = ProgressDisplay(POLICY, 3, len(arriving), Console(quiet=True))
    with display as shown:
        asyncio.run(run(shown))
    return facts, pa.concat_tables(last_rows(CommitLog(storage_at(folder)), "solutions"))


def test_a_problem_is_graded_when_its_last_unit_is_back(tmp_path: Path) -> None:
    (a, b), (c, d), (e, f) = units("p"), units("q"), units("r")
    arriving = [searched(a), searched(c), searched(b), failed(d), failed(e), failed(f)]
    facts, solutions = committed(tmp_path, arriving)
    done = ["0", "0", "1", "2", "2", "3"]
    assert facts == [f"{number}/3 problems" for number in done]
    assert solutions["problem_id"].to_pylist() == ["p"] * 16 + ["q"] * 8
    assert solutions["verdict"].null_count == 0


def test_the_order_of_units_changes_no_row(tmp_path: Path) -> None:
    arriving = [searched(unit) for name in "pq" for unit in units(name)]
    _, one = committed(tmp_path / "one", arriving)
    _, other = committed(tmp_path / "other", [arriving[place] for place in (1, 0, 3, 2)])
    assert one.equals(other)
