"""Accuracy against what it costs: every point of a report's curves with its tokens and FLOPs.

Invariant: a point's cost is the mean over the problems that its accuracy is a mean over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.budgets import Measure
from jobs.costs import COSTS, PAPER_FLOPS, costs_at, problem_costs
from jobs.curves import Point, single_samples
from jobs.difficulty import samples_independently
from jobs.evidence import SEARCH_KEY
from jobs.prompt_tokens import prompt_tokens
from jobs.reported_run import Choice, ReportedRun, correct_by_problem, sample_name
from jobs.standalone_costs import Sizes, Spent, run_sizes, spent_tokens
from search.config import is_uneven
from search.rewards import Reduction
from search.strategies import STRATEGIES
from search.votes import Floats, Vote

# What curves are drawn against, beside N.
MEASURES = (Measure.TOKENS, Measure.FLOPS)
_MAJORITY = str(Vote.MAJORITY)
_SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Priced:
    """A point of a curve with what it costs.

    rule: the name of its line, which a majority vote among the samples of `best_of_n` has of its
    own. alone (COSTS,): of the search by itself; as_run (COSTS,): what this run computed, with what
    caches held by then; None where a PRM was paid that the point does not need.
    """

    point: Point
    rule: str
    problems: int
    alone: Floats
    as_run: Floats | None

    def cost(self, measure: str) -> float:
        """Of the search by itself, a problem."""
        return float(self.alone[COSTS.index(measure)])

    @property
    def tokens(self) -> float:
        return self.cost(Measure.TOKENS)

    @property
    def flops(self) -> float:
        return self.cost(Measure.FLOPS)

    @property
    def paper_flops(self) -> float:
        return self.cost(PAPER_FLOPS)

    @property
    def tokens_as_run(self) -> float | None:
        return self._as_run(Measure.TOKENS)

    @property
    def flops_as_run(self) -> float | None:
        return self._as_run(Measure.FLOPS)

    def _as_run(self, measure: str) -> float | None:
        return None if self.as_run is None else float(self.as_run[COSTS.index(measure)])


@dataclass(frozen=True, slots=True)
class Budgets:
    """All priced points of a run: `lines`, the curves in the run's order of policies, and
    `singles`, one sample of each policy without a PRM. Engines such as `fake` count no FLOPs."""

    lines: list[Priced]
    singles: list[Priced]
    counts_flops: bool

    @property
    def measures(self) -> list[Measure]:
        """What can be drawn."""
        return [m for m in MEASURES if self.counts_flops or m is not Measure.FLOPS]

    def frontier(self, measure: Measure) -> list[Priced]:
        """Over all policies and searches."""
        return frontier([*self.singles, *self.lines], measure)


def frontier(points: Iterable[Priced], measure: Measure) -> list[Priced]:
    """The points that no cheaper or equally cheap one is as accurate as, cheapest first."""
    found: list[Priced] = []
    ordered = sorted(points, key=lambda p: (p.cost(measure), -p.point.expected_correct))
    for each in ordered:
        if not found or each.point.expected_correct > found[-1].point.expected_correct + _SLACK:
            found.append(each)
    return found


def budgets_of(run: ReportedRun, choice: Choice) -> Budgets:
    """Prices of all curves that a report shows; raises StorageError if nodes cannot be read."""
    prices = _Prices.of(run)
    lines = [prices.priced(point, point.rule) for point in _shown(run, choice)]
    votes = [prices.priced(point, _MAJORITY, scored=False) for point in _majorities(run)]
    singles = [
        prices.priced(point, sample_name(point), scored=not samples_independently(point.strategy))
        for point in _in_order(run, single_samples(run.points).values())
    ]
    known = [each for each in (*lines, *votes) if each]
    order = sorted(known, key=lambda p: (run.policies.index(p.point.policy), p.rule, p.point.n))
    counts = all(prices.sizes[each.point.policy].policy for each in order)
    return Budgets(order, [each for each in singles if each], counts and bool(order))


def _shown(run: ReportedRun, choice: Choice) -> list[Point]:
    return [point for point in run.points if choice.shows(point)]


def _in_order(run: ReportedRun, points: Iterable[Point]) -> list[Point]:
    return sorted(points, key=lambda point: run.policies.index(point.policy))


def _majorities(run: ReportedRun) -> list[Point]:
    """Majority votes among the samples of `best_of_n`, for policies without such a search: those
    who only vote need no PRM."""
    voting = {point.policy for point in run.points if point.strategy == _MAJORITY}
    place = ("best_of_n", str(Reduction.LAST), _MAJORITY)
    return [
        point
        for point in run.points
        if (point.rule, point.reduction, point.vote) == place and point.policy not in voting
    ]


@dataclass(frozen=True, slots=True)
class _Prices:
    """What the searches of a run cost over each problem."""

    run: ReportedRun
    sizes: dict[str, Sizes]
    spent: dict[tuple[object, ...], Spent]
    as_run: dict[tuple[object, ...], Floats]

    @classmethod
    def of(cls, run: ReportedRun) -> "_Prices":
        sizes = run_sizes(run.units, run.policies)
        prompts = prompt_tokens(run.folder, run.units)
        parameters = {name: each.policy for name, each in sizes.items()}
        return cls(
            run,
            sizes,
            spent_tokens(run.units, SEARCH_KEY, prompts),
            problem_costs(run.units, SEARCH_KEY, parameters),
        )

    def priced(self, point: Point, rule: str, scored: bool | None = None) -> Priced | None:
        """None if what the point cost is not known."""
        # What is no strategy of its own, as a routed search, is one point and costs what it cost.
        kind = STRATEGIES.get(point.strategy)
        splits = kind is not None and kind.splits and not is_uneven(point.variant)
        needs_prm = kind is None or kind.uses_prm
        reads_prm = needs_prm if scored is None else scored
        places = self._places(point)
        if not places:
            return None
        sizes = self.sizes[point.policy]
        alone = [self.spent[p].at(point.n, splits, reads_prm, sizes) for p in places]
        paid = [costs_at(self.as_run[p], point.n, splits) for p in places]
        as_run = None if needs_prm and not reads_prm else _mean(paid)
        return Priced(point, rule, len(places), _mean(alone), as_run)

    def _places(self, point: Point) -> list[tuple[object, ...]]:
        """The search that the point was read off, over each of the point's problems."""
        names = {name: getattr(point, name) for name in SEARCH_KEY} | {"n": point.searched_n}
        search = tuple(names[name] for name in SEARCH_KEY)
        problems = correct_by_problem(self.run.answers, point)
        return [(*search, name) for name in sorted(problems) if (*search, name) in self.spent]


def _mean(rows: Sequence[Floats]) -> Floats:
    return np.asarray(np.mean(rows, axis=0), dtype=np.float64)
