"""What compute-optimal searches did in a run: routes by difficulty, costs, and accuracy.

Invariant: everything is read off the run's own tables, and rivals are compared on the same
problems. Nothing is counted twice: the probe is part of the cost.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.budgets import Budget, Measure
from jobs.costs import tokens_and_flops
from jobs.curves import Search, accuracy_at, solutions_by_problem
from jobs.difficulty import Difficulty
from jobs.intervals import accuracy_interval, clustered_interval
from jobs.reported_run import Choice, ReportedRun, count_in_words
from jobs.routes import PROBE_STRATEGY, Route
from jobs.routes_table import SEARCH
from search.rewards import Reduction
from search.votes import Floats, Vote

Row = dict[str, Any]
_ORDER = [*map(str, Difficulty), "any"]


@dataclass(frozen=True, slots=True)
class Beside:
    """best_of_n at the N that costs as much on average; difference: routed less this, paired."""

    n: int
    cost: float
    accuracy: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RoutedReport:
    """One compute-optimal search over the problems that it answered.

    accuracy: mean and 95 % interval. cost: mean of a problem in the budget's measure, of which
    `probe` are the probe's. overspent: share of problems above the budget. routes: for each
    predicted difficulty and route the problems that took it. beside: None without best_of_n.
    """

    policy: str
    name: str
    budget: Budget
    problems: int
    accuracy: tuple[float, float, float]
    cost: float
    probe: float
    overspent: float
    routes: dict[tuple[str, str], list[Row]]
    beside: Beside | None


def routed_reports(run: ReportedRun, choice: Choice) -> list[RoutedReport]:
    """One for each compute-optimal search of the run."""
    searches: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in run.routes.to_pylist():
        if row["expected_correct"] is not None:
            searches[tuple(row[name] for name in SEARCH)].append(row)
    ordered = sorted(searches, key=lambda place: (run.policies.index(place[0]), *place[1:]))
    return [_report(run, choice, searches[place]) for place in ordered]


def _report(run: ReportedRun, choice: Choice, rows: Sequence[Row]) -> RoutedReport:
    budget = Budget(rows[0]["budget"], Measure(rows[0]["measure"]))
    probe, cost = (_mean_cost(rows, budget.measure, parts) for parts in (("probe",), _PARTS))
    values = {row["problem_id"]: float(row["expected_correct"]) for row in rows}
    mean, low, high = accuracy_interval(np.array(list(values.values()), np.float64))
    return RoutedReport(
        policy=rows[0]["policy"],
        name=rows[0]["variant"],
        budget=budget,
        problems=len(rows),
        accuracy=(float(mean), float(low), float(high)),
        cost=cost,
        probe=probe,
        overspent=sum(row["overspent"] for row in rows) / len(rows),
        routes=_by_route(rows),
        beside=_beside(run, choice, rows[0]["policy"], budget.measure, cost, values),
    )


_PARTS = ("probe", "rest")


def _mean_cost(rows: Sequence[Row], measure: Measure, parts: Sequence[str]) -> float:
    return sum(float(row[f"{part}_{measure}"]) for row in rows for part in parts) / len(rows)


def _by_route(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["difficulty"] or "any", str(_route(row))].append(row)
    return dict(sorted(found.items(), key=lambda each: (_ORDER.index(each[0][0]), each[0][1])))


def _route(row: Row) -> Route:
    scored = row["route_vote_reduction"]
    return Route(
        row["route_strategy"],
        row["route_n"],
        row["route_branching"],
        Reduction(row["route_reduction"]),
        Vote(row["route_vote"]),
        Reduction(scored) if scored else None,
        row["route_variant"],
    )


def _beside(
    run: ReportedRun,
    choice: Choice,
    policy: str,
    measure: Measure,
    cost: float,
    routed: Mapping[str, float],
) -> Beside | None:
    """best_of_n of the run, at the largest N that costs no more on average."""
    search = _widest(run, policy)
    each = _cost_of_sample(run, search, measure) if search else 0.0
    n = int(cost / each * (1 + 1e-9)) if each else 0
    if search is None or not 0 < n <= search.n:
        return None
    values = _accuracies(run, search, n, choice, routed)
    shared = sorted(values)
    if not shared:
        return None
    plain = np.array([values[name] for name in shared], np.float64)
    ours = np.array([routed[name] for name in shared], np.float64)
    mean, low, high = (float(side) for side in clustered_interval(ours - plain))
    return Beside(n, n * each, float(plain.mean()), mean, low, high)


def _widest(run: ReportedRun, policy: str) -> Search | None:
    """The best_of_n with the default rule that has most solutions."""
    points = [
        point
        for point in run.points
        if (point.policy, point.strategy, point.variant) == (policy, PROBE_STRATEGY, "")
    ]
    n = max((point.searched_n for point in points), default=0)
    return Search(policy, PROBE_STRATEGY, n, 1, n) if n else None


def _cost_of_sample(run: ReportedRun, search: Search, measure: Measure) -> float:
    if measure is Measure.SOLUTIONS:
        return 1.0
    rows = run.units.filter(pc.equal(run.units["status"], "done"))
    for name in ("policy", "strategy", "variant", "n"):
        rows = rows.filter(pc.equal(rows[name], getattr(search, name)))
    tokens, flops = tokens_and_flops(rows)
    solutions = pc.sum(rows["solutions"]).as_py() or 0
    return (tokens if measure is Measure.TOKENS else flops) / max(1, solutions)


def _accuracies(
    run: ReportedRun, search: Search, n: int, choice: Choice, problems: Mapping[str, float]
) -> dict[str, float]:
    """Expected correctness of n samples of each problem that has so many."""
    cell, seed = search.cells.index(choice.cell(search.strategy)), run.record["seeds"]["run"]
    found: dict[str, float] = {}
    for part in run.solution_parts():
        for each, problem_id, rows in solutions_by_problem(part, list(problems)):
            if each == search:
                values: Floats = accuracy_at(search, problem_id, rows, seed, [n])
                found[problem_id] = float(values[0, cell])
    return {name: value for name, value in found.items() if not np.isnan(value)}


# What is printed


def routes_section(run: ReportedRun, choice: Choice) -> str:
    """The section of a report, Markdown; "" for a run without compute-optimal searches."""
    reports = routed_reports(run, choice)
    return "\n".join(_section(reports, choice)) if reports else ""


def _section(reports: Sequence[RoutedReport], choice: Choice) -> Iterator[str]:
    yield "### Compute-optimal search"
    yield ""
    yield (
        "Each problem takes the route of its predicted difficulty, and answers by the vote of that "
        "route. Cost: mean of a problem, probe included, in the measure of the budget. Overspent: "
        "problems that cost more than the budget. Accuracy in per cent with its 95 % interval. "
        f"Beside it `{PROBE_STRATEGY}` (`{choice.reduction}`, `{choice.vote}`) at the largest N "
        "that costs no more on average; the difference, routed less this, is paired by problem."
    )
    yield ""
    yield (
        f"| policy | search | budget | problems | cost | of it probe | overspent | accuracy | "
        f"{PROBE_STRATEGY} | its cost | its accuracy | difference, points | 95 % interval |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for report in reports:
        yield _total_line(report)
    yield ""
    heads = "predicted | route | problems | predicted pass@1 | accuracy"
    yield f"| policy | search | budget | {heads} |"
    yield "|---|---|--:|---|---|--:|--:|--:|"
    for report in reports:
        for (difficulty, route), rows in report.routes.items():
            yield _route_line(report, difficulty, route, rows)


def _total_line(report: RoutedReport) -> str:
    cells = [
        report.policy,
        report.name,
        _budget(report.budget),
        str(report.problems),
        count_in_words(report.cost),
        count_in_words(report.probe),
        f"{100 * report.overspent:.1f} %",
        _accuracy(report.accuracy),
        *_beside_cells(report.beside),
    ]
    return f"| {' | '.join(cells)} |"


def _beside_cells(beside: Beside | None) -> list[str]:
    if beside is None:
        return ["not run", "", "", "", ""]
    known = not np.isnan(beside.low)
    ends = f"{100 * beside.low:+.1f} to {100 * beside.high:+.1f}" if known else "unknown"
    accuracy = f"{100 * beside.accuracy:.1f}"
    difference = f"{100 * beside.difference:+.1f}"
    return [f"N = {beside.n}", count_in_words(beside.cost), accuracy, difference, ends]


def _route_line(report: RoutedReport, difficulty: str, route: str, rows: Sequence[Row]) -> str:
    known = [row["pass_at_1"] for row in rows if row["pass_at_1"] is not None]
    predicted = f"{100 * sum(known) / len(known):.1f}" if known else ""
    accuracy = 100 * sum(row["expected_correct"] for row in rows) / len(rows)
    cells = [
        report.policy,
        report.name,
        _budget(report.budget),
        difficulty,
        route,
        str(len(rows)),
        predicted,
        f"{accuracy:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _budget(budget: Budget) -> str:
    return f"{count_in_words(budget.amount)} {budget.measure}"


def _accuracy(accuracy: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in accuracy)
    return f"{mean:.1f}" if np.isnan(low) else f"{mean:.1f} ({low:.1f} to {high:.1f})"
