"""From what was found to numbers: grading, the fewest PRM tokens, rates, intervals.

Pure but for the grading processes. Invariant: a problem whose search failed counts as answered
wrongly, and a candidate without an answer has no vote, for every contestant alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.prm_layout import PRMLayout
from benchmarks.peers.measured import Candidate, Found
from jobs.grading import REFERENCE_CLASS, Graders
from jobs.intervals import clustered_interval
from search.answers import boxed_answer
from search.problem import Problem
from search.protocols import PRMPath
from search.votes import Ballots, Vote, decide

VOTES = (Vote.WEIGHTED, Vote.MAX)


@dataclass(frozen=True, slots=True)
class Row:
    """One repetition of one contestant's search at one N: the raw numbers.

    `correct` holds, for each vote, the expected correctness of each problem in order.
    """

    contestant: str
    search: str
    n: int
    repetition: int
    seconds: float
    policy_tokens: int
    prm_tokens: int
    prm_tokens_least: int
    problem_seconds: tuple[float, ...]
    solutions: tuple[int, ...]
    correct: dict[str, tuple[float, ...]]
    errors: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.contestant, self.search, self.n


def least_prm_tokens(layout: PRMLayout, paths: Iterable[PRMPath]) -> int:
    """What a perfect cache would compute for these paths: each distinct prefix of tokens once.

    Problems share what the layout writes before them.
    """
    known: set[int] = set()
    for path in set(paths):
        before = 0
        for token in layout.lay_out(path).ids:
            before = hash((before, token))
            known.add(before)
    return len(known)


async def correctness(
    graders: Graders, problem: Problem, candidates: Sequence[Candidate]
) -> dict[Vote, float]:
    """The probability that each vote's answer is right; 0 where nothing has an answer."""
    answers = [boxed_answer(candidate.text) for candidate in candidates]
    judged = await graders.judge(problem, answers)
    classes = np.array([each.answer_class for each in judged], dtype=np.int64)
    ballots = Ballots(np.arange(len(classes)), classes, classes == REFERENCE_CLASS)
    scores = np.array([candidate.score for candidate in candidates], dtype=np.float64)
    return {vote: decide(ballots, scores, vote).expected_correct for vote in VOTES}


async def graded(
    graders: Graders, problems: Sequence[Problem], found: Sequence[Found]
) -> dict[str, tuple[float, ...]]:
    """For each vote, one number a problem."""
    by_id = {each.problem_id: each.candidates for each in found}
    marks = [await correctness(graders, each, by_id[each.problem_id]) for each in problems]
    return {str(vote): tuple(mark[vote] for mark in marks) for vote in VOTES}


@dataclass(frozen=True, slots=True)
class Summary:
    """All repetitions of one contestant's search at one N.

    Triples are median, lowest and highest repetition; accuracies are the mean and its 95 %
    interval over problems (one value a problem: the mean of its repetitions).
    """

    tokens_per_s: tuple[float, float, float]
    problems_per_min: tuple[float, float, float]
    p50_s: float
    p99_s: float
    prm_tokens: float
    prm_ratio: float
    accuracy: dict[str, tuple[float, float, float]]
    solutions: float
    failed: int


def summarised(rows: Sequence[Row]) -> Summary:
    """Rows of one key."""
    times = np.concatenate([row.problem_seconds for row in rows])
    computed = [row.prm_tokens for row in rows]
    least = sum(row.prm_tokens_least for row in rows)
    return Summary(
        _spread([_rate(row) for row in rows]),
        _spread([60 * len(row.problem_seconds) / row.seconds for row in rows]),
        float(np.percentile(times, 50)),
        float(np.percentile(times, 99)),
        float(np.mean(computed)),
        sum(computed) / least if least else float("nan"),
        {str(vote): _accuracy([row.correct[str(vote)] for row in rows]) for vote in VOTES},
        float(np.mean([row.solutions for row in rows])),
        sum(len(row.errors) for row in rows),
    )


def over_raw(rows: Sequence[Row]) -> dict[tuple[str, str, int], tuple[float, float, float]]:
    """Tokens/s of each key over those of `raw` at the same N in the same repetition.

    Median, lowest and highest repetition; nothing where `raw` was not run.
    """
    raw = {(row.n, row.repetition): row for row in rows if row.contestant == "raw"}
    ratios: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        if beside := raw.get((row.n, row.repetition)):
            ratios.setdefault(row.key, []).append(_rate(row) / _rate(beside))
    return {key: _spread(found) for key, found in ratios.items()}


def _rate(row: Row) -> float:
    return row.policy_tokens / row.seconds


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return float(np.median(values)), float(min(values)), float(max(values))


def _accuracy(repetitions: Sequence[tuple[float, ...]]) -> tuple[float, float, float]:
    mean, low, high = clustered_interval(np.mean(repetitions, axis=0))
    return float(mean), float(np.clip(low, 0.0, 1.0)), float(np.clip(high, 0.0, 1.0))
