"""Rows of data sets that are meant to break the loader: each is marked, the others are unharmed."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_cases import Case, assert_one_line, each, spelled

from jobs.data import BadProblem, DataSource, load_problems
from search.errors import RecipeError
from search.problem import Problem

pytestmark = pytest.mark.unit

FIRST = {"id": "good-1", "problem": "1 + 1?", "answer": "2"}
LAST = {"id": "good-2", "problem": "2 + 2?", "answer": "4"}
GOOD = [Problem(row["id"], row["problem"], row["answer"], "{}") for row in (FIRST, LAST)]


def line_of(case: Case) -> bytes:
    if "hex" in case.values:
        return bytes.fromhex(case["hex"])
    return case.text("line").encode()


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_problems([DataSource(source=str(path))])
    return str(caught.value)


@each("problems", "error", "kept")
def test_a_hostile_row_stands_alone(case: Case, tmp_path: Path) -> None:
    lines = [json.dumps(FIRST).encode(), line_of(case), json.dumps(LAST).encode()]
    if "twin" in case.values:
        lines.insert(0, case.text("twin").encode())
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    *before, row, last = load_problems([DataSource(source=str(path))])
    assert [before[-1], last] == GOOD
    stored = (row.problem_id, row.text, row.reference_answer, row.metadata)
    assert all(pa.array([part]).to_pylist() == [part] for part in stored)
    json.loads(row.metadata, parse_constant=pytest.fail)
    if "kept" in case.values:
        assert isinstance(row, Problem)
        assert row.text == spelled(case["kept"])
    else:
        assert isinstance(row, BadProblem)
        assert_one_line(row.error, case["error"].replace("line 2", f"line {len(lines) - 1}"))


@each("problems", "words")
def test_a_hostile_file_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    if "columns" in case.values:
        row = {f"column {number}": number for number in range(case["columns"])}
        path.write_text(json.dumps(row) + "\n")
    elif "file-hex" in case.values:
        path.write_bytes(bytes.fromhex(case["file-hex"]))
    else:
        path.write_text(case.text("file"), newline="")
    assert_one_line(refusal(path), case["words"])


def good_table() -> pa.Table:
    return pa.Table.from_pylist([FIRST, LAST])


def good_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(good_table(), sink)
    return sink.getvalue().to_pybytes()


def written(table: pa.Table) -> Callable[[Path], None]:
    return lambda path: pq.write_table(table, path)


def with_column(name: str, values: pa.Array) -> Callable[[Path], None]:
    table = good_table()
    return written(table.set_column(table.column_names.index(name), name, values))


def with_bad_row(name: str, value: Any) -> Callable[[Path], None]:
    """A column of another type in all rows."""
    return with_column(name, pa.array([value, value]))


def folder_of(path: Path) -> None:
    path.mkdir()
    pq.write_table(good_table(), path / "part.parquet")


def not_utf8() -> pa.Array:
    raw = pa.array([b"\xff\xfe", b"ok"])
    return pa.StringArray.from_buffers(2, *raw.buffers()[1:])


def twins() -> pa.Table:
    return pa.table([*good_table().columns, pa.array(["9", "9"])], [*FIRST, "answer"])


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(good_bytes()[: len(good_bytes()) // 2]),
    "headless": lambda path: path.write_bytes(good_bytes()[:-1]),
    "only_end": lambda path: path.write_bytes(b"PAR1"),
    "long_footer": lambda path: path.write_bytes(good_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1"),
    "empty": lambda path: path.write_bytes(b""),
    "no_rows": written(good_table().slice(0, 0)),
    "no_columns": written(pa.table({})),
    "jsonl": lambda path: path.write_text(json.dumps(FIRST)),
    "gzipped": lambda path: path.write_bytes(gzip.compress(good_bytes())),
    "twins": written(twins()),
    "not_utf8": with_column("problem", not_utf8()),
    "far_date": with_column("id", pa.array([2**30, 1], pa.int32()).view(pa.date32())),
    "folder": folder_of,
    "loop": lambda path: path.symlink_to(path),
    "bytes_text": with_bad_row("problem", b"\xff?"),
    "number_text": with_bad_row("problem", 7),
    "list_answer": with_bad_row("answer", ["2"]),
    "nan_answer": with_bad_row("answer", float("nan")),
    "null_text": with_column("problem", pa.array([None, None], pa.string())),
    "struct_text": with_bad_row("problem", {"en": "?"}),
}


@each("parquet")
def test_hostile_parquet_is_refused_or_marked(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    BUILDERS[case["build"]](path)
    if "words" in case.values:
        assert_one_line(refusal(path), case["words"])
        return
    rows = load_problems([DataSource(source=str(path))])
    assert [row.problem_id for row in rows] == ["good-1", "good-2"]
    for row in rows:
        assert isinstance(row, BadProblem)
        assert_one_line(row.error, case["error"])


def test_thirty_thousand_rows_of_one_id_are_told_apart(tmp_path: Path) -> None:
    """To look for each one's free number from the start would take hours."""
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(FIRST) + "\n") * 30_000)
    rows = load_problems([DataSource(source=str(path))])
    assert len({row.problem_id for row in rows}) == 30_000
    assert rows[-1].problem_id == "good-1#30000"
