"""Known accuracies: a policy and a PRM simple enough to simulate, searched by the real code.

Each step of the policy is right with probability 3/4, a solution has eight steps and is right if
all are, and wrong answers are too many to agree. The PRM is binormal: its evidence is normal, its
mean higher by sqrt(2) z(AUC) where all steps so far are right, with noise of its own at every step.
`simulated` plays the strategies on numbers alone, with no tree, text or seed in common with
`searched`, which runs `search/`. `python -m benchmarks.oracle` prints both for docs/correctness.md.
"""

import argparse
import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.integrate import trapezoid
from scipy.stats import norm

from search.config import SearchConfig
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.rewards import Reduction, reduce_rewards
from search.rows import NO_CLASS, solution_table
from search.scripted import SeededPolicy, SeededPRM
from search.strategies import keep_count
from search.subsampling import expected_max
from search.votes import Ballots, Flags, Floats

STEP_ACCURACY, STEPS, BRANCHING, ANSWER = 0.75, 8, 4, "42"
ONE_SAMPLE = STEP_ACCURACY**STEPS
POLICY_OPTIONS = {
    "p": STEP_ACCURACY,
    "mean_steps": STEPS,
    "spread": 0,
    "answer": ANSWER,
    "wrong_answers": 1_000_000,
}
# Every accuracy is that of the best-scored solution (vote `max`): of which strategy and reduction.
KINDS = {
    "best of N, last": ("best_of_n", Reduction.LAST),
    "best of N, min": ("best_of_n", Reduction.MIN),
    "DVTS": ("dvts", Reduction.LAST),
    "beam": ("beam", Reduction.LAST),
}
AREAS, NS = (0.7, 0.8, 0.9), (16, 64)
# The table that the project started from: rounded, and with the error of a few hundred problems.
TABULATED: dict[tuple[float, int], tuple[float, float, float, float]] = {
    (0.7, 16): (0.27, 0.32, 0.55, 0.78),
    (0.7, 64): (0.36, 0.48, 0.68, 0.89),
    (0.8, 16): (0.40, 0.49, 0.82, 0.94),
    (0.8, 64): (0.57, 0.71, 0.93, 0.99),
    (0.9, 16): (0.60, 0.68, 0.98, 0.99),
    (0.9, 64): (0.82, 0.90, 1.00, 1.00),
}
_RUN_SEED = 7

Marks: TypeAlias = dict[tuple[str, int], Floats]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean accuracy and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Floats) -> "Estimate":
        """Over one value a problem."""
        spread = float(np.std(values, ddof=1)) / np.sqrt(len(values))
        return cls(float(np.mean(values)), float(spread))


# On numbers alone


def simulated(auc: float, n: int, problems: int, seed: int = 1) -> dict[str, Estimate]:
    """Each kind's accuracy at N."""
    rng = np.random.default_rng(seed)
    written = _written(rng, problems, n)
    rewards = _rewards(rng, written, auc)
    last, lowest = rewards[:, :, -1], rewards.min(axis=2)
    ends = written[:, :, -1]
    found = [_best(ends, last), _best(ends, lowest), _dvts(rng, auc, problems, n)]
    values = [*found, _beam(rng, auc, problems, n)]
    return {kind: Estimate.of(value) for kind, value in zip(KINDS, values, strict=True)}


def exact_best_of_n(auc: float, n: int) -> float:
    """Best of n by the last reward: the integral of n (1 - S)^(n - 1) over right solutions.

    ROC-n-reroll (arXiv 2507.12399): S is the share of all solutions above a reward.
    """
    gap, x = _gap(auc), np.linspace(-8, 12, 20001)
    below = ONE_SAMPLE * norm.cdf(x - gap) + (1 - ONE_SAMPLE) * norm.cdf(x)
    return float(trapezoid(n * below ** (n - 1) * ONE_SAMPLE * norm.pdf(x - gap), x))


def _gap(auc: float) -> float:
    return float(np.sqrt(2) * norm.ppf(auc))


def _rewards(rng: np.random.Generator, right: Flags, auc: float) -> Floats:
    return np.asarray(rng.standard_normal(right.shape) + _gap(auc) * right)


def _written(rng: np.random.Generator, problems: int, n: int) -> Flags:
    """(P, N, STEPS): whether all steps so far are right."""
    steps = rng.random((problems, n, STEPS)) < STEP_ACCURACY
    return np.asarray(np.logical_and.accumulate(steps, axis=2))


def _best(right: Flags, scores: Floats) -> Floats:
    """(P,): whether the best-scored of (P, N) is right."""
    return np.take_along_axis(right, scores.argmax(1)[:, None], 1)[:, 0].astype(np.float64)


