"""The report of one or several runs: figures of accuracy against N and cost, and a summary.

Invariant: everything is read from the tables of the run folders; nothing here needs Ray, a
model or the machine that ran them, and equal tables give equal files.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.budget_curves import Budgets, budgets_of
from jobs.budget_figure import draw_budgets
from jobs.by_difficulty import ByDifficulty, by_difficulty
from jobs.curves import PASS, Point, best_votes
from jobs.difficulty_figure import draw_difficulty
from jobs.leaves import leaf_coverage
from jobs.report_figure import draw_accuracy
from jobs.reported_run import (
    Choice,
    Comparison,
    ReportedRun,
    Row,
    at_full_n,
    baseline,
    comparisons,
    count_in_words,
    read_run,
    sample_name,
)
from jobs.routes_report import routes_section
from jobs.selection import Selection, selections
from jobs.selection import at_full_n as selections_at_full_n
from jobs.selection_figure import draw_selection
from jobs.small_against_large import matches
from jobs.stops_report import stop_reports
from jobs.storage import Where, storage_at
from search.errors import StorageError
from search.rewards import Reduction
from search.votes import Vote

SHOWN_ERRORS = 20
_TEMPLATE = "report_template.md.j2"
_SEARCH = ["policy", "strategy", "variant", "n", "branching", "keep"]
_COSTS = (
    "solutions",
    "generated_policy_tokens",
    "discarded_policy_tokens",
    "prefix_policy_tokens",
    "computed_prefix_policy_tokens",
    "computed_prm_tokens",
    "minimal_prm_tokens",
    "flops",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written; `difficulty_*` only if a run has independent samples."""

    markdown: Path
    png: Path
    svg: Path
    selection_png: Path
    selection_svg: Path
    budgets_png: Path
    budgets_svg: Path
    difficulty_png: Path | None
    difficulty_svg: Path | None

    @classmethod
    def under(cls, folder: Path, has_bins: bool) -> "ReportFiles":
        """The names they have in a folder."""
        return cls(
            folder / "report.md",
            folder / "accuracy.png",
            folder / "accuracy.svg",
            folder / "selection.png",
            folder / "selection.svg",
            folder / "budgets.png",
            folder / "budgets.svg",
            folder / "difficulty.png" if has_bins else None,
            folder / "difficulty.svg" if has_bins else None,
        )

    @property
    def written(self) -> list[Path]:
        """All of them."""
        return [path for path in (getattr(self, field.name) for field in fields(self)) if path]


@dataclass(frozen=True, slots=True)
class _Reported:
    """A run with all that its chapter and the figures are made from."""

    run: ReportedRun
    lost: list[Selection]
    budgets: Budgets
    difficulty: ByDifficulty

    @classmethod
    def of(cls, folder: Where, choice: Choice) -> "_Reported":
        run = read_run(folder)
        lost = selections(run, choice, leaf_coverage(run.folder))
        bins = by_difficulty(run, choice, run.thresholds)
        return cls(run, lost, budgets_of(run, choice), bins)


def report_at(runs: Sequence[Where], to: Where) -> list[str]:
    """Writes a report on this machine or on a store; where its files are, in `written`'s order."""
    folder = storage_at(to)
    if folder.here:
        return [str(path) for path in write_report(runs, folder.here).written]
    with tempfile.TemporaryDirectory(prefix="branchwise-") as drawn:
        files = write_report(runs, Path(drawn)).written
        for path in files:
            folder.write(path.name, path.read_bytes())
    return [folder.called(path.name) for path in files]


