"""A run as its report reads it: tables, aggregated points, and fair comparisons between policies.

Invariant: everything comes from the tables of the run's folder, and policies are compared on
the same problems only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.costs import model_parameters
from jobs.curves import (
    NO_REDUCTION,
    ROUTE_VOTE,
    SOLUTION_COLUMNS,
    Point,
    single_samples,
    summary,
)
from jobs.difficulty import Thresholds
from jobs.intervals import clustered_interval
from jobs.results import load_record, load_table, table_parts
from jobs.routes_table import named_units
from jobs.storage import Storage, Where, folder_to_read
from search.config import COMPUTE_OPTIMAL
from search.rewards import Reduction
from search.schemas import SOLUTIONS
from search.strategies import STRATEGIES
from search.votes import Vote

Row = dict[str, Any]
_POINT = ("policy", "strategy", "branching", "variant")


@dataclass(frozen=True, slots=True)
class Choice:
    """The reduction and vote a report shows first; searches without rewards vote by majority."""

    reduction: Reduction
    vote: Vote

    def shows(self, point: Point) -> bool:
        """Whether a point lies on a curve of the figure."""
        return (point.reduction, point.vote) == self.cell(point.strategy)

    def cell(self, strategy: str) -> tuple[str, str]:
        """The reduction and vote shown for a strategy."""
        if strategy == COMPUTE_OPTIMAL:
            return NO_REDUCTION, ROUTE_VOTE
        if STRATEGIES[strategy].uses_prm:
            return str(self.reduction), str(self.vote)
        return NO_REDUCTION, str(Vote.MAJORITY)


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """One run folder as a report needs it. `policies`: names by size, in the recipe's order
    where sizes are equal or unknown; `parameters`: their sizes, 0 if unknown."""

    folder: Storage
    record: Row
    problems: pa.Table
    answers: pa.Table
    samples: pa.Table
    units: pa.Table
    routes: pa.Table
    stops: pa.Table
    grades: pa.Table
    points: list[Point]
    policies: list[str]
    parameters: dict[str, float]

    @property
    def samples_only(self) -> bool:
        """Whether the run asks for nothing but independent samples."""
        return bool(self.record.get("recipe", {}).get("protocol") == "sampling")

    @property
    def sampled(self) -> list[Row]:
        """Means over problems of each search with independent samples, by policy."""
        rows: list[Row] = self.samples.filter(pc.is_null(self.samples["problem_id"])).to_pylist()
        return sorted(
            rows,
            key=lambda row: (self.policies.index(row["policy"]), row["strategy"], row["variant"]),
        )

    @property
    def label(self) -> str:
        """The run's id."""
        return str(self.record["run_id"])

    @property
    def thresholds(self) -> Thresholds:
        """From which pass@1 on a problem is easy, and below which it is hard: the recipe's."""
        return Thresholds(**self.record.get("recipe", {}).get("difficulty", {}))

    def solution_parts(self) -> Iterator[pa.Table]:
        """The graded solutions without their texts, some problems at a time."""
        return table_parts(self.folder, "solutions", SOLUTION_COLUMNS)


def read_run(run: Where) -> ReportedRun:
    """A run folder; raises StorageError if it is not one or a table is missing."""
    folder = folder_to_read(run)
    record, units = load_record(folder, "run_id"), load_table(folder, "units")
    answers, routes = load_table(folder, "answers"), load_table(folder, "routes")
    names = _recipe_policies(record)
    parameters = {name: model_parameters(units, name)[0] for name in names}
    known = all(parameters.values())
    return ReportedRun(
        folder=folder,
        record=record,
        problems=load_table(folder, "problems"),
        answers=answers,
        samples=load_table(folder, "samples"),
        units=named_units(units, routes),
        routes=routes,
        stops=load_table(folder, "stops"),
        grades=_read_grades(folder),
        points=summary(answers),
        policies=sorted(names, key=parameters.__getitem__) if known else names,
        parameters=parameters,
    )


def _read_grades(folder: Storage) -> pa.Table:
    """Only two columns of what may be gigabytes."""
    schema = pa.schema([SOLUTIONS.field(name) for name in ("verdict", "task_score")])
    parts = table_parts(folder, "solutions", schema.names)
    return pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)])


def _recipe_policies(record: Row) -> list[str]:
    policies = record.get("recipe", {}).get("policies", [])
    return [str(p.get("name") or Path(str(p.get("model"))).name) for p in policies]


def baseline(run: ReportedRun) -> Point | None:
    """One sample of the largest policy that has results."""
    single = single_samples(run.points)
    with_results = [name for name in run.policies if name in single]
    return single[with_results[-1]] if with_results else None


def sample_name(single: Point) -> str:
    """How the baseline was measured, in words."""
    return "one sample" if single.n == 1 else f"any of {single.n} ({single.rule})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A searching policy against the largest policy's single sample, on the same problems.

    difference, low, high: in accuracy, with the 95 % interval of the paired differences.
    """

    point: Point
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        if np.isnan(self.low) or self.low <= 0.0 <= self.high:
            return "not distinguishable from"
        return "above" if self.difference > 0.0 else "below"


def comparisons(run: ReportedRun, choice: Choice) -> list[Comparison]:
    """Every policy and rule at its largest N, smallest policy first."""
    single = baseline(run)
    if single is None:
        return []
    fulls = at_full_n(point for point in run.points if choice.shows(point))
    fulls.sort(key=lambda point: run.policies.index(point.policy))
    return [compared(run, point, single) for point in fulls]


def compared(run: ReportedRun, point: Point, single: Point) -> Comparison:
    """A point against a single sample, paired by problem; NaN without a shared problem."""
    ours, theirs = correct_by_problem(run.answers, point), correct_by_problem(run.answers, single)
    shared = sorted(ours.keys() & theirs.keys())
    pairs = np.array([ours[problem] - theirs[problem] for problem in shared])
    mean, low, high = (float(side) for side in clustered_interval(pairs))
    return Comparison(point, mean, low, high)


def correct_by_problem(answers: pa.Table, point: Point) -> dict[str, float]:
    """A point's expected correctness of each problem."""
    keep = pc.is_valid(answers["problem_id"])
    for name in (*_POINT, "n", "searched_n", "reduction", "vote"):
        keep = pc.and_(keep, pc.equal(answers[name], getattr(point, name)))
    rows = answers.filter(keep)
    problems, values = rows["problem_id"].to_pylist(), rows["expected_correct"].to_pylist()
    return dict(zip(problems, values, strict=True))


def at_full_n(points: Iterable[Point]) -> list[Point]:
    """For each policy, rule, reduction and vote the point with the largest N."""
    widest: dict[tuple[str, ...], Point] = {}
    for point in points:
        place = (point.policy, point.rule, point.reduction, point.vote)
        if place not in widest or point.n > widest[place].n:
            widest[place] = point
    return list(widest.values())


def count_in_words(number: float) -> str:
    """A large number to three digits: 3.41 M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
