"""The figure of accuracy against cost: a row for tokens, a row for FLOPs, a panel for each policy.

The compute-optimal frontier and the single samples of all policies stand in every panel of a row,
so that each policy is seen against all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.budget_curves import Budgets, Priced
from jobs.budgets import Measure
from jobs.report_figure import (
    FIGURE_STYLE,
    accuracy_range,
    draw_interval_line,
    labelled,
    line_dash,
    line_name,
    panel_title,
    strategy_look,
)
from jobs.reported_run import ReportedRun, count_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    Measure.TOKENS: "tokens a problem, policy and PRM",
    Measure.FLOPS: "FLOPs a problem, policy and PRM",
}
PricedRuns = Sequence[tuple[ReportedRun, Budgets]]


@dataclass(frozen=True, slots=True)
class _Panel:
    policy: str
    measure: Measure


def draw_budgets(runs: PricedRuns, png: Path, svg: Path) -> None:
    """A panel a policy and measure, a line a strategy, 95 % intervals; equal runs, equal files.

    A measure that no run counts has no row.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    policies = list(dict.fromkeys(name for run, _ in runs for name in run.policies))
    rows = [m for m in AXES if any(m in budgets.measures for _, budgets in runs)]
    with mpl.rc_context(FIGURE_STYLE):
        size = (max(6.0, 3.3 * len(policies)), 2.9 * len(rows) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            len(rows), max(1, len(policies)), sharex="row", sharey=True, squeeze=False
        )
        for measure, axes in zip(rows, grid, strict=True):
            for policy, axis in zip(policies, axes, strict=False):
                _fill_panel(axis, _Panel(policy, measure), runs)
            axes[0].set_ylabel("accuracy")
        _finish(figure, list(grid.ravel()))
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def _fill_panel(axis: "Axes", panel: _Panel, runs: PricedRuns) -> None:
    axis.set_title(panel_title(panel.policy, [run for run, _ in runs]), fontsize=10)
    if any(each.cost(panel.measure) > 0 for _, budgets in runs for each in budgets.lines):
        axis.set_xscale("log")
    axis.set_xlabel(AXES[panel.measure])
    for place, (run, budgets) in enumerate(runs):
        if panel.measure in budgets.measures:
            label = f", {run.label}" if len(runs) > 1 else ""
            _draw_frontier(axis, budgets.frontier(panel.measure), panel.measure, place, label)
            _draw_lines(axis, budgets, panel, place, label)
            _draw_singles(axis, budgets.singles, panel, place)


def _draw_frontier(
    axis: "Axes", found: list[Priced], measure: Measure, place: int, label: str
) -> None:
    costs = [each.cost(measure) for each in found]
    values = [each.point.expected_correct for each in found]
    axis.step(
        costs,
        values,
        where="post",
        color="0.45",
        linewidth=4,
        alpha=0.45,
        linestyle=line_dash(place),
        zorder=1,
        label=f"best of all policies at each cost{label}",
    )


def _draw_lines(axis: "Axes", budgets: Budgets, panel: _Panel, place: int, label: str) -> None:
    kinds = sorted({(p.rule, p.point.branching) for p in budgets.lines})
    seen: dict[str, int] = {}
    for kind in kinds:
        line = [
            p
            for p in budgets.lines
            if p.point.policy == panel.policy and (p.rule, p.point.branching) == kind
        ]
        strategy = kind[0].partition(" ")[0]
        number = seen[strategy] = seen.get(strategy, -1) + 1
        if line:
            name = line_name(kind, kinds) + label
            _draw_line(axis, line, panel.measure, strategy_look(strategy, number), name)


def _draw_line(
    axis: "Axes", line: list[Priced], measure: Measure, look: tuple[str, str], label: str
) -> None:
    ordered = sorted(line, key=lambda p: p.cost(measure))
    points = [each.point for each in ordered]
    held = [(p.expected_correct, p.ci_low, p.ci_high) for p in points]
    draw_interval_line(axis, [p.cost(measure) for p in ordered], held, look, label, above=1)


def _draw_singles(axis: "Axes", singles: list[Priced], panel: _Panel, place: int) -> None:
    grey = ("0.1", "0.4", "0.6")[place % 3]
    for each in singles:
        own = each.point.policy == panel.policy
        axis.plot(
            [each.cost(panel.measure)],
            [each.point.expected_correct],
            marker="*",
            markersize=11 if own else 7,
            color=grey,
            markerfacecolor=grey if own else "white",
            linestyle="none",
            zorder=4,
            label="one sample (filled: of this policy)",
        )


def _finish(figure: "Figure", axes: list["Axes"]) -> None:
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    for axis in axes:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: count_in_words(cost)))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(axis="y", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_ylim(*accuracy_range(axis.get_ylim()))
    named = labelled(axes)
    if named:
        figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False
        )
