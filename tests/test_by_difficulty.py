"""Accuracy by difficulty: bins by hand, and no sample that decides a bin is scored in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report import write_run

from jobs.by_difficulty import BINS, ByDifficulty, by_difficulty
from jobs.curves import answers_table
from jobs.difficulty import Thresholds
from jobs.fitting import FitSettings
from jobs.reported_run import Choice, correct_by_problem, read_run
from jobs.settings import DifficultySettings
from search.rewards import Reduction
from search.schemas import SOLUTIONS
from search.votes import Vote

pytestmark = pytest.mark.unit

CHOICE = Choice(Reduction.LAST, Vote.WEIGHTED)
Verdicts = Callable[[int, int], bool]


def sampled_run(folder: Path, right: Verdicts, problems: int, n: int = 8) -> Path:
    """A run of best_of_n and dvts; right: whether sample s of problem p is, of either."""
    searches = [("best_of_n", n, 1), ("dvts", 4, 4)]
    write_run(folder, {"tiny": 0.5}, searches, problems)
    rows = pq.read_table(folder / "solutions.parquet").to_pylist()
    for row in rows:
        place, problem = int(row["solution_id"].partition(":")[0]), int(row["problem_id"][1:])
        correct = right(problem, place)
        row["verdict"] = "correct" if correct else "incorrect"
        row["answer_class"] = 0 if correct else 1 + place
        row["rewards"] = [0.5]
    return rewrite(folder, rows)


def rewrite(folder: Path, rows: list[dict[str, Any]]) -> Path:
    solutions = pa.Table.from_pylist(rows, SOLUTIONS)
    pq.write_table(solutions, folder / "solutions.parquet")
    pq.write_table(answers_table(solutions, None, 1), folder / "answers.parquet")
    return folder


def binned(folder: Path, thresholds: Thresholds | None = None) -> ByDifficulty:
    return by_difficulty(read_run(folder), CHOICE, thresholds or Thresholds())


def test_bins_come_from_even_samples_and_scores_from_odd_ones(tmp_path: Path) -> None:
    # Problem 0: even samples right, odd ones wrong; 1: the reverse; 2: one of four even ones.
    def right(problem: int, sample: int) -> bool:
        return (sample % 2 == 0, sample % 2 == 1, sample == 2)[problem]

    found = binned(sampled_run(tmp_path / "run", right, 3))
    [policy] = found.policies
    assert policy.samples == 4
    assert policy.absolute == {"easy": ["p000"], "medium": ["p002"], "hard": ["p001"]}
    points = {(point.rule, point.n): point.bins for point in found.points}
    assert set(points) == {("best_of_n", 1), ("best_of_n", 2), ("best_of_n", 4), ("dvts", 4)}
    for n in (1, 2, 4):
        accuracies = {name: b.accuracy for name, b in points["best_of_n", n].items()}
        assert accuracies == {"easy": 0.0, "medium": 0.0, "hard": 1.0}
    assert {b.problems for b in points["best_of_n", 4].values()} == {1}
    assert {b.low for b in points["best_of_n", 4].values()} == {None}


def test_other_strategies_are_scored_in_full(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    table = rng.random((30, 8)) < rng.random((30, 1))
    folder = sampled_run(tmp_path / "run", lambda problem, sample: bool(table[problem, sample]), 30)
    found, run = binned(folder), read_run(folder)
    even = {f"p{p:03}": table[p, ::2].mean() for p in range(30)}
    expected = {
        "easy": [p for p in even if even[p] >= 0.5],
        "medium": [p for p in even if 0.1 <= even[p] < 0.5],
        "hard": [p for p in even if even[p] < 0.1],
    }
    assert found.policies[0].absolute == expected
    [dvts] = [point for point in found.points if point.rule == "dvts"]
    [mean] = [p for p in run.points if CHOICE.shows(p) and p.strategy == "dvts"]
    values = correct_by_problem(run.answers, mean)
    for name in BINS:
        inside = [values[problem] for problem in expected[name]]
        assert dvts.bins[name].problems == len(inside)
        assert dvts.bins[name].accuracy == pytest.approx(np.mean(inside))
    [best] = [p for p in found.points if (p.rule, p.n) == ("best_of_n", 1)]
    odd = [table[int(p[1:]), 1::2].mean() for p in expected["easy"]]
    assert best.bins["easy"].accuracy == pytest.approx(np.mean(odd))


def test_problems_that_are_all_alike_are_as_accurate_in_every_bin(tmp_path: Path) -> None:
    """Scored on the samples that decided, easy ones would look far better than hard ones."""
    table = np.random.default_rng(4).random((300, 8)) < 0.3
    folder = sampled_run(
        tmp_path / "run", lambda problem, sample: bool(table[problem, sample]), 300
    )
    [single] = [p for p in binned(folder).points if (p.rule, p.n) == ("best_of_n", 1)]
    for name in BINS:
        low, high = single.bins[name].low, single.bins[name].high
        assert low is not None
        assert high is not None
        assert low - 0.03 <= 0.3 <= high + 0.03
        assert single.bins[name].problems > 40
    even = table[:, ::2].mean(axis=1)
    assert even[even >= 0.5].mean() - even[even < 0.1].mean() > 0.5


def test_fifths_hold_every_problem_once(tmp_path: Path) -> None:
    table = np.random.default_rng(5).random((50, 32)) < np.linspace(0.05, 0.95, 50)[:, None]
    folder = sampled_run(
        tmp_path / "run", lambda problem, sample: bool(table[problem, sample]), 50, 32
    )
    found = binned(folder)
    [policy] = found.policies
    names = [name for fifth in policy.fifths.values() for name in fifth]
    assert sorted(names) == [f"p{place:03}" for place in range(50)]
    easiest, hardest = policy.fifths["fifth 1"], policy.fifths["fifth 5"]
    even = table[:, ::2].mean(axis=1)
    assert min(even[int(p[1:])] for p in easiest) >= max(even[int(p[1:])] for p in hardest)
    by_bins, by_fifths = found.at_full_n()[0]
    assert (by_bins.rule, by_bins.n) == (by_fifths.rule, by_fifths.n) == ("best_of_n", 16)


def test_without_independent_samples_there_are_no_bins(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.4}, [("dvts", 8, 4), ("beam", 4, 4)])
    found = binned(folder)
    assert (found.policies, found.points, found.without) == ([], [], ["tiny"])


def test_a_single_sample_decides_no_bin(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.4}, [("best_of_n", 1, 1), ("dvts", 8, 4)])
    assert binned(folder).without == ["tiny"]


def test_searches_with_as_many_solutions_as_each_problem_needs_decide_no_bin(
    tmp_path: Path,
) -> None:
    searches = [("best_of_n stop=posterior", 8, 1), ("dvts", 8, 4)]
    folder = write_run(tmp_path / "run", {"tiny": 0.4}, searches)
    assert binned(folder).without == ["tiny"]


def test_thresholds_are_those_of_the_recipe(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.4}, [("best_of_n", 8, 1)])
    assert read_run(folder).thresholds == Thresholds(0.5, 0.1)
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["difficulty"] = {"easy": 0.9, "hard": 0.2}
    (folder / "run.json").write_text(json.dumps(record))
    assert read_run(folder).thresholds == Thresholds(0.9, 0.2)


def test_defaults_agree_everywhere() -> None:
    recipe, fitted = DifficultySettings(), FitSettings().thresholds
    assert Thresholds(recipe.easy, recipe.hard) == Thresholds() == fitted
