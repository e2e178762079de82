"""Run folders on a real S3 server: written, resumed, read; refused at once where that cannot be."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from s3_server import S3Server, running_s3
from test_results import synthetic_run
from test_resume import PROBLEMS, OneRun, document, tables, waiting_row

from jobs.commit_log import CommitLog
from jobs.evidence import gather
from jobs.recipe import parse_recipe
from jobs.report import report_at
from jobs.reported_run import read_run
from jobs.results import load_run, load_table
from jobs.run_folders import open_run
from jobs.run_tables import write_parts
from jobs.storage import Storage, storage_at
from jobs.store_uris import child_of, shown
from jobs.writer_lease import LEASE_S, Process, WriterLease
from search.errors import RecipeError, StorageError
from search.schemas import TABLES

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_s3(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def folder(s3: S3Server, request: pytest.FixtureRequest) -> Storage:
    return storage_at(s3.uri(f"bucket/{request.node.name.partition('[')[0]}"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def there(s3: S3Server, here: Path) -> str:
    """The URI of a run that lies on this machine too."""
    folder = storage_at(s3.uri("bucket/copied/run"))
    for path in here.iterdir():
        folder.write(path.name, path.read_bytes())
    return s3.uri("bucket/copied/run")


# URIs


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("runs/a", "runs/a"),
        ("s3://bucket/runs/", "s3://bucket/runs"),
        ("s3://me:pa%2Fss@bucket/a@b?region=x&scheme=http", "s3://bucket/a@b?region=x&scheme=http"),
        ("s3://me:pa/ss@bucket/a", "s3://bucket/a"),
        (
            "abfs://box@me.dfs.core.windows.net/a?client_secret=x",
            "abfs://box@me.dfs.core.windows.net/a",
        ),
        ("abfs://a/b?sas_token=x&enable_tls=true", "abfs://a/b?enable_tls=true"),
        ("gs://anonymous@bucket/a", "gs://anonymous@bucket/a"),
        ("hdfs://host:9000/a@b", "hdfs://host:9000/a@b"),
    ],
)
def test_what_is_shown_of_a_uri_has_no_secret(uri: str, safe: str) -> None:
    assert shown(uri) == safe


def test_a_child_of_a_uri_keeps_its_query_behind() -> None:
    assert child_of("s3://b/runs?region=x", "run.json") == "s3://b/runs/run.json?region=x"
    assert child_of("a?b", "run.json") == "a?b/run.json"


@pytest.mark.parametrize(
    "uri", ["s9://me:hush@bucket/x", "s3://me:hu/hush@b/x", "s3://me:hush@b?a=1"]
)
def test_a_uri_that_cannot_be_opened_is_one_line_without_its_password(uri: str) -> None:
    with pytest.raises(StorageError, match="cannot open s") as caught:
        storage_at(uri)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Files


def test_files_are_written_listed_read_and_removed(folder: Storage, s3: S3Server) -> None:
    child = folder.child("more")
    child.write("a", b"one")
    child.write("a", b"two")
    assert child.read("a").to_pybytes() == b"two"
    assert (child.names(), folder.names(), child.name) == (["a"], ["more"], "more")
    assert (child.has("a"), child.has("b"), child.lacks("b"), child.lacks("a")) == (
        True, False, True, False,
    )  # fmt: skip
    assert abs(child.written_at()["a"] - time.time()) < 3600
    assert child.where == s3.uri(f"bucket/{folder.name}/more")
    child.delete("a")
    child.delete("a")
    child.remove_if_empty()
    assert child.names() == []
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/.*/a\?.*: it is not there"):
        child.read("a")


def test_a_table_that_fails_half_way_leaves_what_was_there(folder: Storage) -> None:
    write_parts(folder, "units", [waiting_row(10)])

    def parts() -> Iterator[Any]:
        yield waiting_row(1)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        write_parts(folder, "units", parts())
    assert folder.names() == ["units.parquet"]
    with folder.parquet("units.parquet") as file:
        assert file.read().equals(waiting_row(10))


def test_a_large_table_arrives_whole(folder: Storage) -> None:
    rows = [waiting_row(6_000_000) for _ in range(4)]
    with (
        folder.writing("units.parquet") as file,
        pq.ParquetWriter(file, TABLES["units"], compression="none") as writer,
    ):
        for row in rows:
            writer.write_table(row)
    assert len(folder.read("units.parquet")) > 24_000_000
    assert load_table(folder, "units")["error"].to_pylist() == ["y" * 6_000_000] * 4


def test_a_store_that_is_away_for_seconds_is_waited_for(folder: Storage, s3: S3Server) -> None:
    done: list[str] = []

    def write() -> None:
        folder.write("a", b"x")
        done.append(folder.read("a").to_pybytes().decode())

    with s3.away():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(4.0)
        assert thread.is_alive()
        assert not done
    thread.join()
    assert done == ["x"]


def test_a_store_that_is_gone_is_given_up(s3: S3Server) -> None:
    uri = "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
        load_run(uri)


# Runs


def test_a_killed_run_is_finished_on_a_store(folder: Storage, tmp_path: Path) -> None:
    recipe, plain = parse_recipe(document()), storage_at(tmp_path)
    OneRun(plain, recipe, PROBLEMS).run()
    first = OneRun(folder, recipe, PROBLEMS)
    first.run(kill_after=7)
    second = OneRun(folder, recipe, PROBLEMS)
    second.run()
    assert (len(first.ran), len(second.ran)) == (7, 13)
    assert tables(folder) == tables(plain)
    third = OneRun(folder, recipe, PROBLEMS)
    third.run()
    assert third.ran == []
    assert tables(folder) == tables(plain)


def night(s3: S3Server, where: str, **more: Any) -> Any:
    return parse_recipe(document(runs_folder=s3.uri(f"bucket/{where}")) | more)


def test_a_run_folder_is_begun_continued_and_ended(s3: S3Server) -> None:
    recipe = night(s3, "nights")
    with open_run(recipe) as run:
        run.log.commit({"units": waiting_row(1)})
        assert any("/writers/" in path for path in s3.files("bucket/nights"))
        with pytest.raises(RecipeError, match=r"another recipe \(seed: 4 -> 7\)"):
            open_run(recipe.model_copy(update={"seed": 7}))
    with open_run(recipe) as again:
        assert again.record.run_id == run.record.run_id
        again.finish()
    assert s3.files("bucket/nights") == [f"bucket/nights/{run.record.run_id}/run.json"]
    with open_run(recipe, into=s3.uri(f"bucket/nights/{run.record.run_id}")) as into:
        assert into.folder.name == run.record.run_id


def test_a_run_that_finished_nothing_leaves_nothing(s3: S3Server) -> None:
    with pytest.raises(RecipeError), open_run(night(s3, "empty")):
        raise RecipeError("no GPU")
    assert s3.files("bucket/empty") == []


def test_no_password_is_written_down(s3: S3Server) -> None:
    uri = f"s3://test:hush@bucket/secret?{s3.query}"
    with open_run(parse_recipe(document(runs_folder=uri))) as run:
        run.finish()
        assert "hush" not in run.folder.where + str(run.folder)
    record = storage_at(uri).child(run.record.run_id).read("run.json").to_pybytes()
    assert b"hush" not in record
    assert json.loads(record)["recipe"]["runs_folder"] == s3.uri("bucket/secret")


def test_a_missing_bucket_and_wrong_keys_are_one_line_at_once(s3: S3Server) -> None:
    recipe = parse_recipe(document(runs_folder=s3.uri("nowhere/runs")))
    with pytest.raises(StorageError, match="there is no such bucket: make it"):
        open_run(recipe)
    uri = f"s3://wrong:hush@bucket/runs?{s3.query}"
    with s3.checking_credentials(), pytest.raises(StorageError) as caught:
        open_run(parse_recipe(document(runs_folder=uri)))
    assert "access is refused: check the credentials" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_writer_of_another_machine_is_seen_by_the_clock_of_the_store(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = WriterLease(folder, Process("far", "another system", 17, 1.0)).take()
    lost.stop()
    with pytest.raises(StorageError, match=r"process 17 on far, heard of \d+ s ago"):
        WriterLease(folder).take()
    monkeypatch.setattr("jobs.writer_lease.LEASE_S", 1.0)
    time.sleep(2.5)  # the store tells whole seconds
    lease = WriterLease(folder).take()
    log = CommitLog(folder, lost.check)
    with pytest.raises(StorageError, match="was taken over by process"):
        log.commit({"units": waiting_row(1)})
    assert CommitLog(folder).is_empty
    lost.release()
    lease.release()
    assert LEASE_S == 60.0
    assert folder.child("writers").names() == []


class Vanishing:
    """A store whose files go as soon as they are opened, as when another process removes them."""

    def __init__(self, store: fs.FileSystem) -> None:
        self._store = store

    def open_input_file(self, path: str) -> pa.NativeFile:
        file = self._store.open_input_file(path)
        self._store.delete_file(path)
        return file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_file_that_goes_while_it_is_read_is_not_there(folder: Storage) -> None:
    folder.write("claim.json", b"{}")
    vanishing = replace(folder, _files=cast("fs.FileSystem", Vanishing(folder._files)))
    with pytest.raises(StorageError, match="it is not there") as caught:
        vanishing.at_once.read("claim.json")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


# Reading


def test_a_run_is_read_as_from_this_machine(here: Path, there: str) -> None:
    far, near = load_run(there), load_run(here)
    for name in TABLES:
        assert getattr(far, name).equals(getattr(near, name))
    assert far.record == near.record
    assert read_run(there).points == read_run(here).points


def test_a_report_is_written_here_or_there(
    here: Path, there: str, s3: S3Server, tmp_path: Path
) -> None:
    paths = report_at([there], tmp_path / "report")
    near = report_at([here], tmp_path / "near")
    far = report_at([there], there)
    for path, other, uri in zip(paths, near, far, strict=True):
        content = Path(path).read_bytes()
        assert Path(other).read_bytes() == content
        assert storage_at(there).read(Path(path).name).to_pybytes() == content
        assert uri == child_of(there, Path(path).name)


def test_what_is_missing_on_a_store_is_named(there: str, s3: S3Server) -> None:
    with pytest.raises(StorageError, match=r"bucket/none\?.* is not a run folder"):
        load_run(s3.uri("bucket/none"))
    with pytest.raises(RecipeError, match="a probe of 4000 needs best_of_n"):
        gather([there], 4000, [])


def test_the_command_line_reads_a_store_and_ends(there: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "report", there, "--to", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "new" / "report.md").stat().st_size
