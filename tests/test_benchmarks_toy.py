"""Benchmarks at toy size: they run and print their rows, whatever the figures."""

import os
from collections.abc import Iterator

import pytest

from benchmarks import efficiency, memory

# Importing Ray Serve warns.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _no_token() -> Iterator[None]:
    """A throw-away cluster does without Ray's token file."""
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    yield
    if before is None:
        del os.environ["RAY_AUTH_MODE"]
    else:
        os.environ["RAY_AUTH_MODE"] = before


def test_efficiency_compares_raw_and_search(capsys: pytest.CaptureFixture[str]) -> None:
    efficiency.main(["--toy", "--engine", "transformers", "--repetitions", "1"])
    assert "dvts, N = 8, 2 problems" in capsys.readouterr().out


def test_memory_measures_trees_and_the_driver(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--toy"])
    out = capsys.readouterr().out
    assert "beam, N = 16" in out
    assert "N = 16 x 10 problems" in out
