"""The driver is killed in mid-run, as often as it comes; the same command finishes the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.faults.measure import rows
from jobs.commit_log import CommitLog
from jobs.results import load_run
from jobs.storage import storage_at

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parent.parent.parent
PROBLEMS = 12
# Latency of the fake engines, so that a run lasts some seconds whatever the machine.
ITERATION_S = 0.004
PATIENCE_S = 300.0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = ({"id": f"p{i}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(PROBLEMS))
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake = {"model": "fake", "engine": "fake", "options": {"iteration_s": ITERATION_S}}
    document = {
        "name": "night",
        "data": {"source": str(tmp_path / "problems.jsonl")},
        "policies": [{**fake, "name": "fake", "max_batch": 16}],
        "prm": {**fake, "family": "qwen2.5-math-prm", "max_batch": 16},
        "searches": [{"strategy": "dvts", "n": 16}, {"strategy": "best_of_n", "n": 8}],
        "work": {"solutions_per_unit": 8, "units_in_flight": 2, "checkpoint_interval_s": 0.3},
    }
    path = tmp_path / "night.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def command(recipe: Path, runs: Path) -> list[str]:
    return [sys.executable, "-m", "jobs", "run", str(recipe), f"runs_folder={runs}"]


def finish(recipe: Path, runs: Path) -> Path:
    """Runs the command to its end; returns the run's folder, the only one there."""
    done = subprocess.run(command(recipe, runs), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [folder] = runs.iterdir()
    return folder


def kill_after_commits(recipe: Path, runs: Path, commits: int) -> Path:
    """Ends the driver by SIGKILL when so many more commits are there than before."""
    before = sum(map(count_commits, runs.iterdir())) if runs.exists() else 0
    with subprocess.Popen(
        command(recipe, runs), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        deadline = time.monotonic() + PATIENCE_S
        while not runs.exists() or sum(map(count_commits, runs.iterdir())) < before + commits:
            assert driver.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
    [folder] = runs.iterdir()
    return folder


def count_commits(folder: Path) -> int:
    return len(list(folder.glob("commits/*-units.parquet")))


def committed_units(folder: str | Path) -> list[dict[str, Any]]:
    log = CommitLog(storage_at(folder))
    return [row for part in log.parts("units") for row in log.read(part).to_pylist()]


def test_a_killed_run_ends_as_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    plain = load_run(finish(recipe, tmp_path / "plain"))
    runs = tmp_path / "killed"
    for commits in (1, 3):
        folder = kill_after_commits(recipe, runs, commits)
    held = committed_units(folder)
    assert 0 < len(held) < len(plain.units)
    again = load_run(finish(recipe, runs))
    for name in ("problems", "nodes", "solutions", "answers", "samples"):
        assert rows(getattr(again, name)) == rows(getattr(plain, name))
    names = again.units["unit_id"].to_pylist()
    assert sorted(names) == sorted(plain.units["unit_id"].to_pylist())
    # What was committed was not run again: how long each unit took is as it was.
    took = dict(zip(names, again.units["seconds"].to_pylist(), strict=True))
    assert {row["unit_id"]: row["seconds"] for row in held}.items() <= took.items()
    assert not (folder / "commits").exists()


def test_a_finished_run_goes_on_with_more_problems_and_a_larger_n(
    recipe: Path, tmp_path: Path
) -> None:
    document = yaml.safe_load(recipe.read_text())
    data = Path(document["data"]["source"])
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:6]))
    small = finish(recipe, tmp_path / "small")
    took = {
        row["unit_id"]: row["seconds"] for row in pq.read_table(small / "units.parquet").to_pylist()
    }
    data.write_text("".join(lines[:9]))
    document["searches"][1]["n"] = 16
    recipe.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [*command(recipe, tmp_path / "small"), "--into", str(small)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    grown, whole = load_run(small), load_run(finish(recipe, tmp_path / "whole"))
    for name in ("problems", "answers", "samples"):
        assert rows(getattr(grown, name)) == rows(getattr(whole, name))
    for name in ("nodes", "solutions"):
        drop = [c for c in ("unit_id",) if c in getattr(whole, name).column_names]
        assert rows(getattr(grown, name).drop(drop)) == rows(getattr(whole, name).drop(drop))
    now = {row["unit_id"]: row["seconds"] for row in grown.units.to_pylist()}
    kept = {name: seconds for name, seconds in took.items() if "/dvts" in name}
    assert kept.items() <= now.items()
