"""A run that goes on says so: in lines, in progress.json, and to whoever looks from elsewhere."""

import io
import json
import logging
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console
from test_cli import branchwise
from test_results import synthetic_run

from cluster.admission import Bundle
from cluster.attempts import Attempts
from cluster.backlog import Backlog
from cluster.fanout import Site
from cluster.flight import Flight, InFlight
from cluster.machines import Machines
from cluster.readiness import replicas_ready
from jobs import run_watch
from jobs.progress import Speed, Tally
from jobs.progress_file import NAME, RunProgress, Searching, read_progress
from jobs.results import RECORD, load_run, new_record
from jobs.run_watch import Every, RunWatch
from jobs.storage import storage_at
from jobs.top import show_run
from jobs.writer_lease import WriterLease, living_writer, this_process
from search.config import SearchConfig
from search.errors import StorageError
from search.partition import partition
from search.problem import Problem
from search.rewards import Reduction

pytestmark = pytest.mark.unit

SITE = Site("small", "policy", "", 0, 0, 60.0)
TALLY = Tally(
    units_done=9,
    units_failed=1,
    problems_done=3,
    answers_graded=400,
    answers_correct=100,
    prefix_tokens=1000,
    computed_prefix_tokens=30,
    prm_computed_tokens=210,
    prm_minimal_tokens=200,
)
SEARCHING = Searching(
    problems=12,
    units=40,
    tally=TALLY,
    in_flight=InFlight(2, 8, 128, 256, 1, 3, 1),
    policy_tokens_s=1234.4,
    prm_tokens_s=987.6,
    silent_s=4.0,
    left_s=3725.0,
)
PROGRESS = RunProgress(
    run_id="",
    doing="searching",
    policies=("small", "large"),
    place=1,
    seconds=61.0,
    every_s=5.0,
    written_at="2026-01-01T12:00:00+00:00",
    searching=SEARCHING,
    replicas={"policy": (1, 2), "prm": (1, 1)},
)


def begun(folder: Path) -> str:
    """A run folder with a record of a run that has not ended; returns its id."""
    record = new_record("demo", {"seed": 1}, "digest")
    storage_at(folder).write(RECORD, json.dumps(asdict(record)).encode())
    return record.run_id


def shown(folder: Path) -> tuple[bool, str]:
    """What `top` says without a terminal."""
    out = io.StringIO()
    ended_well = show_run(str(folder), False, Console(file=out, width=100))
    return ended_well, out.getvalue()


# Counts


def test_a_tally_adds_what_units_brought(tmp_path: Path) -> None:
    units, tally = load_run(synthetic_run(tmp_path)).units, Tally()
    for place in range(units.num_rows):
        tally.add_unit(units.slice(place, 1))
    assert tally.units == units.num_rows
    assert tally.units_failed == units["status"].to_pylist().count("error")
    assert tally.generated_tokens == pa.compute.sum(units["generated_policy_tokens"]).as_py()
    assert tally.prm_minimal_tokens == pa.compute.sum(units["minimal_prm_tokens"]).as_py()


def test_a_speed_is_that_of_the_last_minute() -> None:
    speed = Speed(0.0)
    assert speed.add(10.0, 100) == 10.0
    assert speed.add(60.0, 100) == pytest.approx(100 / 60)
    assert [speed.add(seconds, 100) for seconds in (65.0, 75.0, 200.0)][-1] == 0.0


def test_what_is_in_flight_is_looked_at() -> None:
    config = SearchConfig("best_of_n", 8, 1, 8, Reduction.LAST, 0)
    units = tuple(partition(Problem("p", "", ""), config, 4))
    running, machines, flight = {1: Bundle(units)}, Machines(), Flight()
    assert flight.now() == InFlight()
    flight.follow(running, Attempts(1, Backlog()), machines, lambda: 256)
    assert flight.now() == InFlight(1, 2, 8, 256)
    running.clear()
    machines.tasks_lost = 2
    assert flight.now() == InFlight(solutions_admitted=256, tasks_lost=2)


# Lines and the file


