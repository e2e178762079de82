"""A run goes on with other units than it was begun with: nothing lost, nothing twice."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_resume import (
    POLICY,
    PROBLEMS,
    OneRun,
    document,
    tables,
    undisturbed,
    unit_tables,
    without_unit,
)

from cluster.unit_tables import UnitTables
from jobs.commit_log import CommitLog
from jobs.recall import PolicyRecall, Recall
from jobs.recipe import parse_recipe
from jobs.run_tables import last_rows
from jobs.standing import Standing
from jobs.storage import Storage, storage_at
from search.partition import WorkUnit, partition_range, search_and_subtrees

pytestmark = pytest.mark.unit
__all__ = ["undisturbed"]  # a fixture

SEARCHES = document()["searches"]


def in_units_of(solutions: int, **more: Any) -> dict[str, Any]:
    return document(work={"solutions_per_unit": solutions}, **more)


def commit(folder: Storage, found: UnitTables) -> None:
    """What a process leaves that is killed before it has graded."""
    rows = {"nodes": found.nodes, "found": found.solutions, "units": found.units}
    CommitLog(folder).commit(rows)


def units_of(place: int, subtrees: range, solutions: int = 8) -> list[WorkUnit]:
    """Units of the first search."""
    config = parse_recipe(document()).search_configs()[0]
    return list(partition_range(PROBLEMS[place], config, solutions, subtrees))


def check_each_subtree_once(folder: Storage) -> None:
    units = [search_and_subtrees(row["unit_id"]) for row in tables(folder)["units"]]
    subtrees = [(search, each) for search, part in units for each in part]
    assert len(subtrees) == len(set(subtrees)) == len(PROBLEMS) * (4 + 16)


def test_what_came_after_its_problem_was_graded_is_graded(tmp_path: Path, undisturbed: Any) -> None:
    folder = storage_at(tmp_path)
    OneRun(folder, parse_recipe(document(searches=SEARCHES[1:])), PROBLEMS).run()
    for unit in units_of(2, range(4)):
        commit(folder, unit_tables(unit))
    second = OneRun(folder, parse_recipe(document()), PROBLEMS)
    second.run()
    assert not [name for name in second.ran if name.startswith("p2/")]
    assert tables(folder) == undisturbed


def test_tables_half_replaced_by_those_of_a_larger_n(tmp_path: Path, undisturbed: Any) -> None:
    folder, units = storage_at(tmp_path), tmp_path / "units.parquet"
    first = OneRun(folder, parse_recipe(document(8)), PROBLEMS)
    first.run()
    first.log.delete()
    before = units.read_bytes()
    OneRun(folder, parse_recipe(document()), PROBLEMS).run()
    units.write_bytes(before)
    last = OneRun(folder, parse_recipe(document()), PROBLEMS)
    last.run()
    assert last.ran == []
    grown = tables(folder)
    for name in ("nodes", "solutions"):
        assert without_unit(grown[name]) == without_unit(undisturbed[name])


def test_searches_that_begin_alike_are_over_when_both_have_been_run(tmp_path: Path) -> None:
    both = [{"strategy": "best_of_n", "n": [8, 16]}]
    folder, recipe = storage_at(tmp_path), parse_recipe(document(searches=both))
    OneRun(folder, recipe, PROBLEMS).run()
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert second.skipped == [problem.problem_id for problem in PROBLEMS]


@pytest.mark.parametrize("kill_after", [None, 7])
@pytest.mark.parametrize(("before", "now"), [(8, 4), (16, 4), (4, 16), (8, 12)])
def test_units_may_be_cut_in_another_way(
    tmp_path: Path, undisturbed: Any, before: int, now: int, kill_after: int | None
) -> None:
    folder = storage_at(tmp_path)
    OneRun(folder, parse_recipe(in_units_of(before)), PROBLEMS).run(kill_after)
    second = OneRun(folder, parse_recipe(in_units_of(now)), PROBLEMS)
    second.run()
    check_each_subtree_once(folder)
    found = tables(folder)
    for name in ("nodes", "solutions"):
        assert without_unit(found[name]) == without_unit(undisturbed[name])
    if kill_after is None:
        assert second.ran == []


def test_of_units_that_overlap_the_later_one_stands(tmp_path: Path) -> None:
    folder = storage_at(tmp_path)
    early, late = units_of(0, range(4), 16), units_of(0, range(3), 16)
    other = units_of(1, range(4), 16)
    for unit in (*early, *other, *late):
        commit(folder, unit_tables(unit))
    log = CommitLog(folder)
    for name in ("nodes", "units"):
        found = pa.concat_tables(last_rows(log, name))["unit_id"].to_pylist()
        assert set(found) == {"p1/dvts-16x4/0-4", "p0/dvts-16x4/0-3"}
    recall = PolicyRecall(Recall(log), POLICY)
    held = [piece.held for piece in recall.pieces(units_of(0, range(4)))]
    assert [each.unit_id if each else None for each in held] == ["p0/dvts-16x4/0-3", None]


def test_only_units_of_one_search_and_policy_replace_each_other() -> None:
    standing = Standing()
    assert standing.add("a", "p/dvts-8x4/0-2") == []
    assert standing.add("b", "p/dvts-8x4/0-2") == []
    assert standing.add("a", "p/dvts-16x4/0-4") == []
    assert standing.add("a", "q/dvts-8x4/0-2") == []
    assert standing.add("a", "p/dvts-8x4/2-4") == []
    assert standing.add("a", "p/dvts-8x4/2-4") == []
    assert standing.add("a", "p/dvts-8x4/1-3") == ["p/dvts-8x4/0-2", "p/dvts-8x4/2-4"]
    assert standing.add("a", "p/dvts-8x4/0-2") == ["p/dvts-8x4/1-3"]
