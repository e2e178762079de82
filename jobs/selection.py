"""What is lost in selection: a search's accuracy between its baselines and its two ceilings.

The baselines are one sample of the policy and the majority vote; the ceilings are pass@N (any of
the N solutions is right) and the coverage of the tree's own leaves. The selection gap is the
second ceiling less the accuracy: what a better vote or PRM could still win from the same tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from jobs.curves import PASS, Point, single_samples
from jobs.intervals import accuracy_interval
from jobs.leaves import LeafCoverage
from jobs.reported_run import Choice, ReportedRun, correct_by_problem
from search.votes import Vote

Place: TypeAlias = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """One search at one N; accuracies in [0, 1] over the problems that have them.

    gap, low, high: leaf coverage less accuracy, paired by problem, with its 95 % interval.
    """

    point: Point
    single: Point
    majority: Point
    coverage: Point
    leaves: float
    gap: float
    low: float
    high: float
    left_out: int
    ungraded: int


def selections(
    run: ReportedRun, choice: Choice, coverages: Sequence[LeafCoverage]
) -> list[Selection]:
    """Every point of the report's curves, in the order of the run's points."""
    single, by_vote = single_samples(run.points), _points_by_vote(run.points)
    leaves = {_search_place(coverage): coverage for coverage in coverages}
    return [
        _selection(
            run,
            point,
            (single[point.policy], by_vote[_place(point), _MAJORITY], by_vote[_place(point), PASS]),
            leaves[point.policy, point.rule, point.branching, point.searched_n],
        )
        for point in run.points
        if choice.shows(point) and not point.is_routed
    ]


def at_full_n(found: Sequence[Selection]) -> list[Selection]:
    """Of each search the one with the largest N."""
    widest: dict[tuple[str, str, int], Selection] = {}
    for each in found:
        line = _place(each.point)[:3]
        if line not in widest or each.point.n > widest[line].point.n:
            widest[line] = each
    return list(widest.values())


_MAJORITY = str(Vote.MAJORITY)


def _place(point: Point) -> Place:
    return point.policy, point.rule, point.branching, point.n


def _search_place(coverage: LeafCoverage) -> Place:
    search = coverage.search
    return search.policy, search.rule, search.branching, search.n


def _points_by_vote(points: Sequence[Point]) -> dict[tuple[Place, str], Point]:
    """Majority is the same for every reduction, and coverage knows none."""
    return {(_place(point), point.vote): point for point in points}


def _selection(
    run: ReportedRun, point: Point, beside: tuple[Point, Point, Point], leaves: LeafCoverage
) -> Selection:
    correct, covered = correct_by_problem(run.answers, point), leaves.at(point.n)
    shared = sorted(correct.keys() & covered.keys())
    gaps = np.array([covered[problem] - correct[problem] for problem in shared])
    gap, low, high = (float(side) for side in accuracy_interval(gaps))
    mean = float(np.mean([covered[problem] for problem in shared]))
    return Selection(point, *beside, mean, gap, low, high, leaves.left_out, leaves.ungraded)