def _dvts(rng: np.random.Generator, auc: float, problems: int, n: int) -> Floats:
    kept = np.ones((problems, n // BRANCHING, 1), dtype=bool)
    for _ in range(STEPS):
        right = kept & (rng.random((problems, n // BRANCHING, BRANCHING)) < STEP_ACCURACY)
        rewards = _rewards(rng, right, auc)
        kept = np.take_along_axis(right, rewards.argmax(2)[:, :, None], 2)
    return _best(right.reshape(problems, n), rewards.reshape(problems, n))


def _beam(rng: np.random.Generator, auc: float, problems: int, n: int) -> Floats:
    kept = np.ones((problems, n // BRANCHING), dtype=bool)
    for _ in range(STEPS):
        right = np.repeat(kept, BRANCHING, axis=1) & (rng.random((problems, n)) < STEP_ACCURACY)
        rewards = _rewards(rng, right, auc)
        best = np.argsort(-rewards, axis=1)[:, : n // BRANCHING]
        kept = np.take_along_axis(right, best, 1)
    return _best(right, rewards)


# By the real search


def problem_set(problems: int) -> list[Problem]:
    """Problems that differ in nothing but their names."""
    return [Problem(f"p{place}", f"Problem {place}?", ANSWER) for place in range(problems)]


def searched(auc: float, ns: tuple[int, ...], problems: int, run_seed: int = _RUN_SEED) -> Marks:
    """(P,) expected correctness by (kind, N), from `search/`.

    Strategies that split are run at the largest N alone, and smaller N are read off that.
    """
    policy, prm = SeededPolicy(**POLICY_OPTIONS), SeededPRM(auc=auc)  # type: ignore[arg-type]
    marks: dict[tuple[str, int], list[float]] = {}
    for problem in problem_set(problems):
        for config in _configs(ns, run_seed):
            [unit] = partition(problem, config, config.n)
            growth = asyncio.run(run_unit(unit, policy, prm))
            rows = solution_table(unit, "seeded", growth).to_pylist()
            for kind, n, value in _accuracies(growth, rows, ns):
                marks.setdefault((kind, n), []).append(value)
    return {place: np.array(values) for place, values in marks.items()}


def _configs(ns: tuple[int, ...], run_seed: int) -> Iterator[SearchConfig]:
    for strategy, sizes in (("best_of_n", ns[-1:]), ("dvts", ns[-1:]), ("beam", ns)):
        branching = 1 if strategy == "best_of_n" else BRANCHING
        for n in sizes:
            keep = keep_count(strategy, n, branching)
            yield SearchConfig(strategy, n, branching, keep, Reduction.LAST, run_seed)


def _accuracies(
    growth: Growth, rows: list[dict[str, object]], ns: tuple[int, ...]
) -> Iterator[tuple[str, int, float]]:
    config = growth.config
    answers = [str(row["answer"]) for row in rows]
    ballots = Ballots(
        np.array([row["subtree"] for row in rows], dtype=np.int64),
        np.array([_class_of(answer) for answer in answers], dtype=np.int64),
        np.array([answer == ANSWER for answer in answers]),
    )
    sizes = ns if config.strategy != "beam" else (config.n,)
    groups = [1 if config.strategy == "beam" else n // config.branching for n in sizes]
    for kind, (strategy, reduction) in KINDS.items():
        if strategy == config.strategy:
            scores = np.array([reduce_rewards(row["rewards"], reduction) for row in rows])  # type: ignore[arg-type]
            values = expected_max(ballots, scores, groups)
            yield from ((kind, n, float(v)) for n, v in zip(sizes, values, strict=True))


def _class_of(answer: str) -> int:
    if not answer:
        return NO_CLASS
    return 0 if answer == ANSWER else int(answer)


def main() -> None:
    """Prints the table of docs/correctness.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--simulated", type=int, default=20_000)
    asked = parser.parse_args()
    print("| AUC | N | | tabulated | simulated | searched | z |")
    print("|--:|--:|---|--:|--:|--:|--:|")
    for auc in AREAS:
        marks = searched(auc, NS, asked.problems)
        for n in NS:
            truths = simulated(auc, n, asked.simulated)
            for kind, table in zip(KINDS, TABULATED[auc, n], strict=True):
                print(_line(auc, n, kind, table, truths[kind], Estimate.of(marks[kind, n])))


def _line(auc: float, n: int, kind: str, table: float, truth: Estimate, found: Estimate) -> str:
    error = float(np.hypot(truth.error, found.error))
    z = (found.mean - truth.mean) / error if error else 0.0
    shown = " | ".join(f"{100 * each.mean:.1f} ± {100 * each.error:.1f}" for each in (truth, found))
    return f"| {auc} | {n} | {kind} | {100 * table:.0f} | {shown} | {z:+.1f} |"


if __name__ == "__main__":
    main()
