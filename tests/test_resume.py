"""Commits and what a later process makes of them: nothing lost, nothing twice, nothing again."""

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from cluster.unit_tables import UnitTables
from jobs.commit_log import CommitLog
from jobs.commits import Commits
from jobs.dispatch import Dispatch
from jobs.grading import Graders
from jobs.recall import PolicyRecall, Recall
from jobs.recipe import parse_recipe
from jobs.recipe_changes import changes
from jobs.run_folders import OpenRun, open_run
from jobs.run_tables import of_recipe, write_parts, write_tables
from jobs.run_writer import PIECES_MERGED, RunWriter
from jobs.search_plans import WholeSearch
from jobs.settings import Recipe
from jobs.storage import Storage, storage_at
from jobs.writer_lease import Claim, Process, this_process
from search.errors import ClusterError, RecipeError, StorageError
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.rows import node_table, search_columns, solution_table
from search.schemas import NODES, SOLUTIONS, UNITS
from search.scripted import SeededPolicy, SeededPRM

pytestmark = pytest.mark.unit

POLICY = "small"
PROBLEMS = [Problem(f"p{place}", f"{place} + 1?", "42") for place in range(5)]


def document(n: int = 16, **more: Any) -> dict[str, Any]:
    return {
        "name": "night",
        "seed": 4,
        "data": {"source": "reasoning_gym:chain_sum", "size": 5},
        "policies": [{"name": POLICY, "model": "fake", "engine": "fake"}],
        "prm": {"model": "fake", "family": "qwen2.5-math-prm", "engine": "fake"},
        "searches": [{"strategy": "dvts", "n": n}, {"strategy": "best_of_n", "n": n}],
        "work": {"solutions_per_unit": 8},
    } | more


def unit_tables(unit: WorkUnit) -> UnitTables:
    growth = asyncio.run(run_unit(unit, SeededPolicy(), SeededPRM()))
    row: dict[str, Any] = search_columns(unit, POLICY) | {"status": "done", "solutions": 8}
    units = pa.Table.from_pylist([row], UNITS)
    nodes, solutions = node_table(unit, POLICY, growth.tree), solution_table(unit, POLICY, growth)
    return UnitTables(unit, nodes, solutions, units)


def failed(unit: WorkUnit) -> UnitTables:
    row: dict[str, Any] = search_columns(unit, POLICY) | {"status": "error", "error": "lost"}
    units = pa.Table.from_pylist([row], UNITS)
    return UnitTables(unit, NODES.empty_table(), SOLUTIONS.empty_table(), units)


class Killed(BaseException):
    """What ends a process in these tests; nothing may catch it."""


class OneRun:
    """A process that runs a recipe's searches, without Ray, until it is killed."""

    def __init__(self, folder: Storage, recipe: Recipe, problems: Sequence[Problem]) -> None:
        self.log, self.recipe, self.problems = CommitLog(folder), recipe, problems
        self.folder, self.recall = folder, Recall(self.log)
        self.ran: list[str] = []
        self.skipped: list[str] = []

    def run(self, kill_after: int | None = None, fail: Iterable[str] = ()) -> None:
        """kill_after: units that are committed before the process ends."""
        try:
            asyncio.run(self._run(kill_after, set(fail)))
            write_tables(self.log, self.folder, of_recipe(self.recipe))
        except* Killed:
            pass

    async def _run(self, kill_after: int | None, fail: set[str]) -> None:
        recall = PolicyRecall(self.recall, POLICY)
        size = self.recipe.work.solutions_per_unit
        plans = [WholeSearch(config, size) for config in self.recipe.search_configs()]
        async with Graders(1, 60.0) as graders, RunWriter(self.log, 1e6) as writer:
            commits = Commits(writer, graders, 2)

            async def commit(problem: Problem, solutions: pa.Table) -> None:
                await commits.commit(problem, solutions)

            def skip(problem: Problem) -> None:
                self.skipped.append(problem.problem_id)

            async with asyncio.TaskGroup() as tasks:
                dispatch = Dispatch(self.problems, plans, writer, commit, tasks, recall, skip)
                while not dispatch.backlog.is_over:
                    bundle = dispatch.backlog.take(1)
                    for unit in bundle.units if bundle else ():
                        if kill_after is not None and len(self.ran) == kill_after:
                            await asyncio.sleep(0.05)
                            await writer.commit()
                            writer.add = lambda *_: None  # type: ignore[method-assign]
                            raise Killed
                        self.ran.append(unit.unit_id)
                        is_lost = unit.unit_id in fail
                        found = await asyncio.to_thread(failed if is_lost else unit_tables, unit)
                        dispatch.deliver(found)
                    await asyncio.sleep(0)