class Waiting(logging.Handler):
    """Keeps a line, and lets one wait for it: the first that has some words in it."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words, self.found, self.record = words, threading.Event(), None

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage() and self.record is None:
            self.record: Any = record
            self.found.set()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is done by the clock is done at once."""
    for name in ("METRICS_INTERVAL_S", "FILE_INTERVAL_S", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(run_watch, name, 0.02)


def line_of(words: str) -> Any:
    """The record of the next line with these words."""
    log, handler = logging.getLogger("branchwise"), Waiting(words)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        assert handler.found.wait(60)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    return handler.record


@pytest.mark.usefixtures("quick")
def test_lines_come_though_nothing_finishes(tmp_path: Path) -> None:
    with RunWatch("run-1", storage_at(tmp_path), Console(quiet=True), lambda: 0) as watch:
        watch.deploying(["small"], 0)
        before = line_of("deploying small for ")
        with watch.searching(SITE, 4, 10):
            record = line_of("units in flight, nothing finished for ")
        assert (before.run, before.policy) == ("run-1", "")
    assert (record.run, record.policy) == ("run-1", "small")
    assert record.getMessage().startswith("0/4 problems, 0 solutions, ")


@pytest.mark.usefixtures("quick")
def test_a_terminal_gets_no_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    caplog.set_level(logging.INFO)
    with RunWatch("run-1", storage_at(tmp_path), console, lambda: 0) as watch:
        while read_progress(storage_at(tmp_path)) is None:
            time.sleep(0.01)
        watch.begins("writing the tables")
    assert caplog.messages == ["writing the tables"]


@pytest.mark.usefixtures("quick")
def test_the_file_says_how_far_the_run_is_and_goes_with_its_end(tmp_path: Path) -> None:
    folder = storage_at(tmp_path)
    with RunWatch("run-1", folder, Console(quiet=True), lambda: 0) as watch:
        watch.deploying(["small", "large"], 1)
        with watch.searching(SITE, 4, 10) as search:
            search.display.tally.problems_done = 3
            while not (found := read_progress(folder)) or not found.searching:
                time.sleep(0.01)
    assert (found.run_id, found.doing, found.policy) == ("run-1", "searching", "large")
    assert found.searching.problems == 4
    assert folder.lacks(NAME)


@pytest.mark.usefixtures("quick")
def test_a_run_that_breaks_leaves_the_file(tmp_path: Path) -> None:
    folder = storage_at(tmp_path)

    def break_off() -> None:
        with RunWatch("run-1", folder, Console(quiet=True), lambda: 0):
            while read_progress(folder) is None:
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert folder.has(NAME)


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder, looked = storage_at(tmp_path / "file" / "run"), threading.Event()

    def count() -> int:
        looked.set()
        return 0

    with RunWatch("run-1", folder, Console(quiet=True), count) as watch:
        watch.deploying(["small"], 0)
        with watch.searching(SITE, 4, 10):
            looked.clear()
            assert looked.wait(60)


def test_a_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_watch, "_LONGEST_END_S", 0.01)
    hangs, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        may_end.wait(60)

    thread = Every("hanging", 0.001, hang)
    thread.start()
    assert hangs.wait(60)
    thread.stop()
    assert thread.is_alive()
    may_end.set()
    thread.join(60)
    assert not thread.is_alive()


def test_progress_comes_back_from_its_file(tmp_path: Path) -> None:
    folder = storage_at(tmp_path)
    folder.write(NAME, PROGRESS.as_json())
    assert read_progress(folder) == PROGRESS
    for damaged in (b"", b"{}", b"\xff", PROGRESS.as_json()[:-9], b"[" * 9999):
        folder.write(NAME, damaged)
        assert read_progress(folder) is None


# Who looks from elsewhere


def test_a_run_that_goes_on_is_drawn_without_terminal_codes(tmp_path: Path) -> None:
    run_id, folder = begun(tmp_path), storage_at(tmp_path)
    lease = WriterLease(folder).take()
    try:
        assert shown(tmp_path) == (True, f"{run_id}: it has begun and says nothing yet\n")
        folder.write(NAME, replace(PROGRESS, run_id=run_id).as_json())
        goes_on, text = shown(tmp_path)
    finally:
        lease.release()
    lines = [line.split(maxsplit=1) for line in map(str.rstrip, text.splitlines())]
    assert goes_on
    assert "\x1b" not in text
    assert lines[0] == [run_id, "searching with small (1 of 2), for 0:01:01"]
    found = {" ".join(line[:1]): line[1] for line in lines[1:]}
    assert found["problems"] == "3/12 problems"
    assert found["units"].endswith("10/40, about 1:02:05 left")
    assert found["solutions"] == "400 graded, 25.0% correct"
    assert found["last"] == "news  0:00:04 before the driver was heard of"
    flight = "flight  8 units in 2 tasks, 128 of 256 solutions, 1 to be run again"
    assert found["in"] == flight
    assert found["policy"] == "1,234 tokens/s, 97.0% of prefixes cached"
    assert found["PRM"] == "988 tokens/s, 1.05 of the fewest possible"
    assert found["faults"] == "1 units failed, 3 run again, 1 tasks lost"
    assert found["replicas"] == "policy 1/2, prm 1/1 ready"
    assert found["heard"].endswith(f"ago, of {this_process()}")


