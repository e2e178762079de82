"""Accuracy by difficulty: the problems of each policy in bins, and each search in each bin.

A bin picked by the very samples that are then scored flatters: a problem is easy because its
samples happened to be right. So bins come from every second independent sample of the policy, the
even-numbered ones, and searches that vote among independent samples are scored on the odd ones,
at half their N at most. Other strategies draw from seeds of their own. Invariant: no solution that
decided a problem's bin is scored.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.curves import Point, Search, accuracy_at, solutions_by_problem
from jobs.difficulty import QUINTILES, Difficulty, Thresholds, quintiles, samples_independently
from jobs.intervals import accuracy_interval
from jobs.reported_run import Choice, ReportedRun, correct_by_problem
from search.config import is_uneven
from search.strategies import STRATEGIES
from search.subsampling import group_grid
from search.votes import Flags, Floats

BINS = tuple(map(str, Difficulty))
FIFTHS = tuple(f"fifth {number}" for number in range(1, QUINTILES + 1))
Line = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class BinAccuracy:
    """Mean over the problems of a bin with its 95 % interval (None for one problem)."""

    problems: int
    accuracy: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class BinnedPoint:
    """One search at one N; `bins` by name, without those that hold no problem."""

    policy: str
    rule: str
    branching: int
    n: int
    bins: Mapping[str, BinAccuracy]


@dataclass(frozen=True, slots=True)
class BinnedPolicy:
    """Which problems of a policy are in which bin, by name: `absolute` and `fifths`.

    samples: of a problem, that decided; fewer where units failed.
    """

    policy: str
    samples: int
    absolute: Mapping[str, list[str]]
    fifths: Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class ByDifficulty:
    """All bins of a run. `without`: policies that have no two independent samples of a problem."""

    thresholds: Thresholds
    policies: list[BinnedPolicy]
    without: list[str]
    points: list[BinnedPoint]
    fifths: list[BinnedPoint]

    def at_full_n(self) -> list[tuple[BinnedPoint, BinnedPoint]]:
        """Of each line the point with the largest N: by thresholds, and by fifths."""
        widest: dict[Line, tuple[BinnedPoint, BinnedPoint]] = {}
        for pair in zip(self.points, self.fifths, strict=True):
            line = (pair[0].policy, pair[0].rule, pair[0].branching)
            if line not in widest or pair[0].n > widest[line][0].n:
                widest[line] = pair
        return list(widest.values())


@dataclass(slots=True)
class _Halves:
    """What is read of the solutions. counts: by policy and problem, [right, all] of the even
    samples; odd: by line, N and problem, how the odd ones vote."""

    counts: defaultdict[tuple[str, str], dict[str, tuple[int, int]]]
    odd: defaultdict[tuple[Search, int], dict[str, float]]


def by_difficulty(run: ReportedRun, choice: Choice, thresholds: Thresholds) -> ByDifficulty:
    """Bins and accuracies of all searches of a run; raises StorageError."""
    halves = _read_halves(run, choice)
    binned = [_binned(name, halves, thresholds) for name in run.policies]
    known = {each.policy: each for each in binned if each}
    values = list(_values(run, choice, halves))
    values = [(point, found) for point, found in values if point.policy in known]
    values.sort(key=lambda v: (run.policies.index(v[0].policy), v[0].rule, v[0].branching, v[0].n))
    with_results = {point.policy for point in run.points}
    return ByDifficulty(
        thresholds,
        list(known.values()),
        [name for name in run.policies if name in with_results and name not in known],
        [_point(point, found, known[point.policy].absolute) for point, found in values],
        [_point(point, found, known[point.policy].fifths) for point, found in values],
    )


def _read_halves(run: ReportedRun, choice: Choice) -> _Halves:
    halves = _Halves(defaultdict(dict), defaultdict(dict))
    seed = int(run.record.get("seeds", {}).get("run", 0))
    widest = _widest(run)
    for part in run.solution_parts():
        for search, problem, rows in solutions_by_problem(part):
            if search in widest:
                _add(halves, search, problem, rows, choice, seed)
    return halves


def _widest(run: ReportedRun) -> set[Search]:
    """Searches for independent samples, of each rule the widest: it holds the others' samples."""
    found: dict[tuple[str, str], Search] = {}
    for point in run.points:
        if _samples(point) and not is_uneven(point.variant):
            n = point.searched_n
            search = Search(point.policy, point.strategy, n, point.branching, n, point.variant)
            held = found.get((point.policy, point.rule))
            if held is None or n > held.n:
                found[point.policy, point.rule] = search
    return set(found.values())