def tables(folder: Storage) -> dict[str, list[dict[str, Any]]]:
    """Sorted rows by table."""
    found = {}
    for name in ("nodes", "solutions", "units"):
        with folder.parquet(f"{name}.parquet") as file:
            found[name] = sorted(file.read().to_pylist(), key=str)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = storage_at(tmp_path_factory.mktemp("undisturbed"))
    OneRun(folder, parse_recipe(document()), PROBLEMS).run()
    return tables(folder)


@pytest.mark.parametrize("kill_after", [0, 1, 5, 13, 19])
def test_a_killed_run_is_finished_with_what_is_missing(
    tmp_path: Path, undisturbed: Any, kill_after: int
) -> None:
    folder, recipe = storage_at(tmp_path), parse_recipe(document())
    first = OneRun(folder, recipe, PROBLEMS)
    first.run(kill_after)
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert len(first.ran) == kill_after
    assert len(second.ran) == 20 - kill_after
    assert not set(first.ran) & set(second.ran)
    assert tables(folder) == undisturbed


def test_a_run_may_be_killed_again_and_again(tmp_path: Path, undisturbed: Any) -> None:
    folder, recipe, ran = storage_at(tmp_path), parse_recipe(document()), 0
    for _ in range(20):
        process = OneRun(folder, recipe, PROBLEMS)
        process.run(kill_after=1)
        ran += len(process.ran)
    assert ran == 20
    OneRun(folder, recipe, PROBLEMS).run()
    assert tables(folder) == undisturbed


def test_failed_units_are_run_again(tmp_path: Path, undisturbed: Any) -> None:
    folder, recipe = storage_at(tmp_path), parse_recipe(document())
    first = OneRun(folder, recipe, PROBLEMS)
    lost = ["p1/dvts-16x4/0-2", "p3/best_of_n-16x1/8-16"]
    first.run(fail=lost)
    assert [row["unit_id"] for row in tables(folder)["units"] if row["status"] == "error"] == lost
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert second.ran == lost
    assert tables(folder) == undisturbed


def test_more_problems_run_only_what_is_missing(tmp_path: Path, undisturbed: Any) -> None:
    folder, recipe = storage_at(tmp_path), parse_recipe(document())
    OneRun(folder, recipe, PROBLEMS[:3]).run()
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert second.skipped == ["p0", "p1", "p2"]
    assert {name.split("/")[0] for name in second.ran} == {"p3", "p4"}
    assert tables(folder) == undisturbed