def write_report(
    run_dirs: Sequence[Where],
    folder: Path,
    reduction: Reduction = Reduction.LAST,
    vote: Vote = Vote.WEIGHTED,
) -> ReportFiles:
    """Writes report.md and its figures, each as .png and .svg; raises StorageError.

    reduction, vote: what the figures and the first tables show. Several runs share the figures
    and have a chapter each.
    """
    choice = Choice(reduction, vote)
    reported = [_Reported.of(path, choice) for path in run_dirs]
    files = ReportFiles.under(folder, any(each.difficulty.policies for each in reported))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _draw(reported, choice, files)
        files.markdown.write_text(_markdown(reported, choice), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the report to {folder}: {error}") from error
    return files


def _draw(reported: list[_Reported], choice: Choice, files: ReportFiles) -> None:
    runs = [each.run for each in reported]
    draw_accuracy(runs, choice, files.png, files.svg)
    lost = [(each.run.label, each.lost) for each in reported]
    draw_selection(lost, files.selection_png, files.selection_svg)
    priced = [(each.run, each.budgets) for each in reported]
    draw_budgets(priced, files.budgets_png, files.budgets_svg)
    if files.difficulty_png and files.difficulty_svg:
        bins = [(each.run.label, each.difficulty) for each in reported]
        draw_difficulty(bins, files.difficulty_png, files.difficulty_svg)


def _markdown(reported: list[_Reported], choice: Choice) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, points=_points, number=count_in_words, cell=_table_cell
    )
    return environment.get_template(_TEMPLATE).render(
        chapters=[_chapter(each, choice) for each in reported],
        choice=choice,
        counts_flops=any(each.budgets.counts_flops for each in reported),
        has_bins=any(each.difficulty.policies for each in reported),
    )


def _template(name: str) -> str:
    return resources.files("jobs").joinpath(name).read_text(encoding="utf-8")


def _chapter(reported: _Reported, choice: Choice) -> Row:
    """What the template says of one run."""
    run = reported.run
    errors = run.units.filter(pc.equal(run.units["status"], "error"))
    bad = run.problems.filter(pc.is_valid(run.problems["error"]))
    compared = comparisons(run, choice)
    return {
        "run": run,
        "searches": _searches(run),
        "sample_ks": sorted({k for row in run.sampled for k in row["ks"]} - {1}),
        "problems": len(run.problems),
        "bad": bad.select(["problem_id", "error"]).to_pylist(),
        "single": baseline(run),
        "sentence": _sentence(run, compared),
        "comparisons": compared,
        "ns": sorted({point.n for point in run.points}),
        "lines": _lines(run, choice),
        "coverage": _lines(run, None),
        "votes": _vote_rows(run),
        "best": best_votes(run.points),
        "stops": stop_reports(run.solution_parts(), run.stops, choice.reduction, choice.vote),
        "routed": routes_section(run, choice),
        "costs": _costs(run),
        "units": len(run.units),
        "errors": _counted_errors(errors),
        "failed_units": len(errors),
        "agreement": _agreement(run.grades),
        "shown_errors": SHOWN_ERRORS,
        "lost": selections_at_full_n(reported.lost),
        "budgets": reported.budgets,
        "matches": matches(run, reported.budgets),
        "difficulty": reported.difficulty,
    }


def _searches(run: ReportedRun) -> list[Row]:
    """The three widths of each search, and the problems that have solutions of it."""
    done = run.units.filter(pc.greater(run.units["solutions"], 0))
    counted = done.group_by(_SEARCH).aggregate([("problem_id", "count_distinct")])
    return _ordered(run, counted)


def _ordered(run: ReportedRun, rows: pa.Table) -> list[Row]:
    order = {policy: place for place, policy in enumerate(run.policies)}
    found: list[Row] = rows.to_pylist()
    names = _SEARCH[1:]
    return sorted(found, key=lambda r: (order.get(r["policy"], -1), *(r[n] for n in names)))


def _sentence(run: ReportedRun, compared: list[Comparison]) -> str:
    """The run's one question, answered whichever way the numbers fall."""
    single = baseline(run)
    smaller = [c for c in compared if single and c.point.policy != single.policy]
    if single is None or not smaller:
        return "Only one policy has results, so there is no larger one to compare with."
    ours = [c for c in smaller if c.point.policy == smaller[0].point.policy]
    best = max(ours, key=lambda c: c.point.expected_correct)
    return _compared_in_words(best, single, len(ours))