def _samples(point: Point) -> bool:
    return point.strategy in STRATEGIES and samples_independently(point.strategy)


def _decides_nothing(point: Point) -> bool:
    """Whether its solutions are others than those that decide bins. What is no strategy of its own,
    as a routed search, begins with some of them."""
    return point.strategy in STRATEGIES and not samples_independently(point.strategy)


def _add(
    halves: _Halves, search: Search, problem: str, rows: pa.Table, choice: Choice, seed: int
) -> None:
    """The even half of default samples goes into bins, the odd half of all is scored."""
    even = pc.equal(pc.bit_wise_and(rows["subtree"], 1), 0)
    decides, scored = rows.filter(even), rows.filter(pc.invert(even))
    if not search.variant:
        right = pc.sum(pc.equal(decides["verdict"], "correct")).as_py() or 0
        halves.counts[search.policy, problem][search.strategy] = (int(right), len(decides))
    if not len(scored):
        return
    ks = group_grid(len(scored))
    column = search.cells.index(choice.cell(search.strategy))
    values = accuracy_at(search, problem, scored, seed, ks)[:, column]
    for k, value in zip(ks, values.tolist(), strict=True):
        halves.odd[search, k][problem] = value


def _binned(policy: str, halves: _Halves, thresholds: Thresholds) -> BinnedPolicy | None:
    """None if nothing tells how hard its problems are."""
    counts = {
        problem: (sum(right for right, _ in parts.values()), sum(n for _, n in parts.values()))
        for (name, problem), parts in sorted(halves.counts.items())
        if name == policy
    }
    known = {problem: right / n for problem, (right, n) in counts.items() if n}
    if not known or not any(search.policy == policy for search, _ in halves.odd):
        return None
    shares = np.array(list(known.values()))
    flags, fifths = thresholds.bins_of(shares), quintiles(shares)
    ids = list(known)
    return BinnedPolicy(
        policy,
        max(n for _, n in counts.values()),
        {name: _chosen(ids, row) for name, row in zip(BINS, flags, strict=True)},
        {name: _chosen(ids, fifths == place) for place, name in enumerate(FIFTHS, 1)},
    )


def _chosen(ids: list[str], flags: Flags) -> list[str]:
    return [name for name, flag in zip(ids, flags.tolist(), strict=True) if flag]


def _values(
    run: ReportedRun, choice: Choice, halves: _Halves
) -> Iterator[tuple[BinnedPoint, dict[str, float]]]:
    """Each point that is shown, still without bins, and its value of each problem."""
    for (search, n), values in halves.odd.items():
        if n in group_grid(search.n // 2):
            yield _bare(search, n), values
    for point in run.points:
        if choice.shows(point) and _decides_nothing(point):
            yield _bare(point, point.n), correct_by_problem(run.answers, point)


def _bare(search: Search | Point, n: int) -> BinnedPoint:
    return BinnedPoint(search.policy, search.rule, search.branching, n, {})


def _point(
    bare: BinnedPoint, values: Mapping[str, float], bins: Mapping[str, list[str]]
) -> BinnedPoint:
    found = {name: _accuracy(values, problems) for name, problems in bins.items()}
    kept = {name: each for name, each in found.items() if each}
    return BinnedPoint(bare.policy, bare.rule, bare.branching, bare.n, kept)


def _accuracy(values: Mapping[str, float], problems: Iterable[str]) -> BinAccuracy | None:
    """None without a problem that has a value."""
    held: Floats = np.array([values[name] for name in problems if name in values])
    if not len(held):
        return None
    mean, low, high = (float(side) for side in accuracy_interval(held))
    known = low == low
    return BinAccuracy(len(held), mean, low if known else None, high if known else None)
