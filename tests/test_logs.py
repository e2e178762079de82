"""Log lines name the run, the policy, the unit and the problem that they are about."""

import asyncio
import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import stamina
from test_attempts import site

from cluster import attempts
from cluster.attempts import Attempts
from cluster.backlog import Backlog
from cluster.fanout import failed_unit
from cluster.logs import FORMAT, JsonLines, TextLines, about, about_units, set_up_logging
from jobs import storage
from jobs.storage import storage_at
from search.config import SearchConfig
from search.errors import RecipeError
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction

pytestmark = pytest.mark.unit

log = logging.getLogger("branchwise")
CONFIG = SearchConfig("best_of_n", 4, 1, 4, Reduction.LAST, 0)


def units(names: str) -> list[WorkUnit]:
    return [unit for name in names for unit in partition(Problem(name, "", ""), CONFIG, 4)]


class Lines(logging.Handler):
    """Keeps what a formatter makes of each record."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def said(formatter: logging.Formatter, act: Callable[[], None]) -> list[str]:
    """The lines of what is logged meanwhile."""
    handler = Lines(formatter)
    log.addHandler(handler)
    try:
        act()
    finally:
        log.removeHandler(handler)
    return handler.lines


def as_json(act: Callable[[], None]) -> list[dict[str, object]]:
    return [json.loads(line) for line in said(JsonLines(), act)]


def test_a_line_of_text_ends_with_what_it_is_about() -> None:
    [unit] = units("p")

    def act() -> None:
        with about(run="r"), about(policy="small"):
            log.warning("%d failed", 1, extra=about_units(unit))
        log.warning("of nothing")

    named, bare = said(TextLines(), act)
    assert named[8:] == f" 1 failed [run r, policy small, unit {unit.unit_id}, problem p]"
    assert bare[8:] == " of nothing"


def test_a_line_of_many_units_shows_some_of_them() -> None:
    [line] = said(TextLines(), lambda: log.warning("lost", extra=about_units(*units("abcde"))))
    assert line.endswith("problem a + b + c + 2 more]")


def test_a_line_of_json_has_its_names_as_keys() -> None:
    def act() -> None:
        with about(run="r", policy="small"):
            log.warning('said "%s"', "so\nit is", extra=about_units(*units("p")))
            log.warning("two", extra=about_units(*units("pq")))

    one, two = as_json(act)
    assert one.pop("time", "").endswith("+00:00")  # type: ignore[attr-defined]
    assert one == {
        "level": "warning",
        "logger": "branchwise",
        "message": 'said "so\nit is"',
        "run": "r",
        "policy": "small",
        "unit": units("p")[0].unit_id,
        "problem": "p",
    }
    assert two["problem"] == ["p", "q"]


def test_a_traceback_is_a_key_of_its_line() -> None:
    def act() -> None:
        try:
            raise ValueError("deep")
        except ValueError:
            log.exception("it broke")

    [line] = as_json(act)
    assert line["message"] == "it broke"
    assert str(line["traceback"]).endswith("ValueError: deep")


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT, "xml")
    with pytest.raises(RecipeError, match="BRANCHWISE_LOG=xml is no format of log lines"):
        set_up_logging()


def test_a_unit_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.0)
    [unit] = units("p")
    failed = failed_unit(unit, site(2), OSError("it broke"), 0.0)

    async def fail_twice() -> None:
        tries = Attempts(2, Backlog(is_open=True))
        assert tries.tries_again(failed)
        assert not tries.tries_again(failed)
        assert tries.again == 1

    again, for_good = as_json(lambda: asyncio.run(fail_twice()))
    assert (again["unit"], again["problem"]) == (unit.unit_id, "p")
    assert again["message"] == "a work unit failed and is run again in 0 s: OSError: it broke"
    assert (for_good["unit"], for_good["problem"]) == (unit.unit_id, "p")
    assert for_good["message"] == "a work unit failed: OSError: it broke"


def test_what_a_store_refuses_for_a_while_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [OSError(errno.ENOSPC, "No space left on device")] * 2
    write = storage._write_here

    def write_when_there_is_room(path: Path, content: bytes) -> None:
        if full:
            raise full.pop()
        write(path, content)

    monkeypatch.setattr(storage, "_write_here", write_when_there_is_room)
    with stamina.set_testing(True, attempts=3):
        [line] = as_json(lambda: storage_at(tmp_path).write("a", b"x"))
    assert line["message"] == (
        f"cannot write a in {tmp_path}, it is tried again for 300 s: "
        "[Errno 28] No space left on device"
    )
    assert (tmp_path / "a").read_bytes() == b"x"
