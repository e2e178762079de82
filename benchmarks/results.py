"""What benchmarks leave for docs/performance.md: one figure for each goal, in JSON files."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobs.results import library_versions


@dataclass(frozen=True, slots=True)
class Result:
    """A figure against its goal: the median of the repetitions and their range.

    `at_most`: the goal is an upper bound, otherwise a lower one. `apart`: what still separates the
    figure from its physical limit, in a few words.
    """

    what: str
    goal: float
    at_most: bool
    figure: float
    low: float
    high: float
    apart: str

    @property
    def met(self) -> bool:
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal


def result(
    what: str, goal: float, figures: Sequence[float], apart: str, *, at_most: bool = False
) -> Result:
    """A result from its repetitions, at least one."""
    middle = statistics.median(figures)
    return Result(what, goal, at_most, middle, min(figures), max(figures), apart)


def writes_results(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names the file."""
    parser.add_argument("--to", metavar="FILE", help="also write the results here, as JSON")


def write_results(path: str | None, command: str, results: Sequence[Result]) -> None:
    """Writes them, with the machine and the versions; does nothing without a path."""
    if path is None:
        return
    document = {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version for name, version in library_versions().items() if version},
        "results": [asdict(each) for each in results],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(document, indent=2) + "\n")
