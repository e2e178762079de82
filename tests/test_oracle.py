"""Known accuracies: the simulated ones, those of the pure search, and those of the whole system.

`benchmarks.oracle` says what the policy and the PRM are; docs/correctness.md has larger runs.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from benchmarks.oracle import (
    ANSWER,
    AREAS,
    BRANCHING,
    KINDS,
    NS,
    ONE_SAMPLE,
    POLICY_OPTIONS,
    TABULATED,
    Estimate,
    Marks,
    exact_best_of_n,
    problem_set,
    searched,
    simulated,
)
from search.rewards import Reduction
from search.votes import Floats

SIMULATED = 6000
SEARCHED = 240
# The table is rounded and comes from a few hundred problems, so it has an error of its own.
TABLE_ERROR = 0.03
RAY_PROBLEMS, RAY_AREA, RAY_N, RAY_SEED = 200, 0.8, 16, 5


@cache
def truth(auc: float, n: int) -> dict[str, Estimate]:
    return simulated(auc, n, SIMULATED)


@cache
def found(auc: float) -> Marks:
    return searched(auc, NS, SEARCHED)


@pytest.mark.unit
@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("auc", AREAS)
def test_the_simulation_gives_the_table(auc: float, n: int) -> None:
    for kind, tabulated in zip(KINDS, TABULATED[auc, n], strict=True):
        estimate = truth(auc, n)[kind]
        assert estimate.error < 0.01
        assert estimate.mean == pytest.approx(tabulated, abs=TABLE_ERROR + 4 * estimate.error), kind
    best = truth(auc, n)["best of N, last"]
    assert best.mean == pytest.approx(exact_best_of_n(auc, n), abs=4 * best.error)


@pytest.mark.unit
def test_a_perfect_prm_gives_the_step_oracle() -> None:
    estimates = simulated(1 - 1e-12, 4, SIMULATED)
    one_step = 1 - (1 - 0.75) ** BRANCHING
    expected = {
        "best of N, last": 1 - (1 - ONE_SAMPLE) ** 4,
        "best of N, min": 1 - (1 - ONE_SAMPLE) ** 4,
        "DVTS": one_step**8,
        "beam": one_step**8,
    }
    for kind, value in expected.items():
        assert estimates[kind].mean == pytest.approx(value, abs=4 * estimates[kind].error), kind


@pytest.mark.unit
@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("auc", AREAS)
def test_the_search_gives_the_simulated_accuracies(auc: float, n: int) -> None:
    for kind in KINDS:
        estimate, known = Estimate.of(found(auc)[kind, n]), truth(auc, n)[kind]
        # Where nearly all are right, the spread of a few hundred says nothing: one in 500 may be.
        error = max(np.hypot(estimate.error, known.error), 0.002)
        assert estimate.mean == pytest.approx(known.mean, abs=4 * error), (kind, known)


@pytest.mark.unit
def test_the_strategies_can_be_told_apart_by_these_numbers() -> None:
    """What the comparison above would notice: another strategy, reduction or ROC area."""
    for auc in AREAS:
        means = [float(np.mean(found(auc)[kind, 16])) for kind in KINDS]
        assert means == sorted(means)
    for kind in KINDS:
        by_area = [float(np.mean(found(auc)[kind, 16])) for auc in AREAS]
        assert by_area == sorted(by_area)


@pytest.mark.ray
@pytest.mark.usefixtures("no_ray_token")
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_the_whole_system_gives_the_simulated_accuracies(tmp_path: Path) -> None:
    from jobs.driver import run_recipe
    from jobs.recipe import parse_recipe
    from jobs.results import load_run

    outcome = run_recipe(parse_recipe(oracle_recipe(tmp_path)), None, Console(quiet=True))
    assert (outcome.failed_units, outcome.bad_problems) == (0, 0)
    answers = load_run(outcome.folder).answers
    pure = searched(RAY_AREA, (RAY_N,), RAY_PROBLEMS, RAY_SEED)
    for kind, (strategy, reduction) in KINDS.items():
        values = by_problem(answers, strategy, reduction)
        estimate, known = Estimate.of(values), truth(RAY_AREA, RAY_N)[kind]
        error = np.hypot(estimate.error, known.error)
        assert estimate.mean == pytest.approx(known.mean, abs=4 * error), kind
        # Trees depend on the recipe alone: what the pure search finds, the system finds.
        assert values == pytest.approx(pure[kind, RAY_N]), kind


def oracle_recipe(folder: Path) -> dict[str, object]:
    rows = [
        {"id": problem.problem_id, "problem": problem.text, "answer": ANSWER}
        for problem in problem_set(RAY_PROBLEMS)
    ]
    data = folder / "problems.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    fake = {"model": "fake", "engine": "fake"}
    return {
        "name": "oracle",
        "seed": RAY_SEED,
        "data": {"source": str(data)},
        "policies": [fake | {"name": "seeded", "options": POLICY_OPTIONS}],
        "prm": fake | {"family": "qwen2.5-math-prm", "options": {"auc": RAY_AREA}},
        "searches": [
            {"strategy": "best_of_n", "n": RAY_N},
            {"strategy": "dvts", "n": RAY_N, "branching": BRANCHING},
            {"strategy": "beam", "n": RAY_N, "branching": BRANCHING},
        ],
        "runs_folder": str(folder / "runs"),
    }


def by_problem(answers: pa.Table, strategy: str, reduction: Reduction) -> Floats:
    """Expected correctness of the vote `max` at full N, in the order of the problem set."""
    rows = answers.filter(
        (pc.field("strategy") == strategy)
        & (pc.field("reduction") == str(reduction))
        & (pc.field("vote") == "max")
        & (pc.field("n") == RAY_N)
        & pc.field("problem_id").is_valid()
    )
    pairs = zip(rows["problem_id"].to_pylist(), rows["expected_correct"].to_pylist(), strict=True)
    values = dict(pairs)
    return np.array([values[problem.problem_id] for problem in problem_set(RAY_PROBLEMS)])