def without_unit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Units are cut elsewhere if a run was extended; what they brought is the same."""
    return sorted(({**row, "unit_id": ""} for row in rows), key=str)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("smaller", [4, 8, 12])
def test_a_larger_n_runs_only_what_is_missing(
    tmp_path: Path, undisturbed: Any, smaller: int, finished: bool
) -> None:
    folder = storage_at(tmp_path)
    OneRun(folder, parse_recipe(document(smaller)), PROBLEMS).run(None if finished else 9)
    second = OneRun(folder, parse_recipe(document()), PROBLEMS)
    second.run()
    grown = tables(folder)
    for name in ("nodes", "solutions"):
        assert without_unit(grown[name]) == without_unit(undisturbed[name])
    ran = [name.rsplit("/", 1) for name in second.ran]
    if finished:
        starts = {what.split("/")[1]: int(part.split("-")[0]) for what, part in ran}
        assert starts == {"dvts-16x4": smaller // 4, "best_of_n-16x1": smaller} or smaller < 8
        assert all(int(part.split("-")[0]) >= smaller // 4 for _, part in ran)


def test_a_commit_without_its_last_file_does_not_count(tmp_path: Path, undisturbed: Any) -> None:
    folder, recipe = storage_at(tmp_path), parse_recipe(document())
    OneRun(folder, recipe, PROBLEMS).run(kill_after=6)
    [last] = [each for each in (tmp_path / "commits").iterdir() if "units" in each.name]
    last.unlink()
    (tmp_path / "commits" / "000002-nodes.parquet.unwritten").write_bytes(b"PAR1")
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert len(second.ran) == 20
    assert tables(folder) == undisturbed


def test_what_is_left_of_a_commit_counts_with_no_later_one(tmp_path: Path) -> None:
    log = CommitLog(storage_at(tmp_path))
    assert log.commit({"units": waiting_row(1)}) == 1
    left = tmp_path / "commits" / "000002-nodes.parquet"
    left.write_bytes(b"")
    assert CommitLog(storage_at(tmp_path)).commit({"units": waiting_row(2)}) == 3
    again = CommitLog(storage_at(tmp_path))
    assert [part.number for part in again.parts("units")] == [1, 3]
    assert again.parts("nodes") == []


def test_tables_that_were_half_written_at_the_end_are_written_again(
    tmp_path: Path, undisturbed: Any
) -> None:
    folder, recipe = storage_at(tmp_path), parse_recipe(document())
    first = OneRun(folder, recipe, PROBLEMS)
    first.run()
    (tmp_path / "units.parquet").unlink()
    (tmp_path / "solutions.parquet").unlink()
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert second.ran == []
    assert tables(folder) == undisturbed


# Which recipe may go on with a run


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"work": {"solutions_per_unit": 4, "units_in_flight": 2}}, False),
        ({"runs_folder": "elsewhere"}, False),
        ({"data": {"source": "reasoning_gym:chain_sum", "size": 9}}, False),
        ({"data": {"source": "reasoning_gym:chain_sum", "size": 4}}, True),
        ({"seed": 5}, True),
        ({"limits": {"max_steps": 3}}, True),
        ({"sampling": {"temperature": 0.5}}, True),
        ({"searches": [{"strategy": "dvts", "n": 16}]}, True),
    ],
)
def test_what_changes_rows_is_told(change: dict[str, Any], matters: bool) -> None:
    before, now = (
        parse_recipe(each).model_dump(mode="json") for each in (document(), document() | change)
    )
    found = changes(before, now)
    assert bool(found) == matters
    assert all(" -> " in line for line in found)


@pytest.mark.parametrize(
    ("strategy", "ns", "may"),
    [
        ("dvts", [32], True),
        ("dvts", [8], False),
        ("beam", [32], False),
        ("beam", [16, 32], True),
    ],
)
def test_a_larger_n_may_replace_a_smaller_one_where_parts_are_independent(
    strategy: str, ns: list[int], may: bool
) -> None:
    before, now = (
        parse_recipe(document() | {"searches": [{"strategy": strategy, "n": n}]}).model_dump(
            mode="json"
        )
        for n in (16, ns)
    )
    assert (changes(before, now) == []) == may


def begun(recipe: Recipe) -> OpenRun:
    """A run that was stopped when it had finished something."""
    with open_run(recipe) as run:
        run.log.commit({"units": waiting_row(1)})
    return run


def test_the_unfinished_run_is_the_one_that_goes_on(tmp_path: Path) -> None:
    recipe = parse_recipe(document(runs_folder=str(tmp_path)))
    first = begun(recipe)
    with open_run(recipe) as second:
        assert second.folder.where == first.folder.where
        second.finish()
    record = json.loads((Path(first.folder.where) / "run.json").read_text())
    assert record["finished_at"]
    with open_run(recipe, into=first.folder.where) as again:
        assert again.record.run_id == first.record.run_id


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_run_whose_commits_could_not_be_removed_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    def delete(_: CommitLog) -> None:
        for path in tmp_path.glob("*/commits/*"):
            if "units" not in path.name:
                path.unlink()
        raise Killed if is_killed else StorageError("cannot delete commits: the store is away")

    recipe = parse_recipe(document(runs_folder=str(tmp_path)))
    unit = next(partition(PROBLEMS[0], recipe.search_configs()[0], 8))
    done = unit_tables(unit)
    with monkeypatch.context() as patch, contextlib.suppress(Killed), open_run(recipe) as run:
        run.log.commit({"nodes": done.nodes, "found": done.solutions, "units": done.units})
        write_tables(run.log, run.folder, of_recipe(recipe))
        patch.setattr(CommitLog, "delete", delete)
        run.finish()
    record = json.loads(run.folder.read("run.json").to_pybytes())
    assert record["finished_at"]
    assert run.folder.child("commits").names() == ["000001-units.parquet"]
    with open_run(recipe, into=run.folder.where) as again:
        assert again.log.commits == 0
        write_tables(again.log, again.folder, of_recipe(recipe))
        again.finish()
    assert tables(run.folder)["nodes"] == sorted(done.nodes.to_pylist(), key=str)


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    recipe = parse_recipe(document(runs_folder=str(tmp_path)))
    with pytest.raises(RecipeError), open_run(recipe):
        raise RecipeError("no GPU")
    assert list(tmp_path.iterdir()) == []
    with open_run(recipe.model_copy(update={"seed": 7})) as other:
        other.finish()
    assert [each.name for each in tmp_path.iterdir()] == [other.record.run_id]


def test_another_recipe_is_told_the_difference(tmp_path: Path) -> None:
    recipe = parse_recipe(document(runs_folder=str(tmp_path)))
    begun(recipe)
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(RecipeError, match=r"another recipe \(seed: 4 -> 7\).*--fresh"):
        open_run(other)


def put_claim(folder: Path, process: Process) -> None:
    claim = asdict(Claim(process, writes=True, replaced=()))
    (folder / "writers").mkdir(exist_ok=True)
    (folder / "writers" / "other.json").write_text(json.dumps(claim))


def test_a_run_that_is_written_to_is_left_alone(tmp_path: Path) -> None:
    recipe = parse_recipe(document(runs_folder=str(tmp_path)))
    run, parent = begun(recipe), psutil.Process(os.getppid())
    other = replace(this_process(), pid=parent.pid, started=parent.create_time())
    put_claim(Path(run.folder.where), other)
    with pytest.raises(StorageError, match=f"is being written to by process {other.pid}"):
        open_run(recipe)
    # A process that was killed, and another that has its number now.
    put_claim(Path(run.folder.where), replace(other, started=1.0))
    with open_run(recipe) as again:
        assert again.folder.where == run.folder.where
    assert not (Path(run.folder.where) / "writers").exists()


def test_a_store_that_cannot_be_written_to_is_found_out_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = parse_recipe(document(runs_folder=str(tmp_path / "file")))
    with pytest.raises(StorageError, match="cannot"):
        open_run(recipe)


# A store that is away for a while


def test_what_fails_for_a_while_is_written_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def full(*_: Any) -> None:
        tries.append(1)
        if len(tries) < 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.storage._write_here", full)
    storage_at(tmp_path).write("a", b"x")
    assert len(tries) == 4
    tries.clear()
    with pytest.raises(StorageError, match=r"cannot write a in .*No space left"):
        replace(storage_at(tmp_path), patience_s=0.0).write("a", b"x")
    assert len(tries) == 1


def test_rows_wait_while_the_store_is_away(tmp_path: Path) -> None:
    log, gate = CommitLog(storage_at(tmp_path)), threading.Event()
    commit = log.commit

    def slow(rows: Any) -> int:
        gate.wait(10)
        return commit(rows)

    log.commit = slow  # type: ignore[method-assign]
    row = pa.Table.from_pylist([{"unit_id": "a", "policy": "x", "error": "y" * 1000}], UNITS)

    async def write() -> bool:
        async with RunWriter(log, 0.01) as writer:
            writer.add("units", row)
            await asyncio.sleep(0.1)
            writer.add("units", row)
            gate.set()
        return True

    assert asyncio.run(write())
    rows = [log.read(part) for part in CommitLog(storage_at(tmp_path)).parts("units")]
    assert sum(map(len, rows)) == 2


def slowly_committing(log: CommitLog) -> tuple[threading.Event, threading.Event]:
    """Makes commits wait: set when one has begun, and to be set for it to go on."""
    begun, go_on, commit = threading.Event(), threading.Event(), log.commit

    def slow(rows: Any) -> int:
        begun.set()
        assert go_on.wait(60)
        return commit(rows)

    log.commit = slow  # type: ignore[method-assign]
    return begun, go_on


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_commit_that_is_being_written_at_the_end_is_waited_for(
    tmp_path: Path, is_stopped: bool
) -> None:
    """Who reads the log when the writer has left finds what it was given."""
    log = CommitLog(storage_at(tmp_path))
    begun, go_on = slowly_committing(log)

    async def write() -> None:
        async with RunWriter(log, 0.01) as writer, writer.kept_if_stopped():
            writer.add("units", waiting_row(1))
            await asyncio.to_thread(begun.wait, 60)
            asyncio.get_running_loop().call_later(0.2, go_on.set)
            if is_stopped:
                raise asyncio.CancelledError

    async def rows() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await write()
        return sum(len(log.read(part)) for part in log.parts("units"))

    assert asyncio.run(rows()) == 1


def test_a_commit_that_fails_while_its_writer_leaves_is_an_error(tmp_path: Path) -> None:
    log = CommitLog(storage_at(tmp_path))

    def failing(rows: Any) -> int:
        raise StorageError("the disk has gone")

    log.commit = failing  # type: ignore[method-assign]
    begun, go_on = slowly_committing(log)

    async def write() -> None:
        async with RunWriter(log, 0.01) as writer:
            writer.add("units", waiting_row(1))
            await asyncio.to_thread(begun.wait, 60)
            asyncio.get_running_loop().call_later(0.2, go_on.set)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(write())
    assert caught.value.subgroup(StorageError) is not None


def waiting_row(size: int) -> pa.Table:
    return pa.Table.from_pylist([{"unit_id": "a", "policy": "x", "error": "y" * size}], UNITS)


def test_rows_that_wait_hold_nothing_they_came_in(tmp_path: Path) -> None:
    """A work unit's message holds its nodes too: rows from it must not keep it."""

    async def held() -> int:
        async with RunWriter(CommitLog(storage_at(tmp_path)), 1e6) as writer:
            before = pa.total_allocated_bytes()
            message = pa.concat_tables([waiting_row(1_000_000), waiting_row(1)])
            writer.add("units", message.combine_chunks().slice(1))
            del message
            return pa.total_allocated_bytes() - before

    assert asyncio.run(held()) < 100_000