def test_a_run_without_a_driver_is_one_line(tmp_path: Path) -> None:
    run_id, folder = begun(tmp_path), storage_at(tmp_path)
    killed = f"{run_id} is not running: its driver has ended or was killed before the end"
    assert shown(tmp_path) == (False, f"{killed}; run its recipe again to go on\n")
    folder.write(NAME, PROGRESS.as_json())
    assert shown(tmp_path) == (
        False,
        f"{killed} with 3/12 problems of small, last heard of at {PROGRESS.written_at}; "
        "run its recipe again to go on\n",
    )


def test_a_process_that_is_gone_writes_no_more(tmp_path: Path) -> None:
    folder = storage_at(tmp_path)
    gone = replace(this_process(), started=this_process().started - 1000)
    elsewhere = replace(this_process(), machine="another")
    for process, file_age_s, writes in (
        (gone, 0, False),
        (elsewhere, 0, True),
        (elsewhere, 90, False),
    ):
        lease = WriterLease(folder, process).take()
        lease.stop()
        [claim] = (tmp_path / "writers").iterdir()
        then = time.time() - file_age_s
        os.utime(claim, (then, then))
        assert living_writer(folder) == (process if writes else None)
        claim.unlink()


def test_a_run_that_has_ended_is_one_line(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path)
    finished_at = load_run(folder).record["finished_at"]
    (folder / NAME).write_bytes(PROGRESS.as_json())
    line = f"{folder.name} has ended at {finished_at}: branchwise report {folder}\n"
    assert shown(folder) == (True, line)


def test_a_terminal_is_redrawn_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the folder cannot be read."""
    run_id, folder = begun(tmp_path), storage_at(tmp_path)
    folder.write(NAME, PROGRESS.as_json())
    lease, out = WriterLease(folder).take(), io.StringIO()
    record, naps = (tmp_path / RECORD).read_bytes(), iter(range(9))

    def nap(seconds: float) -> None:
        turn = next(naps)
        if turn == 1:
            (tmp_path / RECORD).unlink()
        if turn == 2:
            finished = json.loads(record) | {"finished_at": "2026-01-01T13:00:00+00:00"}
            (tmp_path / RECORD).write_text(json.dumps(finished))

    monkeypatch.setattr(time, "sleep", nap)
    try:
        assert show_run(str(tmp_path), False, Console(file=out, force_terminal=True, width=200))
    finally:
        monkeypatch.undo()
        lease.release()
    text = out.getvalue()
    assert next(naps) == 3
    assert "not a run folder" in text
    assert text.endswith(
        f"{run_id} has ended at 2026-01-01T13:00:00+00:00: branchwise report {tmp_path}\n"
    )


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a run folder"):
        shown(tmp_path)
    answer = branchwise("top", tmp_path, "--once")
    assert answer.code == 2
    assert answer.err == f"error: {tmp_path} is not a run folder: no readable run.json there\n"
    assert not answer.loaded & {"ray", "torch", "transformers", "vllm"}


def test_top_exits_by_what_it_saw(tmp_path: Path) -> None:
    run_id = begun(tmp_path)
    answer = branchwise("top", tmp_path)
    assert (answer.code, answer.err) == (1, "")
    assert answer.out.startswith(f"{run_id} is not running")
    assert branchwise("top", synthetic_run(tmp_path / "runs")).code == 0


# Replicas


@pytest.mark.filterwarnings("ignore")  # of Serve's own models, as it is imported
def test_ready_replicas_are_counted_by_application(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import (
        ApplicationStatus,
        ApplicationStatusOverview,
        DeploymentStatus,
        DeploymentStatusOverview,
        ServeStatus,
    )

    def application(**states: int) -> ApplicationStatusOverview:
        deployment = DeploymentStatusOverview(
            DeploymentStatus.UPDATING, "CONFIG_UPDATE_STARTED", states, ""
        )
        return ApplicationStatusOverview(
            ApplicationStatus.DEPLOYING, "", 0.0, {"PolicyReplica": deployment}
        )

    def gone() -> ServeStatus:
        raise RayServeException("there is no Serve")

    assert replicas_ready() == {}
    found = {
        "policy": application(RUNNING=2, STARTING=1, STOPPING=4),
        "prm": application(STARTING=1),
        "new": ApplicationStatusOverview(ApplicationStatus.DEPLOYING, "", 0.0, {}),
    }
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(serve, "status", lambda: ServeStatus(applications=found))
    assert replicas_ready() == {"policy": (2, 3), "prm": (0, 1), "new": (0, 0)}
    monkeypatch.setattr(serve, "status", gone)
    assert replicas_ready() == {}
