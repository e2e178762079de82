"""The figure of a report: accuracy against N, a panel for each policy, a line for each strategy."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.curves import Point
from jobs.reported_run import Choice, ReportedRun, baseline, count_in_words, sample_name
from search.config import COMPUTE_OPTIMAL
from search.strategies import STRATEGIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What fits below a panel, side by side.
LEGEND_CHARACTERS = 70
PANELS_A_ROW = 3
# Okabe and Ito's palette: told apart with every common kind of colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FIGURE_STYLE: Any = {
    "svg.hashsalt": "branchwise",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MARKERS = "osD^vPX"
_DRAWN = (*STRATEGIES, COMPUTE_OPTIMAL)
_RUN_STYLES = ("-", ":", "-.", (0, (5, 1)))


def draw_accuracy(runs: list[ReportedRun], choice: Choice, png: Path, svg: Path) -> None:
    """One panel a policy, one line a strategy, 95 % intervals; equal runs give equal files."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(FIGURE_STYLE):
        panels = list(dict.fromkeys(name for run in runs for name in run.policies))
        columns = min(PANELS_A_ROW, max(1, len(panels)))
        rows = max(1, -(-len(panels) // columns))
        size = (max(6.0, 3.1 * columns), 3.0 * rows + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        _fill_panels(figure, list(axes), panels, runs, choice)
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def _fill_panels(
    figure: "Figure",
    axes: list["Axes"],
    panels: list[str],
    runs: list[ReportedRun],
    choice: Choice,
) -> None:
    for axis, policy in zip(axes, panels, strict=False):
        axis.set_title(panel_title(policy, runs), fontsize=10)
        for place, run in enumerate(runs):
            _draw_baseline(axis, run, place, len(runs) > 1)
            _draw_lines(axis, run, policy, place, choice, len(runs) > 1)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    label_axes(axes[: len(panels)], [p.n for run in runs for p in run.points])
    for axis in axes[: len(panels) : PANELS_A_ROW]:
        axis.set_ylabel("accuracy")
    named = labelled(axes)
    ordered = sorted(named, key=lambda label: named[label].get_linestyle() == "--")
    if named:
        handles, longest = [named[label] for label in ordered], max(map(len, named))
        width = LEGEND_CHARACTERS * min(PANELS_A_ROW, len(panels))
        columns = max(1, min(5, width // (longest + 8)))
        figure.legend(handles, ordered, loc="outside lower center", ncols=columns, frameon=False)


def labelled(axes: list["Axes"]) -> dict[str, Any]:
    """What a legend for all panels shows: each label once, with a line that has it."""
    return {label: line for a in axes for line, label in zip(*_legend_of(a), strict=True)}


def _legend_of(axis: "Axes") -> tuple[list[Any], list[str]]:
    handles, labels = axis.get_legend_handles_labels()
    return list(handles), [str(label) for label in labels]


def panel_title(policy: str, runs: list[ReportedRun]) -> str:
    """A policy with its size, if any run tells it."""
    size = max(run.parameters.get(policy, 0.0) for run in runs)
    return f"policy {policy}" + (f" ({count_in_words(size)} parameters)" if size else "")


def label_axes(axes: list["Axes"], ns: list[int]) -> None:
    """N by powers of two and accuracy in per cent, on every panel."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    ticks = [2**power for power in range(max(ns, default=1).bit_length())]
    shown = ticks[:: 1 + (len(ticks) - 1) // 7]
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(shown))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda n, _: f"{n:.0f}")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_xlabel("N (solutions for each problem)")
        axis.grid(axis="y", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.xaxis.set_tick_params(labelbottom=True)
        axis.set_ylim(*accuracy_range(axis.get_ylim()))


def accuracy_range(limits: tuple[float, float]) -> tuple[float, float]:
    """The drawn range inside 0 to 1, and never so narrow that noise looks like a trend."""
    low, high = max(0.0, limits[0]), min(1.02, limits[1])
    middle = (low + high) / 2
    return max(0.0, min(low, middle - 0.1)), min(1.02, max(high, middle + 0.1))


def _draw_baseline(axis: "Axes", run: ReportedRun, place: int, several: bool) -> None:
    single = baseline(run)
    if single is None:
        return
    label = f"{single.policy}: {sample_name(single)}" + (f", {run.label}" if several else "")
    grey = ("0.25", "0.55", "0.7")[place % 3]
    axis.axhline(single.expected_correct, color=grey, linestyle="--", linewidth=1.3, label=label)


def _draw_lines(
    axis: "Axes", run: ReportedRun, policy: str, place: int, choice: Choice, several: bool
) -> None:
    shown = [p for p in run.points if p.policy == policy and choice.shows(p)]
    for strategy in _DRAWN:
        kinds = sorted({(p.rule, p.branching) for p in run.points if p.strategy == strategy})
        for number, kind in enumerate(kinds):
            line = [p for p in shown if (p.rule, p.branching) == kind]
            label = line_name(kind, kinds) + (f", {run.label}" if several else "")
            dash = line_dash(place + number)
            look = strategy_look(strategy, number)
            _draw_line(axis, sorted(line, key=lambda p: p.n), look, dash, label)


def line_name(kind: tuple[str, int], kinds: list[tuple[str, int]]) -> str:
    """A rule, with its branching where there are several."""
    rule, branching = kind
    several = len({width for name, width in kinds if name == rule}) > 1
    return rule + (f", M = {branching}" if several else "")


def line_dash(number: int) -> Any:
    """What tells runs and variants apart that have one colour."""
    return _RUN_STYLES[number % len(_RUN_STYLES)]


def strategy_look(strategy: str, variant: int = 0) -> tuple[str, str]:
    """Colour and marker of a strategy, the same in every figure; its variants differ in markers."""
    number = _DRAWN.index(strategy)
    return _COLOURS[number % len(_COLOURS)], _MARKERS[(number + variant) % len(_MARKERS)]


def _draw_line(
    axis: "Axes", line: list[Point], look: tuple[str, str], dash: Any, label: str
) -> None:
    if line:
        held = [(p.expected_correct, p.ci_low, p.ci_high) for p in line]
        draw_interval_line(axis, [p.n for p in line], held, look, label, dash=dash, alpha=0.12)


def draw_interval_line(
    axis: "Axes",
    places: Sequence[float],
    held: Sequence[tuple[float, float | None, float | None]],
    look: tuple[str, str],
    label: str,
    *,
    dash: Any = "-",
    alpha: float = 0.1,
    above: int = 0,
) -> None:
    """A line with its interval: shaded, or a bar at a single point.

    held: value, low and high at each place, None where nothing is known. above: how far the line
    and its shade are lifted over what lies below by default.
    """
    colour, marker = look
    values = [value for value, _, _ in held]
    low = [value if side is None else side for value, side, _ in held]
    high = [value if side is None else side for value, _, side in held]
    style: Any = {"color": colour, "marker": marker, "markersize": 4, "linestyle": dash}
    axis.plot(places, values, label=label, zorder=2 + above, **style)
    if len(held) > 1:
        shade: Any = {"color": colour, "alpha": alpha, "linewidth": 0}
        axis.fill_between(places, low, high, zorder=1 + above, **shade)
    else:
        errors = [[values[0] - low[0]], [high[0] - values[0]]]
        axis.errorbar(places, values, yerr=errors, color=colour, capsize=3, linewidth=1, zorder=2)
