"""The figure of accuracy by difficulty: a row for each policy, a panel for each bin."""

from pathlib import Path
from typing import TYPE_CHECKING

from jobs.by_difficulty import BINS, BinAccuracy, BinnedPoint, BinnedPolicy, ByDifficulty
from jobs.report_figure import (
    FIGURE_STYLE,
    draw_interval_line,
    label_axes,
    labelled,
    line_name,
    strategy_look,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = dict[tuple[str, int], list[tuple[int, BinAccuracy]]]


def draw_difficulty(runs: list[tuple[str, ByDifficulty]], png: Path, svg: Path) -> None:
    """A line a strategy, 95 % intervals; equal runs give equal files.

    runs: each run's label and its bins, at least one policy with bins among them.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(label, found, policy) for label, found in runs for policy in found.policies]
    with mpl.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(3.1 * len(BINS), 2.5 * len(rows) + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(BINS), sharex=True, sharey=True, squeeze=False)
        for axes, (label, found, policy) in zip(grid, rows, strict=True):
            head = f"{label}\n" if len(runs) > 1 else ""
            _fill_row(list(axes), found, policy, head)
        ns = [point.n for _, found in runs for point in found.points]
        label_axes(list(grid.ravel()), ns)
        named = labelled(list(grid.ravel()))
        handles, labels = list(named.values()), list(named)
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def _fill_row(axes: list["Axes"], found: ByDifficulty, policy: BinnedPolicy, head: str) -> None:
    points = [point for point in found.points if point.policy == policy.policy]
    for axis, name in zip(axes, BINS, strict=True):
        count = len(policy.absolute[name])
        noun = "problem" if count == 1 else "problems"
        axis.set_title(f"{head}{policy.policy}: {name}, {count} {noun}", fontsize=10)
        _draw_bin(axis, points, name)
    axes[0].set_ylabel("accuracy")


def _draw_bin(axis: "Axes", points: list[BinnedPoint], name: str) -> None:
    lines: Lines = {}
    for point in points:
        line = lines.setdefault((point.rule, point.branching), [])
        if name in point.bins:
            line.append((point.n, point.bins[name]))
    seen: dict[str, int] = {}
    for kind, line in lines.items():
        strategy = kind[0].partition(" ")[0]
        number = seen[strategy] = seen.get(strategy, -1) + 1
        if line:
            held = [(each.accuracy, each.low, each.high) for _, each in line]
            name_of_line = line_name(kind, list(lines))
            look = strategy_look(strategy, number)
            draw_interval_line(axis, [n for n, _ in line], held, look, name_of_line)
