"""Runs against each other: the row of a run, compare, history, and what counts as a regression."""

import csv
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest
from night_runs import document, write_night
from rich.console import Console
from test_results import synthetic_run
from typer.testing import CliRunner

from jobs.cli import app
from jobs.compare import compare
from jobs.compare_text import as_csv, print_comparison
from jobs.headline import headline_of
from jobs.headline_settings import RegressionSettings
from jobs.history import changes_between, missing_between, nights_at
from jobs.history_figure import runs_of_nights
from jobs.history_files import write_history
from jobs.history_text import as_csv as history_csv
from jobs.history_text import print_history
from jobs.paired import difference
from jobs.partitions import RunName
from jobs.recipe import parse_recipe
from jobs.regression import judge, unpaired
from jobs.results import load_partitions, load_run, load_table
from jobs.run_rows import load_run_row, write_run_row
from jobs.storage import storage_at
from search.errors import RecipeError, StorageError

pytestmark = pytest.mark.unit

GOOD = [1.0] * 30 + [0.0] * 10
# Six problems that were right are wrong.
BAD = [1.0] * 24 + [0.0] * 16


def days(*numbers: int) -> list[str]:
    return [f"2026-11-{number:02}" for number in numbers]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three nights, the second to last one missing."""
    for day, shares in zip(days(1, 2, 4), (GOOD, BAD, GOOD), strict=True):
        write_night(tmp_path, day, shares)
    return tmp_path / "small"


# The row of a run


def test_the_row_of_a_run_counts_its_tables(tmp_path: Path) -> None:
    folder = write_night(tmp_path, "2026-11-01", GOOD, bad=2, failed=3, seconds=20.0)
    row = load_run_row(folder)
    assert (row["run_id"], row["recipe"]) == ("small/date=2026-11-01", "small")
    assert (row["partition"], row["seconds"]) == ("2026-11-01", 20.0)
    assert (row["problems"], row["bad_problems"]) == (42, 2)
    assert (row["units"], row["failed_units"], row["retries"]) == (40, 3, 40)
    assert (row["generated_policy_tokens"], row["tokens"]) == (37_000, 37_000 + 40 * 10)
    assert row["policy_tokens_per_second"] == 37_000 / 20
    assert (row["accuracy"], row["gpu_seconds"], row["usd"]) == (0.75, 0.0, None)
    assert row["ci_low"] < 0.75 < row["ci_high"]
    assert json.loads(row["versions"])["pyarrow"]
    named = [row[name] for name in ("policy", "strategy", "n", "reduction", "vote")]
    assert named == ["one", "best_of_n", 8, "last", "weighted"]


def test_a_run_from_before_the_table_has_the_same_row(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path)
    written = load_run_row(folder)
    (folder / "runs.parquet").unlink()
    assert load_run(folder).runs.num_rows == 0
    made = load_run_row(folder)
    # Times are told by another record, and what a run held of GPUs by none.
    told = {"seconds", "policy_tokens_per_second", "gpu_seconds", "started_at", "finished_at"}
    assert all(made[name] == written[name] for name in made.keys() - told)
    assert made.keys() == written.keys()
    assert made["accuracy"] is not None


def test_a_run_that_has_not_ended_has_no_row(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path)
    (folder / "runs.parquet").unlink()
    record = json.loads((folder / "run.json").read_text()) | {"finished_at": ""}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="has not ended"):
        load_run_row(folder)


@pytest.mark.parametrize(
    ("names", "gpu_type", "usd"),
    [
        (["H100"], "h100", 3 * 3.0),
        (["A100-80G"], "a100-80", 3 * 1.8),
        (["H100", "L4"], None, None),
        (["TPU-V4"], None, None),
        ([], None, None),
    ],
)
def test_gpus_are_paid_from_start_to_end(
    tmp_path: Path, names: list[str], gpu_type: str | None, usd: float | None
) -> None:
    policies = [
        {"name": str(gpus), "model": "a/b", "engine": "fake", "gpus_per_replica": gpus}
        for gpus in (1, 2)
    ]
    prm = document()["prm"] | {"gpus_per_replica": 1}
    folder = write_night(tmp_path, "2026-11-01", GOOD)
    record = load_run(str(folder)).record
    from jobs.results import RunRecord

    recipe = parse_recipe(document(policies=policies, prm=prm))
    write_run_row(folder, RunRecord(**record | {"seconds": 3600.0}), recipe, names)
    row = load_run_row(folder)
    assert (row["gpu_seconds"], row["gpu_type"]) == (3 * 3600.0, gpu_type)
    assert row["usd"] == (None if usd is None else pytest.approx(usd))


# The headline


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "one, best_of_n at N = 8, last weighted"),
        ({"headline": {"strategy": "beam"}}, "one, beam at N = 8, last weighted"),
        ({"headline": {"vote": "pass"}}, "one, best_of_n at N = 8, pass"),
        ({"headline": {"n": 1, "vote": "pass"}}, "one, best_of_n at N = 1, pass"),
        ({"headline": {"reduction": "min", "vote": "max"}}, "one, best_of_n at N = 8, min max"),
        (
            {"searches": [{"strategy": "majority", "n": [4, 16]}]},
            "one, majority at N = 16, majority",
        ),
        (
            {"searches": [{"strategy": "majority", "n": 4}], "protocol": "sampling"},
            "one, majority at N = 1, pass",
        ),
    ],
)
def test_the_headline_follows_from_the_recipe(changes: dict[str, Any], named: str) -> None:
    assert str(headline_of(parse_recipe(document(**changes)))) == named


def test_the_headline_is_of_the_last_policy_that_runs_something() -> None:
    policies = [{"name": name, "model": "x", "engine": "fake"} for name in ("a", "b", "c")]
    searches = [{"strategy": "beam", "n": 8, "policies": ["a", "b"]}]
    searches.append({"strategy": "best_of_n", "n": 8, "policies": ["c"]})
    chosen = headline_of(parse_recipe(document(policies=policies, searches=searches)))
    assert chosen
    assert (chosen.policy, chosen.strategy) == ("c", "best_of_n")


@pytest.mark.parametrize(
    "headline", [{"policy": "two"}, {"strategy": "dvts"}, {"n": 5}, {"variant": "lookahead=1"}]
)
def test_a_headline_that_nothing_runs_is_refused(headline: dict[str, Any]) -> None:
    [(key, value)] = headline.items()
    with pytest.raises(RecipeError, match=f"headline: no search of the recipe has {key}={value}"):
        parse_recipe(document(headline=headline))


# Tables over all nights


def test_every_reader_sees_one_table_with_dates(home: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(home.parent.parent)
    glob = f"{home}/date=*/answers.parquet"
    ours = load_partitions(home, "answers", ["problem_id", "expected_correct"])
    by_duck = duckdb.sql(f"SELECT date, count(*) FROM '{glob}' GROUP BY date ORDER BY date")
    by_polars = pl.read_parquet(glob, hive_partitioning=True)
    paths = sorted(map(str, home.glob("date=*/answers.parquet")))
    by_arrow = ds.dataset(paths, partitioning="hive").to_table()
    by_pandas = pd.read_parquet(paths, partitioning="hive")
    rows = len(ours) // 3
    assert [(str(date), n) for date, n in by_duck.fetchall()] == [(d, rows) for d in days(1, 2, 4)]
    assert sorted(map(str, by_polars["date"].unique())) == days(1, 2, 4)
    assert sorted(set(map(str, by_arrow["date"].to_pylist()))) == days(1, 2, 4)
    assert sorted(set(map(str, by_pandas["date"]))) == days(1, 2, 4)
    assert len(by_polars) == by_arrow.num_rows == len(by_pandas) == len(ours)
    assert ours.column_names == ["problem_id", "expected_correct", "date"]


def test_nights_that_have_not_ended_are_in_no_table(home: Path) -> None:
    path = home / "date=2026-11-02" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_at": ""}))
    (home / "date=2026-11-03").mkdir()
    assert load_partitions(home, "runs")["date"].to_pylist() == days(1, 4)
    assert load_partitions(home, "answers", ["n"])["date"].unique().to_pylist() == days(1, 4)


# Compare


def test_a_comparison_is_paired_by_problem(tmp_path: Path) -> None:
    first = write_night(tmp_path, "2026-11-01", GOOD)
    second = write_night(tmp_path, "2026-11-02", BAD, tokens=2000, seconds=30.0)
    found = compare(first, second)
    assert len(found.searches) == 3
    each = found.searches[0]
    assert (each.difference.first, each.difference.second) == (0.75, 0.6)
    # 6 of 40 differ by one: mean 0.15, standard error sqrt(0.15 * 0.85 / 39), t at 39 degrees.
    half = 2.0227 * math.sqrt(0.15 * 0.85 / 39)
    assert each.difference.low == pytest.approx(-0.15 - half, abs=1e-4)
    assert each.difference.high == pytest.approx(-0.15 + half, abs=1e-4)
    assert each.difference.is_clear
    assert each.tokens_ratio == pytest.approx(2010 / 1010)
    assert (each.flops_ratio, each.unit_seconds_ratio) == (None, 1.0)
    assert found.rows[1]["seconds"] == 30.0


def test_only_equal_problems_are_compared(tmp_path: Path) -> None:
    first = write_night(tmp_path, "2026-11-01", {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0})
    second = write_night(tmp_path, "2026-11-02", {"a": 0.0, "b": 1.0, "c": 0.0, "e": 0.0})
    found = compare(first, second).shared
    assert (set(found.ids), found.changed) == ({"a", "b", "c"}, 0)
    assert (found.only_first, found.only_second) == (1, 1)
    other = write_night(tmp_path, "2026-11-03", {"a": 0.0, "b": 1.0}, texts=" Say why.")
    with pytest.raises(RecipeError, match="no problem in common"):
        compare(first, other)


def test_another_text_leaves_a_problem_out(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    first = write_night(tmp_path, "2026-11-01", {"a": 1.0, "b": 1.0, "c": 0.0})
    second = write_night(tmp_path, "2026-11-02", {"a": 0.0, "b": 1.0, "c": 0.0})
    problems = load_table(second, "problems")
    path = f"{second}/problems.parquet"
    changed = problems.set_column(1, problems.schema.field(1), [["a? changed", "b?", "c?"]])
    pq.write_table(changed, path)
    found = compare(first, second)
    assert (set(found.shared.ids), found.shared.changed) == ({"b", "c"}, 1)
    assert found.searches[0].difference.value == 0.0
    assert found.searches[0].difference.problems == 2


def test_a_real_run_is_no_better_than_itself(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path)
    found = compare(folder, folder)
    assert len(found.searches) > 40
    assert {each.difference.value for each in found.searches} == {0.0}
    # Scripted engines count FLOPs here; a search at a smaller N costs its part, in both runs.
    assert {each.tokens_ratio for each in found.searches} == {1.0}
    assert found.changes == []


def test_runs_without_a_common_search_are_refused(tmp_path: Path) -> None:
    first = write_night(tmp_path, "2026-11-01", {f"p{i}": 1.0 for i in range(4)})
    other = synthetic_run(tmp_path)
    problems = load_table(first, "problems")
    from jobs.results import write_table

    write_table(other, "problems", problems)
    with pytest.raises(
        RecipeError, match="no search in common: one best_of_n in the one, scripted"
    ):
        compare(first, other)


def test_a_comparison_is_printed_and_written(tmp_path: Path) -> None:
    first = write_night(tmp_path, "2026-11-01", GOOD)
    second = write_night(tmp_path, "2026-11-02", BAD, changes={"seed": 4})
    found = compare(first, second)
    with Console(record=True, file=io.StringIO(), width=160) as console:
        print_comparison(found, False, console)
    text = console.export_text()
    assert "40 problems in both; 0 only in the first" in text
    assert "recipes differ: seed: 3 -> 4" in text
    assert "-15.0 (-26.6 to -3.4) *" in text
    assert "2 more rows, of other votes and reductions" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["vote"] for row in rows] == ["weighted", "max", "pass"]
    assert float(rows[0]["difference"]) == pytest.approx(-0.15)


def test_one_problem_has_no_interval() -> None:
    found = difference({"a": 1.0}, {"a": 0.0}, {"a"})
    assert found
    assert math.isnan(found.low)
    assert not found.is_clear
    assert difference({"a": 1.0}, {"b": 1.0}, {"a", "b"}) is None


# History


def test_a_history_has_a_row_a_night(home: Path) -> None:
    nights = nights_at(home)
    assert [night.date for night in nights] == days(1, 2, 4)
    assert [missing_between(*pair) for pair in itertools.pairwise(nights)] == [0, 1]
    assert [len(each) for each in runs_of_nights(nights)] == [2, 1]
    with Console(record=True, file=io.StringIO()) as console:
        print_history(nights, console)
    text = console.export_text()
    assert "small: one, best_of_n at N = 8, last weighted" in text
    assert "(1 missing)" in text
    assert "75.0" in text
    assert "60.0" in text
    rows = list(csv.DictReader(io.StringIO(history_csv(nights))))
    assert [row["date"] for row in rows] == days(1, 2, 4)
    assert [float(row["accuracy"]) for row in rows] == [0.75, 0.6, 0.75]


def test_changes_of_recipe_and_versions_are_told(tmp_path: Path) -> None:
    write_night(tmp_path, "2026-11-01", GOOD)
    write_night(tmp_path, "2026-11-02", GOOD, changes={"seed": 9})
    nights = nights_at(tmp_path / "small")
    assert changes_between(*nights) == ["recipe"]
    assert nights[0].row
    versions = json.loads(nights[0].row["versions"]) | {"ray": "1.0"}
    nights[0].row.update(versions=json.dumps(versions), git_revision="abc")
    found = changes_between(*nights)
    assert found[0] == "recipe"
    assert any(each.startswith("ray 1.0 -> ") for each in found)
    assert any(each.startswith("git abc -> ") for each in found)


def test_a_night_that_cannot_be_read_hides_no_other(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "date=2026-11-02" / "runs.parquet").write_bytes(b"PAR1")
    assert [night.date for night in nights_at(home)] == days(1, 4)
    assert "date=2026-11-02 is passed over" in caplog.text


@pytest.mark.parametrize("nights", [1, 3])
def test_a_history_is_drawn(home: Path, tmp_path: Path, nights: int) -> None:
    paths = write_history(nights_at(home)[:nights], tmp_path / "drawn")
    first = [Path(path).read_bytes() for path in paths]
    assert [Path(path).name for path in paths] == ["history.png", "history.svg", "history.csv"]
    assert all(first)
    again = write_history(nights_at(home)[:nights], tmp_path / "again")
    assert [Path(path).read_bytes() for path in again] == first


def test_a_folder_without_nights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no nights: give the folder with date="):
        nights_at(tmp_path)


# Regressions


def verdict(tmp_path: Path, shares: Sequence[Any], **limits: Any) -> Any:
    for day, each in zip(days(*range(1, 29)), shares, strict=False):
        write_night(tmp_path, day, **(each if isinstance(each, dict) else {"shares": each}))
    return judge(nights_at(tmp_path / "small"), RegressionSettings(**limits))


def test_the_first_night_passes(tmp_path: Path) -> None:
    found = verdict(tmp_path, [BAD])
    assert (found.is_worse, found.line) == (
        False,
        "no night before 2026-11-01 has the same search: nothing to check",
    )


@pytest.mark.parametrize(
    ("shares", "limits", "worse"),
    [
        ([GOOD, BAD], {}, True),
        ([GOOD, BAD], {"max_drop": 0.2}, False),
        ([GOOD, BAD], {"max_drop": None}, False),
        ([BAD, GOOD], {}, False),
        # A drop that may be chance: two of forty.
        ([GOOD, [1.0] * 28 + [0.0] * 12], {}, False),
        ([GOOD, [1.0] * 28 + [0.0] * 12], {"confident": False}, True),
        # The night before was bad itself; the one in the middle was not.
        ([GOOD, GOOD, BAD, BAD], {}, False),
        ([GOOD, GOOD, BAD, BAD], {"against": "median"}, True),
        ([GOOD, GOOD, BAD, BAD, BAD, BAD], {"against": "median", "nights": 3}, False),
    ],
)
def test_a_drop_counts_if_it_is_large_and_sure(
    tmp_path: Path, shares: list[list[float]], limits: dict[str, Any], worse: bool
) -> None:
    assert verdict(tmp_path, shares, **limits).is_worse == worse


def test_a_drop_is_told_in_one_line(tmp_path: Path) -> None:
    line = verdict(tmp_path, [GOOD, BAD]).line
    assert line == (
        "regression on 2026-11-02: accuracy -15.0 points against 2026-11-01 (75.0% to 60.0%, "
        "95 % interval -26.6 to -3.4, 40 problems paired); 2 may be lost"
    )


def test_other_problems_are_compared_unpaired(tmp_path: Path) -> None:
    other = {"shares": [1.0] * 10 + [0.0] * 30, "texts": " New."}
    found = verdict(tmp_path, [GOOD, other])
    assert found.is_worse
    assert "other problems, not paired" in found.line


def test_newcombes_interval_is_that_of_his_table() -> None:
    # Newcombe 1998, table II (a), method 10: 56/70 - 48/80 is 0.0524 to 0.3339.
    first = {"accuracy": 0.6, "ci_low": 0.4904, "ci_high": 0.7004}
    second = {"accuracy": 0.8, "ci_low": 0.6918, "ci_high": 0.8776}
    counts = {"problems": 70, "bad_problems": 0}
    found = unpaired(first | counts, second | counts)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=3e-3),
        pytest.approx(0.3339, abs=3e-3),
    )


@pytest.mark.parametrize(
    ("night", "limits", "worse"),
    [
        ({"tokens": 1300}, {"max_cost_increase": 0.2}, True),
        ({"tokens": 1300}, {"max_cost_increase": 0.4}, False),
        ({"tokens": 700}, {"max_cost_increase": 0.2}, False),
        ({"seconds": 20.0}, {"max_slowdown": 0.3}, True),
        ({"seconds": 11.0}, {"max_slowdown": 0.3}, False),
        ({"seconds": 5.0}, {"max_slowdown": 0.3}, False),
    ],
)
def test_cost_and_speed_have_limits_of_their_own(
    tmp_path: Path, night: dict[str, Any], limits: dict[str, Any], worse: bool
) -> None:
    found = verdict(tmp_path, [GOOD, GOOD, {"shares": GOOD} | night], **limits)
    assert found.is_worse == worse
    assert "may be lost" in found.line or worse


def test_another_headline_is_not_compared(tmp_path: Path) -> None:
    write_night(tmp_path, "2026-11-01", GOOD, changes={"headline": {"vote": "pass"}})
    write_night(tmp_path, "2026-11-02", BAD)
    found = judge(nights_at(tmp_path / "small"), RegressionSettings())
    assert "nothing to check" in found.line


# The command line


def test_history_and_compare_from_the_command_line(home: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["history", str(home), "--to", str(tmp_path / "out")])
    assert told.exit_code == 0
    assert (tmp_path / "out" / "history.png").stat().st_size
    checked = runner.invoke(app, ["history", str(home), "--check"])
    assert (checked.exit_code, checked.output[:15]) == (0, "no regression: ")
    write_night(home.parent, "2026-11-05", BAD)
    checked = runner.invoke(app, ["history", str(home), "--check"])
    assert (checked.exit_code, checked.output[:25]) == (3, "regression on 2026-11-05:")
    runs = [str(home / f"date={day}") for day in days(4, 5)]
    csv_file = tmp_path / "compared.csv"
    assert runner.invoke(app, ["compare", *runs]).exit_code == 0
    assert runner.invoke(app, ["compare", *runs, "--to", str(csv_file)]).exit_code == 0
    assert csv_file.read_text().startswith("policy,strategy,variant,n,")


def test_a_check_without_limits_is_refused(tmp_path: Path) -> None:
    write_night(tmp_path, "2026-11-01", GOOD, changes={"regression": None})
    found = CliRunner().invoke(app, ["history", str(tmp_path / "small"), "--check"])
    assert isinstance(found.exception, RecipeError)
    assert "has no section regression" in str(found.exception)


def test_a_named_run_can_be_compared(tmp_path: Path) -> None:
    named = write_night(tmp_path, "", GOOD, name=RunName("before-the-change"))
    night = write_night(storage_at(tmp_path), "2026-11-01", BAD)
    assert compare(named, night).runs == ("before-the-change", "small/date=2026-11-01")
