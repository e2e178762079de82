"""Benchmarks at toy size: they run and print their rows, whatever the figures."""

import pytest

from benchmarks import efficiency, memory, prediction, startup

# Importing Ray Serve warns.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.filterwarnings("default"),
]


def test_efficiency_compares_raw_and_search(capsys: pytest.CaptureFixture[str]) -> None:
    efficiency.main(["--toy", "--engine", "transformers", "--repetitions", "1"])
    assert "dvts, N = 8, 2 problems" in capsys.readouterr().out


def test_memory_measures_trees_and_the_driver(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--toy"])
    out = capsys.readouterr().out
    assert "beam, N = 16" in out
    assert "N = 16 x 10 problems" in out


def test_startup_times_the_first_unit(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--toy", "--repetitions", "1"])
    [row] = [line for line in capsys.readouterr().out.splitlines() if "this" in line]
    first_s, whole_s = (float(cell) for cell in row.split("│")[2:5:2])
    assert 0 < first_s < whole_s


def test_a_prediction_is_compared_with_its_search(capsys: pytest.CaptureFixture[str]) -> None:
    prediction.main(["--toy"])
    assert "predicted / real: median" in capsys.readouterr().out
