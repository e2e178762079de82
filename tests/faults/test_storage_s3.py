"""A run whose folder is on S3: its driver is killed, and the store does not answer for a while."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from s3_server import S3Server, running_s3
from test_driver_killed import PATIENCE_S, ROOT, command, committed_units, finish, recipe, rows

from jobs.reported_run import read_run
from jobs.results import Run, load_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(900),
]
AWAY_S = 8.0
__all__ = ["recipe"]


@pytest.fixture
def night(recipe: Path) -> Path:
    """The recipe, with time for grading beside a server that is busy."""
    document = yaml.safe_load(recipe.read_text())
    document["work"]["grading_timeout_s"] = 120.0
    recipe.write_text(yaml.safe_dump(document))
    return recipe


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with running_s3(tmp_path / "s3.log") as server:
        yield server


def commits(s3: S3Server) -> list[str]:
    return [path for path in s3.files("bucket/runs") if path.endswith("-units.parquet")]


def run_folder(s3: S3Server) -> str:
    """The URI of the only run."""
    [record] = [path for path in s3.files("bucket/runs") if path.endswith("/run.json")]
    return s3.uri(record.removesuffix("/run.json"))


@contextmanager
def driver(night: Path, s3: S3Server, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has committed something more when the context begins."""
    before, deadline = len(commits(s3)), time.monotonic() + PATIENCE_S
    started = [*command(night, Path("x"))[:-1], f"runs_folder={s3.uri('bucket/runs')}"]
    with (
        log.open("wb") as file,
        subprocess.Popen(started, cwd=ROOT, stdout=file, stderr=file) as process,
    ):
        while len(commits(s3)) <= before:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process


def test_a_run_on_s3_is_killed_and_its_store_is_away(
    night: Path, s3: S3Server, tmp_path: Path
) -> None:
    plain = load_run(finish(night, tmp_path / "plain"))
    with driver(night, s3, tmp_path / "killed.log") as process:
        os.kill(process.pid, signal.SIGKILL)
    held = committed_units(run_folder(s3))
    assert 0 < len(held) < len(plain.units)
    with driver(night, s3, tmp_path / "finished.log") as process:
        with s3.away():
            time.sleep(AWAY_S)
            assert process.poll() is None
        assert process.wait() == 0, (tmp_path / "finished.log").read_text()[-3000:]
    again = load_run(run_folder(s3))
    assert_same(again, plain)
    took = {row["unit_id"]: row["seconds"] for row in again.units.to_pylist()}
    assert {row["unit_id"]: row["seconds"] for row in held}.items() <= took.items()
    assert {point.rule for point in read_run(run_folder(s3)).points} == {"dvts", "best_of_n"}
    left = [path.split("/", 3)[3] for path in s3.files("bucket/runs")]
    assert {"run.json", "units.parquet", "report.md", "accuracy.png"} <= set(left)
    assert not [path for path in left if path.startswith(("commits/", "writers/"))]
    shown = (tmp_path / "finished.log").read_text()
    assert "report.md?endpoint_override" in shown


def assert_same(run: Run, plain: Run) -> None:
    for name in ("problems", "nodes", "solutions", "answers", "samples"):
        assert rows(getattr(run, name)) == rows(getattr(plain, name))
    units, same = (sorted(each.units["unit_id"].to_pylist()) for each in (run, plain))
    assert units == same
