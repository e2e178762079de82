"""Accuracy against N: pure functions from the `solutions` table to the `answers` table.

Every smaller N of a splitting strategy is read off its largest run (see `search.subsampling`).
Invariant: problems are looked at one at a time, and a point's rows depend on nothing but the
solutions of its search and the run's seed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.intervals import accuracy_interval
from search.config import COMPUTE_OPTIMAL, is_routed, is_uneven
from search.rewards import Reduction, reduce_rewards
from search.rows import NO_CLASS
from search.schemas import ANSWERS
from search.seeds import derive_seed
from search.strategies import STRATEGIES, keep_count, subtree_count
from search.subsampling import expected_max, expected_pass, expected_sums, group_grid
from search.votes import Ballots, Floats, Vote, decide

PASS = "pass"
# The vote of compute-optimal searches: each route names its own.
ROUTE_VOTE = "route"
NO_REDUCTION = "none"
PROBLEMS_A_PART = 512
_SEARCH = ("policy", "strategy", "n", "branching", "keep", "variant")
_COLUMNS = (*_SEARCH, "problem_id", "subtree", "solution_id")
# What is read of `SOLUTIONS`: not the texts, which are most of it.
SOLUTION_COLUMNS = (*_COLUMNS, "answer", "answer_class", "verdict", "rewards")


@dataclass(frozen=True, slots=True, order=True)
class Search:
    """One search as every row names it; `n` is the N that was run."""

    policy: str
    strategy: str
    n: int
    branching: int
    keep: int
    variant: str = ""

    @property
    def ks(self) -> list[int]:
        """Groups at each point of the curve.

        One point for a strategy that does not split, and where each problem has its own number
        of solutions, which `n` then is on average or at most.
        """
        groups = subtree_count(self.strategy, self.n, self.branching)
        return [groups] if is_uneven(self.variant) else group_grid(groups)

    @property
    def group(self) -> int:
        """Solutions that are drawn together: one a sample, M a subtree."""
        return self.n // subtree_count(self.strategy, self.n, self.branching)

    def ks_held(self, groups: int) -> list[int]:
        """Groups at each point that a problem with so many groups has a value for."""
        return [groups] if is_uneven(self.variant) else [k for k in self.ks if k <= groups]

    @property
    def rule(self) -> str:
        """The strategy, with what is not default about it."""
        return f"{self.strategy} {self.variant}".rstrip()

    @property
    def ns(self) -> list[int]:
        """N at each point of the curve."""
        groups = self.ks[-1]
        return [k * self.n // groups for k in self.ks]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(reduction, vote) of each row of a point; without rewards only two make sense."""
        if not STRATEGIES[self.strategy].uses_prm:
            return [(NO_REDUCTION, str(Vote.MAJORITY)), (NO_REDUCTION, PASS)]
        votes = [(str(reduction), str(vote)) for reduction in Reduction for vote in Vote]
        return [*votes, (NO_REDUCTION, PASS)]

    def keep_at(self, n: int) -> int:
        """Nodes kept at a step of the run of n that a point stands for."""
        splits = STRATEGIES[self.strategy].splits
        return keep_count(self.strategy, n, self.branching) if splits else self.keep


@dataclass(frozen=True, slots=True)
class _Marks:
    """One problem: expected correctness (points, cells), NaN where groups are missing, and
    the answer of each cell at the last point."""

    problem_id: str
    values: Floats
    answers: list[str]


def answers_table(
    solutions: pa.Table, problem_ids: Sequence[str] | None, run_seed: int
) -> pa.Table:
    """`ANSWERS`: for each search, rows for each problem and point, then one for each point.

    solutions: graded rows of `SOLUTIONS`, in any order. problem_ids: the problems to look at,
    None for all. A row with `problem_id` null holds the mean over problems and its 95 %
    interval. A problem with fewer groups than a point needs, because units failed, is left out
    of that point; one without any solution is left out everywhere: count them with `units`.
    """
    return answers_of_parts([solutions], problem_ids, run_seed)


def answers_of_parts(
    parts: Iterable[pa.Table], problem_ids: Sequence[str] | None, run_seed: int
) -> pa.Table:
    """`answers_table` of solutions that come in parts: see `answers_in_parts`."""
    tables = answers_in_parts(parts, problem_ids, run_seed)
    return pa.concat_tables([ANSWERS.empty_table(), *tables])