def test_rows_that_come_one_by_one_wait_in_little_more_than_their_bytes(tmp_path: Path) -> None:
    log, row = CommitLog(storage_at(tmp_path)), waiting_row(50)

    async def held() -> int:
        async with RunWriter(log, 1e6) as writer:
            before = pa.total_allocated_bytes()
            for _ in range(4 * PIECES_MERGED):
                writer.add("units", row)
            return pa.total_allocated_bytes() - before

    assert asyncio.run(held()) < 2 * 4 * PIECES_MERGED * row.nbytes
    [part] = log.parts("units")
    assert log.read(part).equals(pa.concat_tables([row] * 4 * PIECES_MERGED))


def test_many_rows_are_committed_before_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run_writer.BYTES_A_COMMIT", 100_000)
    log = CommitLog(storage_at(tmp_path))

    async def write() -> int:
        async with RunWriter(log, 1e6) as writer:
            for _ in range(4):
                writer.add("units", waiting_row(60_000))
                await writer.room()
                await asyncio.sleep(0.1)
            return log.commits

    assert asyncio.run(write()) == 2


def test_nothing_more_is_taken_while_too_much_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run_writer.BYTES_HELD", 100_000)

    async def write() -> bool:
        async with RunWriter(CommitLog(storage_at(tmp_path)), 1e6) as writer:
            writer.add("units", waiting_row(200_000))
            waits = asyncio.create_task(writer.room())
            await asyncio.sleep(0.05)
            waited = not waits.done()
            await writer.commit()
            await waits
            return waited

    assert asyncio.run(write())


