"""Writes the table and the figure of docs/performance.md from what the benchmarks have left.

`python -m benchmarks.page [FOLDER]`: FOLDER has the JSON files that benchmarks write with `--to`;
without it, those beside the docs. A figure that is missing there is missing in the table.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.results import Result
from cluster.repository import REPOSITORY

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

RESULTS = REPOSITORY / "docs" / "benchmarks"
PAGE = REPOSITORY / "docs" / "performance.md"
FIGURE = REPOSITORY / "docs" / "images" / "performance.png"
BEGIN, END = "<!-- written by benchmarks.page -->\n", "<!-- end -->\n"
HEAD = (
    "| what | goal | measured | spread | what separates it from its limit | command |\n"
    "|---|--:|--:|--:|---|---|\n"
)
GOOD, SHORT = "#2a7f62", "#c1582e"


@dataclass(frozen=True, slots=True)
class Measured:
    """One file: a command and its results."""

    command: str
    date: str
    machine: str
    versions: dict[str, str]
    results: list[Result]


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    folder = Path(arguments[0]) if arguments else RESULTS
    files = [measured(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    if not files:
        raise SystemExit(f"{folder} has no results: run make bench")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    written = table(files)
    PAGE.write_text(before + BEGIN + "\n" + written + "\n" + END + after)
    print(written)
    draw([each for file in files for each in file.results], FIGURE)


def measured(document: dict[str, Any]) -> Measured:
    """A file's contents."""
    results = [Result(**each) for each in document.pop("results")]
    return Measured(results=results, **document)


def table(files: Sequence[Measured]) -> str:
    """All results as Markdown, and on what they were measured."""
    rows = [_row(file, each) for file in files for each in file.results]
    dates = sorted({file.date for file in files})
    versions = ", ".join(f"{name} {version}" for name, version in files[-1].versions.items())
    where = f"Measured {' and '.join(dates)}; {files[-1].machine}; {versions}."
    return HEAD + "".join(rows) + f"\n{where}\n"


def _row(file: Measured, each: Result) -> str:
    bound = "at most" if each.at_most else "at least"
    spread = "" if each.low == each.high else f"{_number(each.low)} to {_number(each.high)}"
    figure = _number(each.figure) if each.met else f"**{_number(each.figure)}**"
    cells = (each.what, f"{bound} {each.goal:,g}", figure, spread, each.apart, f"`{file.command}`")
    return f"| {' | '.join(cells)} |\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def draw(results: Sequence[Result], path: Path) -> None:
    """How far each figure is beyond its goal (1), with its spread; short ones in another colour."""
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(results) + 1.2))
    for place, each in enumerate(reversed(results)):
        middle, *ends = (_beyond(each, value) for value in (each.figure, each.low, each.high))
        axes.barh(place, middle, color=GOOD if each.met else SHORT, height=0.6)
        axes.plot(ends, [place, place], color="black", linewidth=1)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(results)), [each.what for each in reversed(results)], fontsize=7)
    axes.set_xlabel("times as good as the goal (dashed)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _beyond(each: Result, value: float) -> float:
    return each.goal / value if each.at_most else value / each.goal


if __name__ == "__main__":
    main()