def answers_in_parts(
    parts: Iterable[pa.Table], problem_ids: Sequence[str] | None, run_seed: int
) -> Iterator[pa.Table]:
    """The same rows in order, those of `PROBLEMS_A_PART` problems at a time.

    A part has at least `SOLUTION_COLUMNS`, and all solutions of a search over a problem stand in
    one part; raises ValueError if they do not. In memory are one part and, of each problem, the
    numbers of its curve and the answers that it chose.
    """
    found: defaultdict[Search, dict[str, _Marks]] = defaultdict(dict)
    for part in parts:
        for search, problem_id, rows in solutions_by_problem(
            part.select(SOLUTION_COLUMNS), problem_ids
        ):
            if problem_id in found[search]:
                raise ValueError(f"the solutions of {problem_id!r} stand in several parts")
            found[search][problem_id] = _marks(search, problem_id, rows, run_seed)
    for search in sorted(found):
        yield from _search_tables(search, [found[search][name] for name in sorted(found[search])])


def solutions_by_problem(
    solutions: pa.Table, problem_ids: Sequence[str] | None = None
) -> Iterator[tuple[Search, str, pa.Table]]:
    """Each search, each of its problems in turn (None for all), and the solutions of both.

    Probes and routes of compute-optimal searches are no searches of their own and left out.
    """
    yield from _slices(without_routed(_sorted(solutions, problem_ids)))


def without_routed(rows: pa.Table) -> pa.Table:
    """Rows with the columns of a search, without those of compute-optimal searches."""
    variants = pc.unique(rows["variant"]).to_pylist()
    if routed := [name for name in variants if name and is_routed(name)]:
        return rows.filter(pc.invert(pc.is_in(rows["variant"], pa.array(routed)))).combine_chunks()
    return rows


def accuracy_at(
    search: Search, problem_id: str, rows: pa.Table, run_seed: int, ks: list[int]
) -> Floats:
    """(len(ks), cells): expected correctness of k groups, for any k and not only those of a curve.

    rows: from `solutions_by_problem`. NaN where k is more groups than there are. At the points of
    a curve the values are those of `answers_table`.
    """
    seed = _sub_sample_seed(search, problem_id, run_seed)
    return _curves(search, ballots_of(rows), _scores(search, rows["rewards"].to_pylist()), seed, ks)


def _sorted(rows: pa.Table, problem_ids: Sequence[str] | None) -> pa.Table:
    """The rows ordered by search, problem and place in the search."""
    if problem_ids is not None:
        rows = rows.filter(pc.is_in(rows["problem_id"], pa.array(problem_ids, pa.string())))
    order = pc.sort_indices(rows, [(name, "ascending") for name in _COLUMNS])
    return rows.take(order).combine_chunks()


def _slices(rows: pa.Table) -> Iterator[tuple[Search, str, pa.Table]]:
    """The solutions of one search over one problem at a time."""
    starts = _starts(rows)
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=False):
        part = rows.slice(start, stop - start)
        *search, problem_id = (part[name][0].as_py() for name in (*_SEARCH, "problem_id"))
        yield Search(*search), problem_id, part


def _starts(rows: pa.Table) -> list[int]:
    """Where the search or the problem changes."""
    changed = np.zeros(len(rows), dtype=bool)
    changed[:1] = True
    for name in (*_SEARCH, "problem_id"):
        column = rows[name]
        differs = pc.not_equal(column.slice(1), column.slice(0, max(0, len(rows) - 1)))
        changed[1:] |= differs.to_numpy(zero_copy_only=False).astype(bool)
    return [int(place) for place in np.flatnonzero(changed)]


def _marks(search: Search, problem_id: str, part: pa.Table, run_seed: int) -> _Marks:
    ballots, scores = ballots_of(part), _scores(search, part["rewards"].to_pylist())
    seed = _sub_sample_seed(search, problem_id, run_seed)
    values = _curves(search, ballots, scores, seed, search.ks)
    return _Marks(problem_id, values, _answers(search, ballots, scores, part["answer"]))


