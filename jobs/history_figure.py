"""The figure of a history: accuracy, cost and speed by night, one above the other.

Invariant: a line never spans a night that is not there, and equal tables give equal files.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.history import Night, changes_between, cost_of, ended, missing_between
from jobs.history_text import headline_in_words
from jobs.report_figure import FIGURE_STYLE, accuracy_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOUR, _RECIPE, _VERSIONS = "#0072B2", "#D55E00", "0.45"
_COST = {"usd": "USD a problem", "flops": "FLOPs a problem", "tokens": "tokens a problem"}
_NAN = float("nan")
# So many dates fit below the figure, each with its year.
_EACH_NAMED = 6


def draw_history(nights: Sequence[Night], png: Path, svg: Path) -> None:
    """Three panels over one axis of dates; only nights that have ended."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    over = ended(nights)
    with mpl.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(8.0, 6.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1)))
        _draw_accuracy(axes[0], over)
        _draw_values(axes[1], over, *_costs(over))
        speeds = [(night.row or {}).get("policy_tokens_per_second") for night in over]
        _draw_values(axes[2], over, "policy tokens/s", speeds)
        _mark_changes(axes, over)
        _label_dates(axes, over)
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})


def runs_of_nights(nights: Sequence[Night]) -> list[list[Night]]:
    """The nights in stretches without a missing one."""
    found: list[list[Night]] = [[night] for night in nights[:1]]
    for before, night in pairwise(nights):
        if missing_between(before, night):
            found.append([])
        found[-1].append(night)
    return found


def _draw_accuracy(axis: "Axes", nights: Sequence[Night]) -> None:
    from matplotlib.ticker import PercentFormatter

    for stretch in runs_of_nights(nights):
        places: Any = [night.time for night in stretch]
        values = [_share(night, "accuracy") for night in stretch]
        low, high = ([_share(n, name) for n in stretch] for name in ("ci_low", "ci_high"))
        axis.plot(places, values, color=_COLOUR, marker="o", markersize=4, zorder=3)
        axis.vlines(places, low, high, color=_COLOUR, alpha=0.5, linewidth=1)
        axis.fill_between(places, low, high, color=_COLOUR, alpha=0.12, linewidth=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylim(*accuracy_range(axis.get_ylim()))
    axis.set_ylabel("accuracy")
    last = nights[-1].row if nights else None
    if last is not None:
        axis.set_title(f"{last['recipe']}: {headline_in_words(last)}", fontsize=10, loc="left")


def _draw_values(
    axis: "Axes", nights: Sequence[Night], label: str, values: Sequence[float | None]
) -> None:
    known = {night.date: value for night, value in zip(nights, values, strict=True)}
    for stretch in runs_of_nights(nights):
        places: Any = [night.time for night in stretch]
        drawn = [_NAN if (v := known[night.date]) is None else v for night in stretch]
        axis.plot(places, drawn, color=_COLOUR, marker="o", markersize=4)
    axis.set_ylim(0, 1.1 * max((value for value in values if value), default=1.0))
    axis.set_ylabel(label)


def _costs(nights: Sequence[Night]) -> tuple[str, list[float | None]]:
    """The first measure that all nights have."""
    found = [dict(cost_of(night.row or {})) for night in nights]
    name = next((name for name in _COST if all(name in each for each in found)), "tokens")
    return _COST[name], [each.get(name) for each in found]


def _mark_changes(axes: list["Axes"], nights: Sequence[Night]) -> None:
    """A line where a night ran another recipe, or other versions, than the one before it."""
    labels: set[str] = set()
    for before, night in pairwise(nights):
        changed = changes_between(before, night)
        if changed:
            is_recipe = "recipe" in changed
            label = "another recipe" if is_recipe else "other versions"
            look: Any = (
                {"color": _RECIPE, "linestyle": "--"}
                if is_recipe
                else {"color": _VERSIONS, "linestyle": ":"}
            )
            place: Any = night.time
            for axis in axes:
                named = label if axis is axes[0] and label not in labels else None
                axis.axvline(place, linewidth=1.2, zorder=1, label=named, **look)
            labels.add(label)
    if labels:
        axes[0].legend(frameon=False, fontsize=9, loc="best")


def _label_dates(axes: list["Axes"], nights: Sequence[Night]) -> None:
    for axis in axes:
        axis.grid(axis="y", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
    if not nights:
        return
    first, last = nights[0].time, nights[-1].time
    room = max(timedelta(hours=18), (last - first) * 0.03)
    sides: Any = (first - room, last + room)
    axes[0].set_xlim(*sides)
    if len(nights) <= _EACH_NAMED:
        places: Any = [night.time for night in nights]
        axes[-1].set_xticks(places, [night.date for night in nights])
    else:
        _tick_by_time(axes[-1])


def _tick_by_time(axis: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator: Any = AutoDateLocator(minticks=3, maxticks=9)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _share(night: Night, name: str) -> float:
    value = (night.row or {}).get(name)
    return _NAN if value is None else float(value)
