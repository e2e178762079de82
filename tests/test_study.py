"""The study's recipes: they load, and nothing that is fitted is tested."""

from pathlib import Path

import pytest
import yaml

from embedded.tasks import TRAIN_SEED
from jobs.data import load_problems
from jobs.recipe import load_recipe
from jobs.settings import Recipe
from search.problem import Problem

pytestmark = pytest.mark.unit

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
DEVELOPMENT, STUDY = RECIPES / "study-development.yaml", RECIPES / "study.yaml"
DEMO = RECIPES / "demo.yaml"


# Checked without the file that the fit writes before the study.
WITHOUT_FIT = ["searches.9.routes=liu2025", "searches.10.routes=liu2025"]


def study() -> Recipe:
    return load_recipe(STUDY, WITHOUT_FIT)


def problems_of(recipe: Recipe) -> list[Problem]:
    found = list(load_problems(recipe.data))
    assert all(isinstance(problem, Problem) for problem in found)
    return [problem for problem in found if isinstance(problem, Problem)]


@pytest.mark.parametrize("other", [DEVELOPMENT, DEMO], ids=lambda path: path.stem)
def test_the_study_asks_what_nobody_has_looked_at(other: Path) -> None:
    studied, seen = problems_of(study()), problems_of(load_recipe(other))
    assert {p.problem_id for p in studied} & {p.problem_id for p in seen} == set()
    assert {p.text for p in studied} & {p.text for p in seen} == set()


def test_every_problem_of_the_study_is_another_one() -> None:
    texts = [problem.text for problem in problems_of(study())]
    assert len(set(texts)) == len(texts) == 100


@pytest.mark.parametrize("recipe", [load_recipe(DEVELOPMENT), study()], ids=lambda r: r.name)
def test_items_are_drawn_from_below_the_training_seeds(recipe: Recipe) -> None:
    ranges = [range(s.seed or 0, (s.seed or 0) + (s.size or 0)) for s in recipe.data]
    assert all(drawn.stop <= TRAIN_SEED for drawn in ranges)
    every = [seed for drawn in ranges for seed in drawn]
    assert len(set(every)) == len(every)


def test_both_runs_differ_in_problems_and_routed_searches_only() -> None:
    development, tested = (yaml.safe_load(path.read_text()) for path in (DEVELOPMENT, STUDY))
    own = {"name", "seed", "data", "difficulty", "searches"}
    assert {key for key in tested if tested[key] != development.get(key)} == own
    kinds = [[(s["source"], s["options"]) for s in r["data"]] for r in (development, tested)]
    assert kinds[0] == kinds[1]
    plain = [s for s in tested["searches"] if s["strategy"] != "compute_optimal"]
    assert plain == development["searches"]
    assert {s["routes"] for s in tested["searches"] if s not in plain} == {"runs/study-routes.yaml"}