def ballots_of(part: pa.Table) -> Ballots:
    """The graded solutions of one search over one problem as ballots."""
    return Ballots(
        part["subtree"].to_numpy().astype(np.int64),
        part["answer_class"].to_numpy().astype(np.int64),
        pc.equal(part["verdict"], "correct").to_numpy(zero_copy_only=False).astype(bool),
    )


def scores_of(part: pa.Table, reduction: Reduction) -> Floats:
    """(S,): the solutions' scores; 0 for those without a reward."""
    rewards = (steps or [] for steps in part["rewards"].to_pylist())
    return np.array([reduce_rewards(steps, reduction) for steps in rewards], np.float64)


def vote_of(search: Search, vote: Vote) -> Vote:
    """A vote that the search can hold: without rewards there is only the majority."""
    return vote if STRATEGIES[search.strategy].uses_prm else Vote.MAJORITY


def _sub_sample_seed(search: Search, problem_id: str, run_seed: int) -> int:
    # Without the variant: variants of a search are compared on the same sub-samples.
    return derive_seed(
        run_seed, "sub-samples", search.policy, search.strategy, search.n, problem_id
    )


def _scores(search: Search, rewards: list[list[float] | None]) -> dict[str, Floats]:
    """Scores (S,) by reduction; for strategies without rewards one row that nobody reads."""
    if not STRATEGIES[search.strategy].uses_prm:
        return {NO_REDUCTION: np.zeros(len(rewards))}
    return {
        str(reduction): np.array([reduce_rewards(steps or [], reduction) for steps in rewards])
        for reduction in Reduction
    }


def _curves(
    search: Search, ballots: Ballots, scores: dict[str, Floats], seed: int, ks: list[int]
) -> Floats:
    """(points, cells): what k groups are worth, NaN for more groups than there are; k ascend."""
    held = 1 if not STRATEGIES[search.strategy].splits else len(np.unique(ballots.group))
    there = [held] if is_uneven(search.variant) else [k for k in ks if k <= held]
    found = _by_cell(ballots, scores, there, seed)
    values = np.full((len(ks), len(search.cells)), np.nan)
    for column, cell in enumerate(search.cells):
        values[: len(there), column] = found[cell]
    return values


def _by_cell(
    ballots: Ballots, scores: dict[str, Floats], ks: list[int], seed: int
) -> dict[tuple[str, str], Floats]:
    weights = np.stack([np.ones(len(ballots.group)), *scores.values()])
    majority, *weighted = expected_sums(ballots, weights, ks, seed)
    found = {(NO_REDUCTION, PASS): expected_pass(ballots, ks)}
    for (reduction, score), shares in zip(scores.items(), weighted, strict=True):
        found[reduction, str(Vote.MAJORITY)] = majority
        found[reduction, str(Vote.WEIGHTED)] = shares
        found[reduction, str(Vote.MAX)] = expected_max(ballots, score, ks)
    return found


def _answers(
    search: Search, ballots: Ballots, scores: dict[str, Floats], texts: pa.ChunkedArray
) -> list[str]:
    """The text by which the first solution of each cell's winning class gave its answer."""
    known, first = np.unique(ballots.answer_class, return_index=True)
    place = dict(zip(known.tolist(), first.tolist(), strict=True))
    # One text for all cells that chose it: it is held until all problems have been looked at.
    given = {NO_CLASS: ""}
    answers = []
    for reduction, vote in search.cells:
        winner = NO_CLASS
        if vote != PASS:
            winner = decide(ballots, scores[reduction], Vote(vote)).answer_class
        if winner not in given:
            given[winner] = texts[place[winner]].as_py()
        answers.append(given[winner])
    return answers


def _search_tables(search: Search, marks: list[_Marks]) -> Iterator[pa.Table]:
    """Rows of all problems, then the rows of all problems together."""
    for start in range(0, len(marks), PROBLEMS_A_PART):
        yield _problem_rows(search, marks[start : start + PROBLEMS_A_PART])
    points = range(len(search.ks))
    curve = [accuracy_interval(np.stack([mark.values[k] for mark in marks])) for k in points]
    mean, low, high = (np.stack(side)[None] for side in zip(*curve, strict=True))
    yield _rows(search, [None], mean, low, high, np.full(mean.shape, "", dtype=object))


