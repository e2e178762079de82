"""The benchmark of growth: what it calls a slope, and that it sees every process of a run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import Growth
from benchmarks.process_memory import Watch, noting_task, read_notes
from cluster.admission import Bundle
from search.config import SearchConfig
from search.partition import partition
from search.problem import Problem
from search.rewards import Reduction

MB = 1_000_000


def points(kept: int, count: int = 20) -> list[tuple[int, int]]:
    """200 MB and so many bytes for each of 20,000 problems, with a start that is not counted."""
    stretches = [(1000 * place, 200 * MB + kept * 1000 * place) for place in range(2, count + 1)]
    return [(1000, 50 * MB), *stretches]


@pytest.mark.unit
def test_what_a_problem_leaves_is_the_slope() -> None:
    found = Growth.of("driver", "problem", points(kept=100), 300 * MB)
    assert found.slope[0] == pytest.approx(100)
    held = (found.first_bytes, found.middle_bytes, found.last_bytes)
    assert held == (200.2 * MB, 201 * MB, 202 * MB)
    assert found.ratio == pytest.approx(202 / 201)
    assert found.count == 20_000


@pytest.mark.unit
def test_one_stretch_with_more_is_no_slope() -> None:
    held = points(kept=0)
    held[14] = (held[14][0], 280 * MB)
    found = Growth.of("driver", "problem", held, 300 * MB)
    assert found.slope[0] == 0
    assert found.ratio == 1


@pytest.mark.unit
def test_the_watch_sees_what_this_process_takes() -> None:
    watch = Watch(every=2)
    with watch.looking():
        watch.advance()
        taken = bytearray(os.urandom(1)) * (64 * MB)
        watch.advance()
    [own] = (each for each in watch.found if each.pid == os.getpid())
    assert own.kind == "driver"
    assert own.most[1] - own.least[0] > len(taken) // 2


@pytest.mark.unit
def test_a_worker_notes_how_many_units_it_has_run(tmp_path: Path) -> None:
    ran: list[tuple[Bundle, str]] = []

    def task(bundle: Bundle, site: str) -> Iterator[str]:
        ran.append((bundle, site))
        yield "tables"

    problem = Problem("p", "1 + 1 =", "2")
    [unit] = partition(problem, SearchConfig("majority", 1, 1, 1, Reduction.LAST, 1), 1)
    noted = noting_task(task, tmp_path)
    for units in (1, 3):
        assert list(noted(Bundle((unit,) * units), "site")) == ["tables"]
    [(pid, points)] = read_notes(tmp_path).items()
    assert pid == os.getpid()
    assert [units for units, _ in points] == [1, 4]
    assert len(ran) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("no_ray_token")
@pytest.mark.filterwarnings("default")  # importing Ray Serve warns
def test_a_run_shows_every_kind_of_process(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--toy"])
    out = capsys.readouterr().out
    for process in ("driver", "worker", "policy replica", "PRM replica", "Serve's controller"):
        assert f"│ {process} " in out
    assert "200 problems: the driver held" in out
