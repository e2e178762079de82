"""The benchmarks of scaling, room and latency at toy size, in virtual time only."""

import statistics

import pytest

from benchmarks import latency, room
from benchmarks.scaling import TOY, main, virtual

pytestmark = pytest.mark.unit


def test_more_replicas_with_more_work_take_about_as_long() -> None:
    one, two = virtual(TOY, "weak")
    assert (one.replicas, two.replicas) == (1, 2)
    assert min(two.efficiency) > 0.5


@pytest.mark.parametrize("kind", ["strong", "strong, beam"])
def test_one_problem_is_no_slower_on_two_replicas(kind: str) -> None:
    one, two = virtual(TOY, kind)
    assert statistics.median(two.seconds) < 1.1 * statistics.median(one.seconds)


def test_the_command_prints_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--toy"])
    printed = capsys.readouterr().out
    for kind in ("weak", "strong", "strong, beam"):
        assert printed.count(f"{kind}, virtual") == 2


def test_more_under_way_fills_batches_better(capsys: pytest.CaptureFixture[str]) -> None:
    room.main(["--toy"])
    rows = [line.split("│")[3:-1] for line in capsys.readouterr().out.splitlines() if "N =" in line]
    assert len(rows) == len(room.SEARCHES) * len(room.VARIATIONS)
    # A search that fills all rooms alone, as beam with N = 256 does, gains nothing.
    gains = [float(row[len(room.ROOMS) - 1]) - float(row[0]) for row in rows]
    assert min(gains) >= 0
    assert sum(gain > 0 for gain in gains) == 3 * len(room.VARIATIONS)


def test_one_problem_alone_has_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    latency.main(["--toy"])
    out = capsys.readouterr().out
    assert out.count("speculative, limit") == len(latency.AUCS)
    assert "NO" not in out


def test_a_toy_through_serve_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        latency.main(["--toy", "--only", "serve"])
    assert "--toy is without Ray" in capsys.readouterr().err
