"""The figure of what is lost in selection: a panel a search, between its baselines and ceilings."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.report_figure import FIGURE_STYLE, label_axes, strategy_look
from jobs.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[str, str, str, int]


# Of a line above a panel.
TITLE_CHARACTERS = 32


def draw_selection(runs: list[tuple[str, list[Selection]]], png: Path, svg: Path) -> None:
    """A row for each policy, a panel for each of its searches; equal runs give equal files.

    runs: each run's label and its selections.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(runs)
    rows = list(dict.fromkeys(panel[:2] for panel in panels))
    columns = max((sum(p[:2] == row for p in panels) for row in rows), default=1)
    with mpl.rc_context(FIGURE_STYLE):
        size = (max(6.0, 2.9 * columns), 2.6 * max(1, len(rows)) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(max(1, len(rows)), columns, sharey=True, squeeze=False)
        used = [_fill_row(list(grid[place]), row, panels) for place, row in enumerate(rows)]
        _finish(figure, [axis for axes in used for axis in axes], panels)
        for axis in set(grid.ravel()) - {axis for axes in used for axis in axes}:
            axis.set_visible(False)
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def _panels(runs: list[tuple[str, list[Selection]]]) -> dict[Panel, list[Selection]]:
    """The points of each panel by N; the run's label is empty if there is one run only."""
    panels: dict[Panel, list[Selection]] = {}
    for label, selections in runs:
        for each in selections:
            point = each.point
            run = label if len(runs) > 1 else ""
            panels.setdefault((run, point.policy, point.rule, point.branching), []).append(each)
    return {panel: sorted(line, key=lambda s: s.point.n) for panel, line in panels.items()}


def _fill_row(
    axes: list["Axes"], row: tuple[str, ...], panels: dict[Panel, list[Selection]]
) -> list["Axes"]:
    """Draws a policy's searches from the left; returns the axes that have one."""
    mine = [panel for panel in panels if panel[:2] == row]
    several = len({panel[2] for panel in mine}) < len(mine)
    for axis, panel in zip(axes, mine, strict=False):
        run, policy, strategy, branching = panel
        width = f", M = {branching}" if several and branching > 1 else ""
        head = f"{run}\n" if run else ""
        title = textwrap.fill(f"{policy}: {strategy}{width}", TITLE_CHARACTERS)
        axis.set_title(head + title, fontsize=10)
        _draw_search(axis, panels[panel])
    axes[0].set_ylabel("accuracy")
    return axes[: len(mine)]


def _draw_search(axis: "Axes", line: list[Selection]) -> None:
    colour, marker = strategy_look(line[0].point.strategy)
    ns = [each.point.n for each in line]
    selected = [each.point.expected_correct for each in line]
    leaves = [each.leaves for each in line]
    drawn: list[tuple[str, list[float], dict[str, Any]]] = [
        ("leaves of the tree", leaves, {"linestyle": ":", "marker": "v", "linewidth": 1.6}),
        ("pass@N", [e.coverage.expected_correct for e in line], {"linestyle": "--", "marker": "^"}),
        ("majority vote", [e.majority.expected_correct for e in line], {"marker": "x"}),
    ]
    axis.fill_between(ns, selected, leaves, color="0.88", linewidth=0, label="selection gap")
    for label, values, style in drawn:
        axis.plot(ns, values, color="0.45", markersize=4, label=label, **style)
    axis.plot(ns, selected, color=colour, marker=marker, markersize=5, linewidth=2)
    axis.axhline(line[0].single.expected_correct, color="0.25", linestyle="-.", linewidth=1.1)
    if len(line) == 1:
        axis.plot(ns * 2, [selected[0], leaves[0]], color="0.85", linewidth=6, zorder=0)


def _finish(figure: Any, axes: list["Axes"], panels: dict[Panel, list[Selection]]) -> None:
    """Scales shared by all panels, and one legend for them."""
    from matplotlib.lines import Line2D

    label_axes(axes, [each.point.n for line in panels.values() for each in line])
    named = {label: line for a in axes for line, label in zip(*a.get_legend_handles_labels())}  # noqa: B905
    own = {
        "selected (the strategy's colour)": Line2D(
            [], [], color="#0072B2", marker="o", linewidth=2
        ),
        "one sample": Line2D([], [], color="0.25", linestyle="-.", linewidth=1.1),
    }
    legend = own | {label: named[label] for label in sorted(named)}
    if axes:
        handles, labels = list(legend.values()), list(legend)
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
