"""Run folders and routes files, tampered with or half written: each is refused in one line."""

import copy
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hostile_cases import Case, assert_one_line, changed, each, spelled
from test_results import synthetic_run
from test_routes import document

from jobs.reported_run import read_run
from jobs.results import load_run
from jobs.routes import load_artifact
from search.errors import RecipeError, StorageError
from search.schemas import VERSION_KEY

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(path: Path, case: Case) -> None:
    content, at = path.read_bytes(), case["at"]
    path.write_bytes(content[: int(at * len(content)) if isinstance(at, float) else at])


def double(path: Path, case: Case) -> None:
    path.write_bytes((path.read_bytes() * 2)[: case.get("cut")])


def zero(path: Path, _: Case) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def write(path: Path, case: Case) -> None:
    path.write_bytes(
        bytes.fromhex(case["hex"]) if "hex" in case.values else case.text("text").encode()
    )


def append(path: Path, case: Case) -> None:
    path.write_bytes(path.read_bytes() + bytes.fromhex(case["hex"]))


def place(content: bytearray, at: float) -> int:
    return int(at * len(content)) if isinstance(at, float) else at % len(content)


def flip(path: Path, case: Case) -> None:
    content = bytearray(path.read_bytes())
    content[place(content, case["at"])] ^= 0xFF
    path.write_bytes(content)


def patch(path: Path, case: Case) -> None:
    content, new = bytearray(path.read_bytes()), bytes.fromhex(case["hex"])
    start = place(content, case["at"])
    content[start : start + len(new)] = new
    path.write_bytes(content)


def swap(path: Path, case: Case) -> None:
    other, content = path.parent / case["with"], path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def make_folder(path: Path, _: Case) -> None:
    path.unlink()
    path.mkdir()


def wrap(path: Path, _: Case) -> None:
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(content)


def loop(path: Path, _: Case) -> None:
    path.unlink()
    path.symlink_to(path)


def dangle(path: Path, _: Case) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone")


def record(path: Path, case: Case) -> None:
    path.write_text(json.dumps(changed(json.loads(path.read_text()), case["set"])))


def with_version(table: pa.Table, version: bytes | None) -> pa.Table:
    kept = {k: v for k, v in (table.schema.metadata or {}).items() if k != VERSION_KEY}
    return table.replace_schema_metadata(kept | ({VERSION_KEY: version} if version else {}))


TABLE_CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "drop": lambda table: table.drop([table.column_names[-1]]),
    "add": lambda table: table.append_column("more", pa.nulls(len(table), pa.string())),
    "reverse": lambda table: table.select(table.column_names[::-1]),
    "rename": lambda table: table.rename_columns(["id", *table.column_names[1:]]),
    "cast": lambda table: table.set_column(0, table.column_names[0], table[0].cast(pa.binary())),
    "later": lambda table: with_version(table, b"999"),
    "binary": lambda table: with_version(table, b"\xff\x1b[2J"),
    "unversioned": lambda table: with_version(table, None),
}


def table(path: Path, case: Case) -> None:
    pq.write_table(TABLE_CHANGES[case["how"]](pq.read_table(path)), path)


DEEDS: dict[str, Callable[[Path, Case], None]] = {
    "delete": lambda path, _: path.unlink(),
    "cut": cut,
    "double": double,
    "zero": zero,
    "write": write,
    "append": append,
    "flip": flip,
    "patch": patch,
    "swap": swap,
    "folder": make_folder,
    "wrap": wrap,
    "loop": loop,
    "dangle": dangle,
    "gzip": lambda path, _: path.write_bytes(gzip.compress(path.read_bytes())) and None,
    "record": record,
    "table": table,
}


@each("folders")
def test_a_spoilt_run_folder_is_refused_in_one_line(case: Case, folder: Path) -> None:
    DEEDS[case["do"]](folder / case["file"], case)
    for read in (load_run, read_run):
        if case["file"] == "nodes.parquet" and read is read_run and case["do"] != "swap":
            continue  # a report looks at no nodes
        if "whole" in case.values and read is read_run:
            continue  # a report looks at two columns of the solutions
        with pytest.raises(StorageError) as caught:
            read(folder)
        assert_one_line(str(caught.value), case["words"])


def test_the_folder_that_is_spoilt_is_good(folder: Path) -> None:
    assert load_run(folder).solutions.num_rows > 0
    assert read_run(folder).label


@pytest.mark.parametrize("key", ["run_id"])
def test_a_report_needs_what_it_is_called(folder: Path, key: str) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(StorageError) as caught:
        read_run(folder)
    assert_one_line(str(caught.value), f"{key} is missing")


@each("artifacts")
def test_a_hostile_routes_file_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    if "set" in case.values:
        changes: dict[str, Any] = case["set"]
        path.write_text(yaml.safe_dump(changed(copy.deepcopy(document()), changes)))
    else:
        path.write_bytes(case.content())
    with pytest.raises(RecipeError) as caught:
        load_artifact(path)
    assert_one_line(str(caught.value), spelled(case["words"]))
