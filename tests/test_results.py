"""Run folders: what is written is read back, and what is no run is refused in one line.

`synthetic_run` makes a whole run folder from scripted models; other tests use it too.
"""

import asyncio
import json
import re
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from run_folder import WrittenRun
from whole_samples import samples_of_parts

from jobs.curves import answers_table
from jobs.recipe import parse_recipe, recipe_digest
from jobs.results import (
    RECORDED_LIBRARIES,
    Run,
    RunRecord,
    load_record,
    load_run,
    load_table,
    new_record,
    table_parts,
    write_table,
)
from jobs.run_rows import write_run_row
from jobs.run_tables import write_parts
from jobs.storage import storage_at
from search.errors import StorageError
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.rows import node_table, search_columns, solution_table, unit_costs
from search.schemas import PROBLEMS, ROUTES, SCHEMA_VERSION, SOLUTIONS, STOPS, TABLES, UNITS
from search.scripted import SeededPolicy, SeededPRM

pytestmark = pytest.mark.unit

POLICY = "scripted"
PARAMETERS = 1_000_000
RUN_ID = "synthetic-20260102-030405"
RECIPE: dict[str, Any] = {
    "name": "synthetic",
    "seed": 3,
    "data": {"source": "reasoning_gym:chain_sum", "size": 4},
    "policies": [{"name": POLICY, "model": "scripted", "engine": "fake"}],
    "prm": {"model": "scripted", "engine": "fake", "family": "qwen2.5-math-prm"},
    "searches": [
        {"strategy": "majority", "n": 8},
        {"strategy": "best_of_n", "n": 8},
        {"strategy": "beam", "n": [4, 8], "branching": 4},
        {"strategy": "dvts", "n": 8, "branching": 4},
    ],
}
PROBLEM_SET = [
    Problem(f"p{place}", f"Problem {place}?", "42", json.dumps({"level": place % 2 + 1}))
    for place in range(4)
]


def synthetic_record() -> RunRecord:
    """A record under a run id that does not depend on the clock."""
    recipe = parse_recipe(RECIPE)
    record = new_record(recipe.name, recipe.model_dump(mode="json"), recipe_digest(recipe))
    return replace(record, run_id=RUN_ID)


def synthetic_run(runs_folder: Path) -> Path:
    """A finished run of scripted models: four problems, one bad row, one failed unit."""
    recipe = parse_recipe(RECIPE)
    with WrittenRun(runs_folder, synthetic_record()) as writer:
        writer.add("problems", problem_rows())
        for problem in PROBLEM_SET:
            for config in recipe.search_configs():
                for unit in partition(problem, config, 4):
                    add_unit(writer, unit)
        writer.add("units", failed_row(unit))
        writer.add("routes", routed_row(unit))
        writer.add("stops", stopped_row(unit))
    ids = [problem.problem_id for problem in PROBLEM_SET]
    solutions = load_table(writer.folder, "solutions")
    write_table(writer.folder, "samples", samples_of_parts([solutions], ids, 1.0))
    write_table(writer.folder, "answers", answers_table(solutions, ids, recipe.seed))
    write_run_row(storage_at(writer.folder), replace(synthetic_record(), seconds=2.0), recipe)
    writer.finish()
    return writer.folder


def add_unit(writer: WrittenRun, unit: WorkUnit) -> None:
    """Grows a unit and writes its rows."""
    growth = asyncio.run(run_unit(unit, SeededPolicy(), SeededPRM()))
    writer.add("nodes", node_table(unit, POLICY, growth.tree))
    writer.add("solutions", graded(solution_table(unit, POLICY, growth)))
    spent = {"status": "done", "attempts": 1, "node_ip": "127.0.0.1", "seconds": 0.5}
    row = search_columns(unit, POLICY) | unit_costs(growth, PARAMETERS, PARAMETERS) | spent
    writer.add("units", pa.Table.from_pylist([row], UNITS))


def failed_row(unit: WorkUnit) -> pa.Table:
    """A unit that brought nothing but its reason."""
    error = {"unit_id": f"{unit.unit_id}-again", "status": "error", "error": "PRMError: NaN"}
    row = search_columns(unit, POLICY) | {"solutions": 0, "attempts": 1, "seconds": 0.1} | error
    return pa.Table.from_pylist([row], UNITS)


