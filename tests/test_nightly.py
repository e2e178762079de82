"""Real Ray: one night, started twice from the command line."""

import json
from pathlib import Path

import pytest
import yaml
from night_runs import document
from typer.testing import CliRunner

from jobs.cli import app
from jobs.results import load_partitions, load_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]
DAY = "2026-11-20"


def test_a_night_is_done_once(tmp_path: Path) -> None:
    rows = ({"id": f"p{i}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(4))
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(tmp_path / "problems.jsonl")}
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(document(data=data, runs_folder=str(tmp_path / "runs"))))
    first = CliRunner().invoke(app, ["run", str(recipe), "--date", DAY])
    assert (first.exit_code, first.exception) == (0, None)
    folder = tmp_path / "runs" / "small" / f"date={DAY}"
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    run = load_run(folder)
    [row] = run.runs.to_pylist()
    assert row["units"] == run.units.num_rows
    assert row["solutions"] == run.solutions.num_rows > 0
    assert row["seconds"] == run.record["seconds"] > 0
    assert row["finished_at"] == run.record["finished_at"]
    assert (row["partition"], row["failed_units"], row["retries"]) == (DAY, 0, 0)
    assert load_partitions(folder.parent, "runs")["date"].to_pylist() == [DAY]
    # Tonight's data are others: an ended night needs nothing but its folder.
    (tmp_path / "problems.jsonl").write_text('{"id": "p0", "problem": "1 =", "answer": "1"}\n')
    second = CliRunner().invoke(app, ["run", str(recipe), "--date", DAY])
    assert (second.exit_code, second.exception) == (0, None)
    assert "has ended at" in second.output
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files
