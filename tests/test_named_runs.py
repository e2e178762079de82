"""Runs by name and by date: begun once, continued, left alone while another process is at it."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from night_runs import document, write_night
from rich.console import Console
from s3_server import S3Server, running_s3
from test_resume import put_claim, waiting_row

import jobs.cli
from jobs.driver import RunOutcome
from jobs.history import nights_at
from jobs.history_files import NAMES, write_history
from jobs.nights import unfinished_before
from jobs.partitions import RunName, checked_date, chosen_name, date_of
from jobs.recipe import parse_recipe
from jobs.regression import judge_recorded
from jobs.results import load_partitions
from jobs.run_folders import OpenRun, open_run
from jobs.scheduled import Start, run_to_exit_code
from jobs.settings import Recipe
from jobs.storage import storage_at
from jobs.writer_lease import Process, this_process
from search.errors import RecipeError, RunEndedError, StillRunningError, StorageError
from search.schemas import NODES

pytestmark = pytest.mark.unit

DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
GOOD, BAD = [1.0] * 30 + [0.0] * 10, [1.0] * 20 + [0.0] * 20


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return parse_recipe(document(runs_folder=str(tmp_path)))


def night(day: str) -> RunName:
    return RunName("small", day)


def begun(recipe: Recipe, name: RunName) -> OpenRun:
    """A run that was stopped when it had finished something."""
    with open_run(recipe, name=name) as run:
        run.log.commit({"units": waiting_row(1)})
    return run


def live_process() -> Process:
    """Another process of this machine, which stays."""
    parent = psutil.Process(os.getppid())
    return replace(this_process(), pid=parent.pid, started=parent.create_time())


# Names


@pytest.mark.parametrize(
    ("run_id", "date", "named"),
    [
        (None, None, None),
        ("before-the-change", None, RunName("before-the-change")),
        ("small/date=2026-11-01", None, night("2026-11-01")),
        (None, "2026-11-01", night("2026-11-01")),
        (None, "2026-11-01T05", night("2026-11-01T05")),
    ],
)
def test_a_run_is_named(run_id: str | None, date: str | None, named: RunName | None) -> None:
    assert chosen_name("small", run_id, date, None, False) == named


def test_today_is_a_day_of_utc() -> None:
    before = datetime.now(UTC)
    days = {f"{each:%Y-%m-%d}" for each in (before, datetime.now(UTC))}
    assert checked_date("today") in days


@pytest.mark.parametrize(
    "run_id",
    [
        *("", ".hidden", "a b", "../up", "a/b", "a" * 101, "-x", "a\n"),
        *("other/date=2026-11-01", "small/date=today", "small/date=2026-13-01"),
    ],
)
def test_what_is_no_name_is_refused(run_id: str) -> None:
    with pytest.raises(RecipeError, match=r"names no run: write letters, digits"):
        chosen_name("small", run_id, None, None, False)


@pytest.mark.parametrize(
    "date",
    ["", "yesterday", "2026-11-1", "2026-02-30", "20261101", "2026-11-01T24", "2026-11-01 05"],
)
def test_what_is_no_day_is_refused(date: str) -> None:
    with pytest.raises(RecipeError, match="is no day: write today, YYYY-MM-DD"):
        checked_date(date)
    assert date_of(f"date={date}") == ""


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((("a"), "today", None, False), "--as and --date each name the run"),
        ((None, "today", "runs/x", False), "--date and --into each name the run"),
        (("a", None, None, True), "--as and --fresh each name the run"),
    ],
)
def test_one_option_names_the_run(given: Any, line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        chosen_name("small", *given)


# One run


@pytest.mark.parametrize("name", [RunName("mine"), night("2026-11-01")])
def test_a_named_run_is_begun_continued_and_done_once(
    recipe: Recipe, name: RunName, tmp_path: Path
) -> None:
    first = begun(recipe, name)
    assert first.record.run_id == name.run_id
    assert first.folder.here == tmp_path / name.run_id
    with open_run(recipe, name=name) as second:
        assert second.record.started_at == first.record.started_at
        second.finish()
    with pytest.raises(RunEndedError, match="has ended at "):
        open_run(recipe, name=name)
    assert [each.name for each in (tmp_path / name.run_id).iterdir()] == ["run.json"]


def test_a_named_run_is_not_what_a_plain_one_goes_on_with(recipe: Recipe) -> None:
    begun(recipe, RunName("small-experiment"))
    begun(recipe, night("2026-11-01"))
    with open_run(recipe) as plain:
        assert plain.record.run_id.startswith("small-20")
        assert plain.log.is_empty


@pytest.mark.parametrize("is_over", [True, False])
def test_another_recipe_of_the_same_date_is_refused(recipe: Recipe, is_over: bool) -> None:
    begun(recipe, night("2026-11-01"))
    if is_over:
        with open_run(recipe, name=night("2026-11-01")) as run:
            run.finish()
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(RecipeError, match=r"another recipe \(seed: 3 -> 7\).*another name"):
        open_run(other, name=night("2026-11-01"))
    with open_run(other, name=night("2026-11-02")) as run:
        assert run.record.seeds == {"run": 7}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (night("2026-11-01"), "give the run another date, or the recipe another name"),
        (RunName("mine"), "give the run another name"),
    ],
)
def test_a_named_run_that_cannot_go_on_is_not_told_to_be_fresh(
    recipe: Recipe, name: RunName, remedy: str
) -> None:
    folder = begun(recipe, name).folder
    assert folder.here
    pq.write_table(NODES.empty_table(), folder.here / "commits" / "000001-units.parquet")
    with open_run(recipe, name=name) as run:
        [part] = run.log.parts("units")
        with pytest.raises(StorageError, match=f"columns of its table: {remedy}"):
            run.log.read(part)
    record = json.loads((folder.here / "run.json").read_text()) | {"schema_version": "0"}
    (folder.here / "run.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match=f"tables of version 0.*: {remedy}"):
        open_run(recipe, name=name)
    with pytest.raises(StorageError, match="give --fresh in place of --into"):
        open_run(recipe, into=folder.where)


def test_limits_of_regression_may_change_after_the_night(recipe: Recipe) -> None:
    with open_run(recipe, name=night("2026-11-01")) as run:
        run.finish()
    with pytest.raises(RunEndedError):
        open_run(recipe.model_copy(update={"regression": None}), name=night("2026-11-01"))


def test_a_recipe_that_has_grown_is_told_how_to_go_on(recipe: Recipe) -> None:
    with open_run(recipe, name=night("2026-11-01")) as run:
        run.finish()
    [source] = recipe.data
    more = recipe.model_copy(update={"data": (source.model_copy(update={"size": 9}),)})
    with pytest.raises(RunEndedError, match=r"another data.0.size now: --into .* runs it"):
        open_run(more, name=night("2026-11-01"))


def test_runs_and_partitions_do_not_meet(recipe: Recipe) -> None:
    begun(recipe, night("2026-11-01"))
    with pytest.raises(RecipeError, match="holds partitions by date: give --as another name"):
        open_run(recipe, name=RunName("small"))
    other = recipe.model_copy(update={"name": "mine"})
    begun(other, RunName("mine"))
    with pytest.raises(RecipeError, match="is a run, so no partitions can lie there"):
        open_run(other, name=RunName("mine", "2026-11-01"))


def test_a_run_that_finished_nothing_leaves_no_partition(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError), open_run(recipe, name=night("2026-11-01")):
        raise RecipeError("no GPU")
    assert list((tmp_path / "small").iterdir()) == []


# Who else is at it


def test_the_second_starter_is_told_who_runs_it(recipe: Recipe) -> None:
    run, other = begun(recipe, night("2026-11-01")), live_process()
    assert run.folder.here
    put_claim(run.folder.here, other)
    with pytest.raises(StillRunningError, match=f"written to by process {other.pid} on"):
        open_run(recipe, name=night("2026-11-01"))
    assert (run.folder.here / "writers" / "other.json").exists()


def test_a_night_that_is_still_going_is_left_alone(recipe: Recipe, tmp_path: Path) -> None:
    run, other = begun(recipe, night("2026-11-01")), live_process()
    assert run.folder.here
    put_claim(run.folder.here, other)
    line = (
        f"date=2026-11-01 is still being written to by process {other.pid} on .*: "
        "date=2026-11-02 was not started; --also-if-running runs both"
    )
    with pytest.raises(StillRunningError, match=line):
        open_run(recipe, name=night("2026-11-02"))
    assert [each.name for each in (tmp_path / "small").iterdir()] == ["date=2026-11-01"]
    with open_run(recipe, name=night("2026-11-02"), also_if_running=True) as both:
        both.finish()
    # An earlier one, and a run of another recipe, wait for nobody.
    for each, name in ((recipe, "small"), (recipe.model_copy(update={"name": "b"}), "b")):
        with open_run(each, name=RunName(name, "2026-10-31")) as run:
            run.finish()


def test_a_night_that_was_given_up_is_said_and_not_lost(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    run = begun(recipe, night("2026-11-01"))
    assert run.folder.here
    put_claim(run.folder.here, replace(live_process(), started=1.0))
    with caplog.at_level(logging.WARNING), open_run(recipe, name=night("2026-11-02")) as tonight:
        tonight.finish()
    [line] = [each.message for each in caplog.records if "2026-11-01" in each.message]
    assert "has not ended: --date 2026-11-01 goes on with it, --catch-up" in line
    assert list(unfinished_before(storage_at(recipe.runs_folder), night("2026-11-02"))) == [
        "2026-11-01"
    ]


def test_a_partition_that_is_damaged_does_not_stop_the_next(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(recipe, night("2026-11-01"))
    (tmp_path / "small" / "date=2026-11-01" / "run.json").write_text("{")
    with open_run(recipe, name=night("2026-11-02")) as tonight:
        tonight.finish()
    assert "date=2026-11-01 is passed over" in caplog.text


# How long was worked


def test_the_time_of_a_killed_process_counts_up_to_its_last_commit(
    recipe: Recipe, tmp_path: Path
) -> None:
    run = begun(recipe, RunName("mine"))
    [commit] = list((tmp_path / "mine" / "commits").iterdir())
    path = tmp_path / "mine" / "run.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"seconds": 5.0}))
    os.utime(path, (1000.0, 1000.0))
    os.utime(commit, (1030.0, 1030.0))
    with open_run(recipe, name=RunName("mine")) as again:
        assert again.record.seconds == 35.0
        again._begun -= 7.0
        again.finish()
    assert json.loads(path.read_text())["seconds"] >= 42.0
    with open_run(recipe, into=run.folder.where) as more:
        assert more.record.seconds >= 42.0


# On a store


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_s3(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


def test_a_night_on_a_store_is_done_once(s3: S3Server) -> None:
    recipe = parse_recipe(document(runs_folder=s3.uri("bucket/once")))
    begun(recipe, night("2026-11-01"))
    with open_run(recipe, name=night("2026-11-01")) as run:
        run.finish()
    with pytest.raises(RunEndedError, match=r"date=2026-11-01.* has ended"):
        open_run(recipe, name=night("2026-11-01"))
    files = s3.files("bucket/once")
    assert files == ["bucket/once/small/date=2026-11-01/run.json"]


def test_a_night_on_a_store_that_is_still_going_is_left_alone(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(document(runs_folder=s3.uri("bucket/going")))
    with monkeypatch.context() as patch:
        patch.setattr("jobs.writer_lease.this_process", lambda: Process("far", "", 17, 1.0))
        other = open_run(recipe, name=night("2026-11-01"))
    for day in DAYS[:2]:
        with pytest.raises(StillRunningError, match=r"process 17 on far, heard of \d+ s ago"):
            open_run(recipe, name=night(day))
    other.__exit__()
    assert s3.files("bucket/going") == []


def test_nights_on_a_store_are_read_and_judged(s3: S3Server) -> None:
    runs = storage_at(s3.uri("bucket/judged"))
    for day, shares in zip(DAYS, (GOOD, GOOD, BAD), strict=True):
        write_night(runs, day, shares)
    home = s3.uri("bucket/judged/small")
    assert load_partitions(home, "runs")["date"].to_pylist() == list(DAYS)
    assert judge_recorded(nights_at(home)).is_worse
    written = write_history(nights_at(home), home)
    assert [storage_at(home).has(name) for name in NAMES] == [True] * 3
    assert written[0] == s3.uri("bucket/judged/small/history.png")


@pytest.mark.parametrize("where", ["here", "store"])
def test_of_many_starters_at_once_one_does_the_work(
    s3: S3Server, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.writer_lease.TURNS", 1000)
    folder = str(tmp_path) if where == "here" else s3.uri("bucket/many")
    recipe, starters = parse_recipe(document(runs_folder=folder)), 4
    held, host = threading.local(), Process("host", "", 0, 1.0)
    monkeypatch.setattr("jobs.writer_lease.this_process", lambda: held.process)
    start, worked = threading.Barrier(starters), list[int]()

    def run(number: int) -> str:
        held.process = replace(host, host=f"host{number}", pid=number)
        start.wait()
        try:
            with open_run(recipe, name=night("2026-11-01")) as opened:
                worked.append(number)
                opened.log.commit({"units": waiting_row(1)})
                opened.finish()
            return "done"
        except StillRunningError:
            return "left alone"
        except RunEndedError:
            return "ended already"

    with ThreadPoolExecutor(starters) as threads:
        found = list(threads.map(run, range(starters)))
    assert found.count("done") == len(worked) == 1
    assert set(found) <= {"done", "left alone", "ended already"}


# Exit codes


Started = Callable[..., RunOutcome]


@pytest.fixture
def started(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are not searched but written as nights with good answers, and named here."""
    names: list[str] = []

    def run_recipe(
        recipe: Recipe, *_: Any, name: RunName, also_if_running: bool, **options: Any
    ) -> RunOutcome:
        with open_run(recipe, name=name, also_if_running=also_if_running):
            names.append(name.date)
        shares = BAD if name.date == DAYS[2] else GOOD
        folder = write_night(Path(recipe.runs_folder), name.date, shares)
        return RunOutcome(folder, 0, 0)

    monkeypatch.setattr("jobs.scheduled.run_recipe", run_recipe)
    monkeypatch.setattr("jobs.scheduled.report_at", lambda *_: [])
    monkeypatch.setattr("jobs.scheduled.print_summary", lambda *_: None)
    return names