def stopped_row(unit: WorkUnit) -> pa.Table:
    """A problem that never settled."""
    row = search_columns(unit, POLICY) | {"solutions": 4, "audited": False}
    return pa.Table.from_pylist([row], STOPS)


def routed_row(unit: WorkUnit) -> pa.Table:
    """A problem of a compute-optimal search whose route lost units."""
    row = search_columns(unit, POLICY) | {"strategy": "compute_optimal", "measure": "solutions"}
    return pa.Table.from_pylist([row], ROUTES)


def graded(solutions: pa.Table) -> pa.Table:
    """Equal texts are one class; 42 is right."""
    rows = [row | grade(row["answer"]) for row in solutions.to_pylist()]
    return pa.Table.from_pylist(rows, SOLUTIONS)


def grade(answer: str) -> dict[str, Any]:
    if not answer:
        return {"verdict": "no_answer", "answer_class": -1, "task_score": None}
    right = answer == "42"
    verdict = "correct" if right else "incorrect"
    return {"verdict": verdict, "answer_class": 0 if right else int(answer), "task_score": None}


def problem_rows() -> pa.Table:
    columns = ("problem_id", "text", "reference_answer", "metadata")
    good = [{name: getattr(problem, name) for name in columns} for problem in PROBLEM_SET]
    bad = {"problem_id": "bad", "text": "", "reference_answer": "1", "metadata": "{}"}
    return pa.Table.from_pylist([*good, bad | {"error": "the row has no text"}], PROBLEMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


def refusal(path: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(StorageError) as caught:
        load_run(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def one_problem(problem_id: str = "p") -> pa.Table:
    return pa.Table.from_pylist([{"problem_id": problem_id}], PROBLEMS)


def half_run(folder: Path, *tables: str) -> Path:
    """A folder with `run.json` and some tables, all empty."""
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    for name in tables:
        write_table(folder, name, TABLES[name].empty_table())
    return folder


# What is written is read back


def test_tables_come_back_with_their_schemas(folder: Path) -> None:
    run = load_run(folder)
    for name, schema in TABLES.items():
        assert getattr(run, name).schema.equals(schema)
        assert getattr(run, name).num_rows > 0
    assert [field.name for field in fields(Run)] == ["record", *TABLES]


def test_rows_come_back_in_the_order_they_came(tmp_path: Path) -> None:
    with WrittenRun(tmp_path, synthetic_record()) as writer:
        for name in ("c", "a", "b"):
            writer.add("problems", one_problem(name))
    rows = load_table(writer.folder, "problems")
    assert rows["problem_id"].to_pylist() == ["c", "a", "b"]
    assert rows["text"].null_count == 3


def test_a_path_may_be_text(folder: Path) -> None:
    assert load_run(str(folder)).record["run_id"] == folder.name


def test_tables_without_rows_are_written_too(tmp_path: Path) -> None:
    with WrittenRun(tmp_path, synthetic_record()) as writer:
        pass
    assert load_table(writer.folder, "nodes").num_rows == 0


def test_a_table_can_be_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.run_tables.ROWS_A_GROUP", 2)
    rows = [pa.concat_tables([one_problem(name) for name in names]) for names in ("a", "bcd", "e")]
    write_parts(storage_at(tmp_path), "problems", rows)
    parts = list(table_parts(tmp_path, "problems", ["problem_id", "error"]))
    assert [part["problem_id"].to_pylist() for part in parts] == [list("abcd"), ["e"]]
    assert parts[0].column_names == ["problem_id", "error"]


def test_what_is_no_table_has_no_parts(tmp_path: Path) -> None:
    for write in (lambda path: None, lambda path: path.write_text("PAR1"), other_columns):
        write(tmp_path / "units.parquet")
        with pytest.raises(StorageError, match=re.escape(str(tmp_path / "units.parquet"))):
            list(table_parts(tmp_path, "units", ["unit_id"]))


def other_columns(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def keys(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_the_keys_of_a_run_are_unique_and_join(folder: Path) -> None:
    run = load_run(folder)
    node = ("policy", "strategy", "n", "branching", "problem_id", "node_id")
    units, nodes = keys(run.units, "policy", "unit_id"), keys(run.nodes, *node)
    assert len(set(units)) == len(units)
    assert len(set(nodes)) == len(nodes)
    assert set(keys(run.solutions, *node)) <= set(nodes)
    assert set(keys(run.nodes, "policy", "unit_id")) <= set(units)
    assert set(keys(run.units, "problem_id")) <= set(keys(run.problems, "problem_id"))
    assert pc.sum(run.units["solutions"]).as_py() == run.solutions.num_rows


@pytest.mark.parametrize("name", list(TABLES))
def test_files_carry_the_version_and_are_compressed(folder: Path, name: str) -> None:
    file = pq.ParquetFile(folder / f"{name}.parquet")
    assert file.schema_arrow.metadata[b"branchwise.schema_version"] == SCHEMA_VERSION.encode()
    columns = range(file.metadata.num_columns)
    kinds = {file.metadata.row_group(0).column(place).compression for place in columns}
    assert kinds == {"ZSTD"}


# run.json


def test_the_record_says_what_the_folder_belongs_to(folder: Path) -> None:
    record = load_record(folder)
    recipe = parse_recipe(RECIPE)
    assert set(record) == {field.name for field in fields(RunRecord)}
    assert parse_recipe(record["recipe"]) == recipe
    assert record["recipe_digest"] == recipe_digest(recipe)
    assert (record["run_id"], record["seeds"]) == (folder.name, {"run": 3})
    assert record["schema_version"] == SCHEMA_VERSION
    assert set(record["versions"]) == set(RECORDED_LIBRARIES)
    assert record["versions"]["pyarrow"] == pa.__version__
    assert re.fullmatch(r"([0-9a-f]{40}(\+changes)?)?", record["git_revision"])


def test_times_are_utc_and_in_order(folder: Path) -> None:
    record = load_record(folder)
    started, finished = (datetime.fromisoformat(record[f"{e}_at"]) for e in ("started", "finished"))
    assert started.utcoffset() == finished.utcoffset()
    assert started.tzname() == "UTC"
    assert started <= finished


def test_a_run_is_named_by_recipe_and_time() -> None:
    record = new_record("small", {"seed": 5}, "digest")
    assert re.fullmatch(r"small-\d{8}-\d{6}", record.run_id)
    assert (record.seeds, record.finished_at) == ({"run": 5}, "")


# What goes wrong while writing


def test_a_whole_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_table(tmp_path, "answers", one_problem())


# What is no run


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").endswith("is not a run folder: no readable run.json there")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_a_foreign_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(StorageError, match="is not a run folder"):
        load_record(tmp_path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    path = half_run(tmp_path / "run", *list(TABLES)[:-1])
    message = refusal(path)
    missing = path / f"{list(TABLES)[-1]}.parquet"
    assert message.startswith(f"cannot read {missing}: ")
    assert message != f"cannot read {missing}: {missing}"


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_table_that_was_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    path = half_run(tmp_path / "run", *TABLES)
    table = path / "nodes.parquet"
    table.write_bytes(table.read_bytes()[:length])
    assert refusal(path).startswith(f"cannot read {table}: ")


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    path = half_run(tmp_path / "run", *TABLES)
    table = path / "nodes.parquet"
    table.write_bytes(b"PAR1" + b"x" * 100 + (90).to_bytes(4, "little") + b"PAR1")
    assert refusal(path).startswith(f"cannot read {table}: ")


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = half_run(tmp_path / "run", *TABLES)
    pq.write_table(pa.table({"a": [1]}), path / "units.parquet")
    line = f"does not have the columns of schema {SCHEMA_VERSION}"
    assert refusal(path) == f"{path / 'units.parquet'} {line}"


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    path = half_run(tmp_path / "run", *TABLES)
    later = UNITS.with_metadata({b"branchwise.schema_version": b"999"})
    pq.write_table(later.empty_table(), path / "units.parquet")
    assert SCHEMA_VERSION in refusal(path)


def test_the_names_of_folders_add_no_columns(tmp_path: Path) -> None:
    # Parquet readers may take `seed=3` in a path for a column.
    folder = synthetic_run(tmp_path / "seed=3")
    assert load_run(folder).units.schema.equals(UNITS)