def _problem_rows(search: Search, marks: list[_Marks]) -> pa.Table:
    values = np.stack([mark.values for mark in marks])
    answers = np.full(values.shape, "", dtype=object)
    answers[:, -1] = [mark.answers for mark in marks]
    empty = np.full(values.shape, np.nan)
    return _rows(search, [mark.problem_id for mark in marks], values, empty, empty, answers)


def _rows(
    search: Search,
    problem_ids: Sequence[str | None],
    values: Floats,
    low: Floats,
    high: Floats,
    answers: np.ndarray[Any, Any],
) -> pa.Table:
    """`ANSWERS` rows of (problems, points, cells) arrays, without the missing points."""
    problem, point, cell = (index.ravel() for index in np.indices(values.shape))
    columns = {
        "problem_id": pa.array(problem_ids, pa.string()).take(pa.array(problem)),
        "policy": [search.policy] * values.size,
        "strategy": [search.strategy] * values.size,
        "n": np.array(search.ns)[point],
        "branching": np.full(values.size, search.branching),
        "keep": np.array([search.keep_at(n) for n in search.ns])[point],
        "variant": [search.variant] * values.size,
        "searched_n": np.full(values.size, search.n),
        "reduction": pa.array([name for name, _ in search.cells]).take(pa.array(cell)),
        "vote": pa.array([name for _, name in search.cells]).take(pa.array(cell)),
        "answer": answers.ravel(),
        "expected_correct": values.ravel(),
        "ci_low": pa.array(low.ravel(), from_pandas=True),
        "ci_high": pa.array(high.ravel(), from_pandas=True),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in ANSWERS]
    return pa.table(arrays, schema=ANSWERS).filter(pa.array(~np.isnan(values.ravel())))


@dataclass(frozen=True, slots=True)
class Point:
    """One aggregated row of `ANSWERS`: accuracy in [0, 1] and its interval (None for one
    problem)."""

    policy: str
    strategy: str
    n: int
    branching: int
    keep: int
    variant: str
    searched_n: int
    reduction: str
    vote: str
    expected_correct: float
    ci_low: float | None
    ci_high: float | None

    @property
    def is_routed(self) -> bool:
        """Whether it is of a compute-optimal search: no tree and no vote of its own."""
        return self.strategy == COMPUTE_OPTIMAL

    @property
    def rule(self) -> str:
        """The strategy, with what is not default about it: the name of a line."""
        return f"{self.strategy} {self.variant}".rstrip()


def summary(answers: pa.Table) -> list[Point]:
    """The aggregated points in table order; of several searches that give a point the one
    with the largest N, which averages over most."""
    rows = answers.filter(pc.is_null(answers["problem_id"]))
    names = [field.name for field in ANSWERS if field.name not in ("problem_id", "answer")]
    points = (Point(**row) for row in rows.select(names).to_pylist())
    widest: dict[tuple[str, ...], Point] = {}
    for point in sorted(points, key=lambda point: point.searched_n):
        widest[_place(point)] = point
    return list(widest.values())


def _place(point: Point) -> tuple[str, ...]:
    numbers = (str(point.n), str(point.branching))
    return (point.policy, point.rule, *numbers, point.reduction, point.vote)


def best_votes(points: Iterable[Point]) -> dict[tuple[str, str], Point]:
    """For each policy and rule the most accurate vote at its largest N (coverage is none).

    The best of up to twelve on the same problems flatters: report it as such.
    """
    best: dict[tuple[str, str], Point] = {}
    for point in points:
        held = best.get((point.policy, point.rule))
        votes = point.vote not in (PASS, ROUTE_VOTE)
        if votes and (held is None or _rank(point) > _rank(held)):
            best[point.policy, point.rule] = point
    return best


def _rank(point: Point) -> tuple[int, float]:
    return point.n, point.expected_correct


def single_samples(points: Iterable[Point]) -> dict[str, Point]:
    """For each policy the accuracy of one sample: pass at n = 1, from the widest search by a
    default rule, if there is one.

    A policy whose searches give no n = 1 has its smallest n instead: look at `n`.
    """
    single: dict[str, Point] = {}
    for point in points:
        held = single.get(point.policy)
        if point.vote == PASS and (held is None or _nearness(point) < _nearness(held)):
            single[point.policy] = point
    return single


def _nearness(point: Point) -> tuple[int, bool, int]:
    return point.n, point.variant != "", -point.searched_n