def code(recipe: Recipe, day: str, **more: Any) -> int:
    return run_to_exit_code(recipe, None, Start(name=night(day), **more), Console(quiet=True))


def test_the_exit_code_is_that_of_the_night_however_often_it_is_started(
    recipe: Recipe, started: list[str]
) -> None:
    assert [code(recipe, day) for day in (DAYS[0], DAYS[0], DAYS[1], DAYS[1])] == [0, 0, 0, 0]
    assert [code(recipe, DAYS[2]), code(recipe, DAYS[2])] == [3, 3]
    assert started == list(DAYS)
    without = recipe.model_copy(update={"regression": None})
    assert code(without, DAYS[2]) == 0


@pytest.mark.parametrize("what", [{"failed": 2}, {"bad": 1}])
def test_an_ended_night_that_was_incomplete_stays_so(
    recipe: Recipe, started: list[str], tmp_path: Path, what: dict[str, int]
) -> None:
    changes = {"runs_folder": str(tmp_path)}
    write_night(tmp_path, DAYS[0], GOOD, changes=changes, **what)  # type: ignore[arg-type]
    assert code(recipe, DAYS[0]) == 1
    assert started == []


def test_catching_up_finishes_the_oldest_first(
    recipe: Recipe, started: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    begun(recipe, night("2026-10-01"))
    begun(recipe.model_copy(update={"seed": 9}), night("2026-10-02"))
    begun(recipe, night("2026-10-03"))
    assert code(recipe, DAYS[0], catch_up=True) == 0
    assert started == ["2026-10-01", "2026-10-03", DAYS[0]]
    assert "2026-10-02 is left as it is: " in caplog.text


def test_catching_up_leaves_a_night_alone_that_is_still_going(
    recipe: Recipe, started: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    going = begun(recipe, night("2026-10-01"))
    begun(recipe, night("2026-10-02"))
    assert going.folder.here
    put_claim(going.folder.here, live_process())
    with pytest.raises(StillRunningError, match=f"date={DAYS[0]} was not started"):
        code(recipe, DAYS[0], catch_up=True)
    assert started == []
    assert code(recipe, DAYS[0], catch_up=True, also_if_running=True) == 0
    assert started == ["2026-10-02", DAYS[0]]
    assert "2026-10-01 is left as it is: " in caplog.text


def test_catching_up_passes_over_a_night_that_ended_meanwhile(
    recipe: Recipe, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_night(Path(recipe.runs_folder), DAYS[0], GOOD)
    monkeypatch.setattr("jobs.scheduled.unfinished_before", lambda *_: [DAYS[0]])
    assert code(recipe, DAYS[1], catch_up=True) == 0
    assert started == [DAYS[1]]


def test_who_is_left_alone_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise StillRunningError("runs/x is being written to by process 3 on far")

    monkeypatch.setattr(jobs.cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        jobs.cli.main()
    assert caught.value.code == 75
    line = "left alone: runs/x is being written to by process 3 on far\n"
    assert capsys.readouterr().err == line
