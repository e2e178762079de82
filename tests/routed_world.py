"""A world in which the best search of each difficulty is known, written as a run folder.

Nothing of it comes from the code under test: every solution is drawn with a probability that
stands here, and costs are a price list.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from search.schemas import PROBLEMS, SOLUTIONS, UNITS
from search.strategies import keep_count

POLICY, PRM = "small", "judge"
PARAMETERS, PRM_PARAMETERS = 1_000_000, 3_000_000
BINS = ("easy", "medium", "hard")
SEARCHES = [("best_of_n", 32, 1), ("dvts", 32, 4), ("beam", 8, 4), ("beam", 16, 4)]
# (right, the one common mistake); other mistakes are spread over forty answers.
Chances = Mapping[tuple[str, str], tuple[float, float]]
SPECIALISTS: Chances = {
    ("easy", "best_of_n"): (0.90, 0.00),
    ("easy", "dvts"): (0.30, 0.70),
    ("easy", "beam"): (0.30, 0.70),
    ("medium", "best_of_n"): (0.25, 0.55),
    ("medium", "dvts"): (0.90, 0.00),
    ("medium", "beam"): (0.10, 0.80),
    ("hard", "best_of_n"): (0.02, 0.00),
    ("hard", "dvts"): (0.05, 0.60),
    ("hard", "beam"): (0.90, 0.00),
}
# Every search is as good as every other, and a majority is the best vote everywhere.
ALIKE: Chances = {
    (name, strategy): chances
    for name, chances in (("easy", (0.9, 0.0)), ("medium", (0.3, 0.0)), ("hard", (0.05, 0.0)))
    for strategy in ("best_of_n", "dvts", "beam")
}
PRM_MEAN = {"easy": 0.8, "medium": 0.6, "hard": 0.3}
POLICY_TOKENS = {"best_of_n": 100, "dvts": 150, "beam": 200}
PRM_TOKENS = 120
PROMPT_TOKENS = 60


@dataclass(frozen=True)
class World:
    """`problems` of each bin; `prefix` begins their ids."""

    chances: Chances = field(default_factory=lambda: SPECIALISTS)
    problems: int = 24
    seed: int = 0
    prefix: str = "p"
    searches: tuple[tuple[str, int, int], ...] = tuple(SEARCHES)
    parameters: int = PARAMETERS

    @property
    def ids(self) -> dict[str, str]:
        """Problem id to bin."""
        return {f"{self.prefix}-{name}-{i}": name for name in BINS for i in range(self.problems)}


def write_world(folder: Path, world: World) -> Path:
    """A run folder with all tables that `branchwise fit` reads."""
    rng = np.random.default_rng(world.seed)
    rows, units = [], []
    for problem_id, name in world.ids.items():
        for strategy, n, branching in world.searches:
            shared = _shared(problem_id, strategy, n, branching)
            chances = world.chances[name, strategy]
            rows += [_solution(shared, i, chances, PRM_MEAN[name], rng) for i in range(n)]
            units.append(_unit(shared, world.parameters))
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, SOLUTIONS), folder / "solutions.parquet")
    pq.write_table(pa.Table.from_pylist(units, UNITS), folder / "units.parquet")
    pq.write_table(_problems(world), folder / "problems.parquet")
    (folder / "run.json").write_text(json.dumps(_record(folder.name, world)))
    return folder


def _shared(problem_id: str, strategy: str, n: int, branching: int) -> dict[str, Any]:
    return {
        "problem_id": problem_id,
        "policy": POLICY,
        "strategy": strategy,
        "n": n,
        "branching": branching,
        "keep": keep_count(strategy, n, branching),
        "variant": "",
        "unit_id": f"{problem_id}/{strategy}-{n}x{branching}/0",
    }


def _solution(
    shared: dict[str, Any],
    place: int,
    chances: tuple[float, float],
    prm_mean: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    right, mistake = chances
    draw = rng.random()
    other = int(rng.integers(2, 42))
    answer_class = 0 if draw < right else 1 if draw < right + mistake else other
    subtree = 0 if shared["strategy"] == "beam" else place // shared["branching"]
    return shared | {
        "subtree": subtree,
        "solution_id": f"{subtree}:{place}",
        "answer": str(answer_class),
        "answer_class": answer_class,
        "verdict": "correct" if answer_class == 0 else "incorrect",
        "rewards": [0.5, float(np.clip(rng.normal(prm_mean, 0.1), 0.0, 1.0))],
    }


def _unit(shared: dict[str, Any], parameters: int) -> dict[str, Any]:
    n = shared["n"]
    written, scored = n * POLICY_TOKENS[shared["strategy"]], n * PRM_TOKENS
    return shared | {
        "status": "done",
        "solutions": n,
        "generated_policy_tokens": written,
        "wasted_policy_tokens": 0,
        "computed_prefix_policy_tokens": PROMPT_TOKENS,
        "computed_prm_tokens": scored,
        "flops": 2.0 * (parameters * (written + PROMPT_TOKENS) + PRM_PARAMETERS * scored),
    }


def _problems(world: World) -> pa.Table:
    rows = [{"problem_id": name, "text": f"What is {name}?", "error": None} for name in world.ids]
    return pa.Table.from_pylist(rows, PROBLEMS)


def _record(run_id: str, world: World) -> dict[str, Any]:
    searches = [
        {"strategy": strategy, "n": [n], "branching": branching, "reduction": "last"}
        for strategy, n, branching in world.searches
    ]
    recipe = {
        "seed": world.seed,
        "policies": [{"name": POLICY}],
        "prm": {"model": f"models/{PRM}"},
        "searches": searches,
    }
    return {
        "run_id": run_id,
        "recipe": recipe,
        "recipe_digest": "0" * 64,
        "seeds": {"run": world.seed},
    }