def test_an_error_of_the_run_itself_is_not_wrapped(tmp_path: Path) -> None:
    log = CommitLog(storage_at(tmp_path))

    async def fail() -> None:
        async with RunWriter(log, 1e6) as writer:
            writer.add("units", waiting_row(1))
            raise ClusterError("no machine has a GPU")

    with pytest.raises(ClusterError, match="no machine has a GPU"):
        asyncio.run(fail())
    assert log.commits == 1


def test_a_store_that_stays_away_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    folder = replace(storage_at(tmp_path), patience_s=0.0)

    async def write() -> None:
        async with RunWriter(CommitLog(folder), 0.01) as writer:
            writer.add("units", waiting_row(1))
            monkeypatch.setattr("jobs.storage._write_here", gone)
            await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(write())
    assert isinstance(raised.value.exceptions[0], StorageError)


def test_rows_of_another_schema_are_refused(tmp_path: Path) -> None:
    async def write() -> None:
        async with RunWriter(CommitLog(storage_at(tmp_path))) as writer:
            with pytest.raises(StorageError, match="table 'nodes' do not have its columns"):
                writer.add("nodes", waiting_row(1))

    asyncio.run(write())


def test_row_groups_end_with_rows_or_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.run_tables.ROWS_A_GROUP", 3)
    write_parts(storage_at(tmp_path), "units", [waiting_row(1)] * 7)
    monkeypatch.setattr("jobs.run_tables.BYTES_A_GROUP", 100_000)
    write_parts(storage_at(tmp_path / "b"), "units", [waiting_row(60_000)] * 5)
    for folder, sizes in ((tmp_path, [3, 3, 1]), (tmp_path / "b", [2, 2, 1])):
        with storage_at(folder).parquet("units.parquet") as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert groups == sizes


def test_many_small_parts_make_the_same_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run_tables.ROWS_A_GROUP", 10)
    monkeypatch.setattr("jobs.run_tables.PARTS_MERGED", 3)
    rows = [waiting_row(size) for size in range(25)]
    write_parts(storage_at(tmp_path), "units", rows)
    with storage_at(tmp_path).parquet("units.parquet") as file:
        assert file.read().equals(pa.concat_tables(rows))
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [10, 10, 5]


def test_a_table_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, synced = tmp_path / "units.parquet", list[tuple[int, int]]()

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size))
        assert not table.exists()

    monkeypatch.setattr("jobs.storage.os.fsync", fsync)
    write_parts(storage_at(tmp_path), "units", [waiting_row(1)])
    assert synced == [(table.stat().st_ino, table.stat().st_size)]


def test_a_table_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    def parts() -> Iterator[pa.Table]:
        yield waiting_row(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        write_parts(storage_at(tmp_path), "units", parts())
    assert storage_at(tmp_path).names() == []
