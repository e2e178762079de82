"""The columns of a vote table by a published system's votes, from the `solutions` table.

An answer counts as correct if that very string was graded so; nothing is graded again.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.curves import SOLUTION_COLUMNS, Search, solutions_by_problem
from jobs.intervals import accuracy_interval
from jobs.results import table_parts
from jobs.storage import Where
from jobs.vote_table import COVERAGE, MAJORITY, ROWS, SCORED_ROWS, Cell, Column
from search.compat_votes import (
    VoteRule,
    compute_optimal_tts_score,
    compute_optimal_tts_winner,
    search_and_learn_winner,
)
from search.rewards import Reduction, reduce_rewards
from search.strategies import STRATEGIES
from search.votes import Vote


@dataclass(frozen=True, slots=True)
class Solutions:
    """The solutions of one problem, in the order of the tree: by subtree, then by path."""

    subtrees: Sequence[int]
    answers: Sequence[str]
    classes: Sequence[int]
    rewards: Sequence[Sequence[float]]
    correct: Sequence[bool]

    def first(self, count: int) -> "Solutions":
        """The first so many of them."""
        return Solutions(
            self.subtrees[:count],
            self.answers[:count],
            self.classes[:count],
            self.rewards[:count],
            self.correct[:count],
        )


def compat_columns(folder: Where, rule: VoteRule, run: str, prm: str) -> list[Column]:
    """A column for each search and each N at which the rule gives an answer."""
    found: defaultdict[tuple[Search, int], list[dict[str, bool]]] = defaultdict(list)
    for part in table_parts(folder, "solutions", SOLUTION_COLUMNS):
        for search, _, rows in solutions_by_problem(part):
            solutions = in_tree_order(rows)
            for n, count in voters(rule, search, solutions).items():
                marks = outcomes(rule, solutions.first(count), has_rewards(search))
                found[search, n].append(marks)
    columns: dict[object, Column] = {}
    for search, n in sorted(found):
        cells = _cells(found[search, n])
        column = Column(run, prm, search.policy, search.rule, search.branching, n, cells)
        # Of two searches the smaller: the first 4 of a beam of 8 are no beam of 4.
        columns.setdefault((column.line, n), column)
    return list(columns.values())


def has_rewards(search: Search) -> bool:
    """Whether there are scores to vote by."""
    return STRATEGIES[search.strategy].uses_prm


def in_tree_order(rows: pa.Table) -> Solutions:
    """One problem's rows of `SOLUTIONS`; ids sort as text in tables, `3:0.10` before `3:0.2`."""
    places = [_place(name) for name in rows["solution_id"].to_pylist()]
    rows = rows.take(sorted(range(len(places)), key=places.__getitem__))
    return Solutions(
        rows["subtree"].to_pylist(),
        rows["answer"].to_pylist(),
        rows["answer_class"].to_pylist(),
        [steps or [] for steps in rows["rewards"].to_pylist()],
        [verdict == "correct" for verdict in rows["verdict"].to_pylist()],
    )


def _place(node_id: str) -> list[int]:
    return [int(number) for number in node_id.replace(":", ".").split(".") if number]


def voters(rule: VoteRule, search: Search, solutions: Solutions) -> dict[int, int]:
    """How many of the first solutions vote at each N; an N that lacks some is left out."""
    splits, held = STRATEGIES[search.strategy].splits, len(solutions.answers)
    if rule is VoteRule.SEARCH_AND_LEARN:
        ns = [2**power for power in range(search.n.bit_length())]
        return {n: min(n, held) for n in ns if n <= held or not splits}
    if not splits:
        return {search.n: held}
    ends = np.flatnonzero(np.diff([*solutions.subtrees, -1]) != 0) + 1
    pairs = zip(search.ks, search.ns, strict=True)
    return {n: int(ends[k - 1]) for k, n in pairs if k <= len(ends)}


def outcomes(rule: VoteRule, solutions: Solutions, scored: bool) -> dict[str, bool]:
    """Whether each row's answer is correct."""
    rows = {MAJORITY: (Reduction.LAST, Vote.MAJORITY)} | (SCORED_ROWS if scored else {})
    marks = {COVERAGE: any(solutions.correct)}
    for name, (reduction, vote) in rows.items():
        if rule is VoteRule.COMPUTE_OPTIMAL_TTS or reduction is Reduction.LAST:
            place = _winner(rule, solutions, reduction, vote)
            marks[name] = place is not None and solutions.correct[place]
    return marks


def _winner(rule: VoteRule, solutions: Solutions, reduction: Reduction, vote: Vote) -> int | None:
    if rule is VoteRule.SEARCH_AND_LEARN:
        last = [reduce_rewards(steps, Reduction.LAST) for steps in solutions.rewards]
        return search_and_learn_winner(solutions.classes, last, vote)
    scores = [compute_optimal_tts_score(steps, reduction) for steps in solutions.rewards]
    return compute_optimal_tts_winner(solutions.answers, scores, vote)


def _cells(problems: list[dict[str, bool]]) -> dict[str, Cell]:
    names = [name for name in ROWS if name in problems[0]]
    values = np.array([[marks[name] for name in names] for marks in problems], dtype=np.float64)
    sides = zip(*(side.tolist() for side in accuracy_interval(values)), strict=True)
    return {
        name: Cell(mean, None if low != low else low, None if high != high else high, len(problems))
        for name, (mean, low, high) in zip(names, sides, strict=True)
    }