def _compared_in_words(best: Comparison, single: Point, strategies: int) -> str:
    point = best.point
    return (
        f"{point.policy} with {point.rule} at N = {point.n} answers "
        f"{_percent(point.expected_correct)} % of the problems correctly; {single.policy} with "
        f"{sample_name(single)} answers {_percent(single.expected_correct)} %. "
        f"The difference is {_points(best.difference)} points (95 % interval "
        f"{_points(best.low)} to {_points(best.high)}, paired by problem): the small policy "
        f"with search is **{best.verdict}** the largest policy's {sample_name(single)}."
        + (f" {point.rule} is the best of {strategies} strategies." if strategies > 1 else "")
    )


def _lines(run: ReportedRun, choice: Choice | None) -> list[Row]:
    """Points by N for each policy, rule and branching; coverage if no choice is given."""
    lines: dict[tuple[int, str, int], dict[int, Point]] = {}
    for point in run.points:
        if choice.shows(point) if choice else point.vote == PASS:
            place = (run.policies.index(point.policy), point.rule, point.branching)
            lines.setdefault(place, {})[point.n] = point
    return [
        {"policy": run.policies[place], "strategy": rule, "branching": width, "points": points}
        for (place, rule, width), points in sorted(lines.items(), key=lambda line: line[0])
    ]


def _vote_rows(run: ReportedRun) -> list[Row]:
    """Accuracy at full N: a row for each policy, rule and reduction, a column a vote."""
    rows: dict[tuple[int, str, str], Row] = {}
    for point in at_full_n(run.points):
        place = (run.policies.index(point.policy), point.rule, point.reduction)
        if point.vote != PASS and not point.is_routed:
            rows.setdefault(place, {"n": point.n, "reduction": point.reduction})
            rows[place] |= {"policy": point.policy, "strategy": point.rule}
            rows[place][point.vote] = point.expected_correct
    return [rows[place] for place in sorted(rows, key=lambda place: place[:2])]


def _costs(run: ReportedRun) -> list[Row]:
    """Sums over units; error rows count with what they are known to have spent."""
    sums = run.units.group_by(_SEARCH).aggregate([(name, "sum") for name in _COSTS])
    costs = [name.removesuffix("_sum") for name in sums.column_names]
    filled = [pc.fill_null(c, 0) if pa.types.is_primitive(c.type) else c for c in sums.columns]
    return [row | _cache_use(row) for row in _ordered(run, pa.table(filled, costs))]


def _cache_use(row: Row) -> Row:
    """Prefix tokens read from the KV cache, and PRM tokens over the least possible."""
    read = max(0, row["prefix_policy_tokens"] - row["computed_prefix_policy_tokens"])
    minimal = row["minimal_prm_tokens"]
    return {"read": read, "prm_ratio": row["computed_prm_tokens"] / minimal if minimal else None}


def _counted_errors(errors: pa.Table) -> list[Row]:
    """Each distinct error with how many units it ended and the first of them."""
    counted = errors.group_by("error", use_threads=False).aggregate(
        [("unit_id", "count"), ("unit_id", "min")]
    )
    rows: list[Row] = counted.to_pylist()
    return sorted(rows, key=lambda row: (-row["unit_id_count"], str(row["error"])))


def _agreement(grades: pa.Table) -> dict[str, int] | None:
    """How often math-verify and the task's own scorer (full marks: 1) say the same."""
    scored = grades.filter(pc.is_valid(grades["task_score"]))
    if not len(scored):
        return None
    ours, theirs = pc.equal(scored["verdict"], "correct"), pc.equal(scored["task_score"], 1.0)
    return {
        "solutions": len(scored),
        "both_correct": _sum(pc.and_(ours, theirs)),
        "both_wrong": _sum(pc.invert(pc.or_(ours, theirs))),
        "only_math_verify": _sum(pc.and_not(ours, theirs)),
        "only_task": _sum(pc.and_not(theirs, ours)),
    }


def _sum(flags: Any) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(difference: float) -> str:
    return "unknown" if difference != difference else f"{100 * difference:+.1f}"


def _table_cell(text: Any) -> str:
    """Foreign text as one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")[:200]
