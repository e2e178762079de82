"""`strategy: compute_optimal` in recipes: what it becomes, and every line that refuses it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_recipe import fake_recipe, refusal
from test_routes import EASY, HARD, MEDIUM, document

from jobs.budgets import Budget, Measure
from jobs.difficulty import Difficulty
from jobs.forecast import forecast, question
from jobs.plan import plan_run
from jobs.plan_searches import routed_solutions
from jobs.recipe import load_recipe, parse_recipe, recipe_digest
from jobs.route_choosers import Chooser, chooser_of
from jobs.routed_checks import check_overlap
from jobs.settings import Recipe
from search.errors import RecipeError
from search.problem import Problem
from search.schemas import SOLUTIONS
from search.votes import Vote

pytestmark = pytest.mark.unit

PLAIN = {"strategy": "best_of_n", "n": 8}
SMALL_MODEL, MIDDLE_MODEL = "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-7B-Instruct"


def routes_file(folder: Path, **changes: Any) -> str:
    path = folder / "routes.yaml"
    path.write_text(yaml.safe_dump(document() | changes))
    return str(path)


def routed_recipe(routes: str, changes: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """A recipe with one compute-optimal search, some of its keys replaced."""
    search = {"strategy": "compute_optimal", "routes": routes, "budget": 64} | (changes or {})
    models = {
        "policies": [{"name": "small", "model": "scripted", "engine": "fake"}],
        "prm": {"model": "models/judge", "engine": "fake", "family": "qwen2.5-math-prm"},
    }
    limits = {"difficulty": {"easy": 0.6, "hard": 0.2}}
    return fake_recipe(searches=[PLAIN, search], **models | limits | top)


def test_a_list_of_budgets_gives_several_searches(tmp_path: Path) -> None:
    routes = routes_file(tmp_path)
    recipe = parse_recipe(routed_recipe(routes, {"budget": [16, "64 solutions"]}))
    found = recipe.routed_of("small")
    assert [budget for _, budget in found] == [Budget(16), Budget(64)]
    assert [search.variant(budget) for search, budget in found] == ["routes=routes"] * 2
    assert [search.mark(budget) for search, budget in found] == [
        "routed=routes,16solutions",
        "routed=routes,64solutions",
    ]
    # Its probes and routes are no searches of the recipe.
    assert [(c.strategy, c.n) for c in recipe.search_configs("small")] == [("best_of_n", 8)]
    assert recipe.routed_of("other") == found


def test_only_its_policies_run_it(tmp_path: Path) -> None:
    policies = [
        {"name": name, "model": "scripted", "engine": "fake"} for name in ("small", "large")
    ]
    changes = {"policies": ["small"]}
    recipe = parse_recipe(routed_recipe(routes_file(tmp_path), changes, policies=policies))
    assert (len(recipe.routed_of("small")), recipe.routed_of("large")) == (1, [])


def test_a_resolved_recipe_can_be_run_again(tmp_path: Path) -> None:
    recipe = parse_recipe(routed_recipe(routes_file(tmp_path), {"budget": [64, 16.0]}))
    dumped = recipe.model_dump(mode="json")
    assert dumped["searches"][1]["budget"] == ["64 solutions", "16 solutions"]
    again = parse_recipe(dumped)
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)


def test_other_recipes_keep_their_keys_and_so_their_digests() -> None:
    search = parse_recipe(fake_recipe()).model_dump()["searches"][0]
    assert not {"routes", "budget", "predictor"} & set(search)


def test_a_file_is_looked_up_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(routed_recipe("routes.yaml"))
    assert recipe.searches[1].model_dump()["routes"] == "routes.yaml"


def test_overrides_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(routed_recipe(routes_file(tmp_path))))
    recipe = load_recipe(path, ["searches.1.budget=[4, 16]"])
    assert [budget.amount for _, budget in recipe.routed_of("small")] == [4, 16]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"n": 8}, "unknown key 'searches.1.n': choose from strategy, routes, budget"),
        ({"stop": {}}, "unknown key 'searches.1.stop': "),
        ({"allocation": {}}, "unknown key 'searches.1.allocation': "),
        ({"compat": "search_and_learn"}, "unknown key 'searches.1.compat': "),
        ({"branching": 4}, "unknown key 'searches.1.branching': "),
        ({"score_every": 2}, "unknown key 'searches.1.score_every': "),
        ({"budgett": 2}, "unknown key 'searches.1.budgett': did you mean 'budget'?"),
        ({"budget": []}, "searches.1.budget: tuple should have at least 1 item"),
        ({"budget": "64 steps"}, "searches.1.budget.0: cannot read the budget '64 steps'"),
        ({"budget": 0}, "searches.1.budget.0: the budget '0' must be a number above 0"),
        ({"budget": 8.5}, "searches.1.budget.0: '8.5' is no whole number of solutions"),
        ({"budget": [64, "64 solutions"]}, "searches.1 repeats compute_optimal routes=routes with"),
        ({"budget": 3}, "searches.1: a budget of 3 solutions is too small to probe small"),
        (
            {"budget": "1e5 tokens"},
            "searches.1: no routes for budgets in tokens, only in solutions",
        ),
        ({"budget": "1e12 flops"}, "searches.1.budget: fake engines count no FLOPs: use"),
        ({"routes": "none.yaml"}, "searches.1: cannot read none.yaml: No such file or directory"),
        ({"predictor": "x.yaml"}, "searches.1: predictor is for the tables liu2025 only: remove"),
        ({"policies": ["smal"]}, "searches.1.policies: there is no policy 'smal': did you mean"),
    ],
)
def test_one_line_for_a_wrong_search(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    assert refusal(routed_recipe(routes_file(tmp_path), changes)).startswith(line)


@pytest.mark.parametrize(
    ("top", "line"),
    [
        (
            {"policies": [{"name": "smal", "model": "scripted", "engine": "fake"}]},
            "searches.1: nothing was fitted for the policy 'smal': did you mean 'small'?",
        ),
        (
            {"prm": {"model": "m/other", "engine": "fake", "family": "qwen2.5-math-prm"}},
            "searches.1: the policy 'small' was fitted with judge, not with 'other'",
        ),
        (
            {"difficulty": {"easy": 0.5, "hard": 0.2}},
            "searches.1: the routes were fitted with thresholds easy=0.6, hard=0.2: use those, or",
        ),
        (
            {"difficulty": {"easy": 0.1, "hard": 0.2}},
            "difficulty.hard=0.2 is not below easy=0.1: choose hard < easy",
        ),
        (
            {"protocol": "sampling"},
            "searches.1: compute_optimal does not draw independent samples: use majority or best",
        ),
    ],
)
def test_one_line_for_a_recipe_that_does_not_fit(
    tmp_path: Path, top: dict[str, Any], line: str
) -> None:
    assert refusal(routed_recipe(routes_file(tmp_path), **top)).startswith(line)


def test_without_a_prm_nothing_can_be_predicted(tmp_path: Path) -> None:
    recipe = routed_recipe(routes_file(tmp_path), prm=None)
    recipe["searches"][0] = {"strategy": "majority", "n": 8}
    assert refusal(recipe) == "searches.1: compute_optimal needs a PRM: add a prm section"


def test_routes_that_compare_steps_do_not_fit_a_policy_that_thinks(tmp_path: Path) -> None:
    policy = {"name": "small", "model": "scripted", "engine": "fake", "thinking": {}}
    line = refusal(routed_recipe(routes_file(tmp_path), policies=[policy]))
    assert line.startswith("searches.1: the route dvts N=12")
    assert "compares steps while 'small' thinks: set thinking.score: all" in line
    policy["thinking"] = {"score": "all"}
    assert parse_recipe(routed_recipe(routes_file(tmp_path), policies=[policy]))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    routes = routes_file(tmp_path, version=99)
    line = refusal(routed_recipe(routes))
    assert "version 99: this Branchwise reads version 1" in line


def test_a_variant_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    changed = document()
    changed["policies"][0]["routes"][0]["route"]["variant"] = "depth=3"
    line = refusal(routed_recipe(routes_file(tmp_path, policies=changed["policies"])))
    assert line.startswith("searches.1: the route best_of_n depth=3 N=4")
    assert line.endswith("cannot be run here: no setting 'depth'")


@pytest.mark.parametrize(
    ("problem", "refused"),
    [
        (Problem("a", "Something else?", "1"), True),
        (Problem("new", "What is  a?", "1"), True),
        (Problem("new", "What is c?", "1"), False),
    ],
)
def test_problems_that_were_learned_from_are_refused(
    tmp_path: Path, problem: Problem, refused: bool
) -> None:
    recipe = parse_recipe(routed_recipe(routes_file(tmp_path)))
    others = [Problem(f"x{i}", f"What is x{i}?", "1") for i in range(4)]
    if not refused:
        check_overlap(recipe, [*others, problem])
        return
    with pytest.raises(RecipeError) as caught:
        check_overlap(recipe, [*others, problem])
    assert str(caught.value) == (
        f"searches.1.routes: 1 of 5 problems were learned from ({problem.problem_id!r}): "
        "take other problems, or fit on others"
    )


def test_there_is_no_plan_of_what_is_decided_later(tmp_path: Path) -> None:
    recipe = parse_recipe(routed_recipe(routes_file(tmp_path)))
    with pytest.raises(RecipeError, match=r"searches\.1: compute_optimal decides what it runs"):
        plan_run(recipe)
    with pytest.raises(RecipeError, match="there is no plan of it"):
        forecast(recipe, question(1, "h100"))


@pytest.mark.parametrize(("budget", "most"), [(16, 4 + 16), (64, 4 + 64), ([16, 64], 20 + 68)])
def test_room_is_made_for_the_widest_route(tmp_path: Path, budget: Any, most: int) -> None:
    recipe = parse_recipe(routed_recipe(routes_file(tmp_path), {"budget": budget}))
    assert routed_solutions(recipe, "small") == most


# Choosers


def chooser(recipe: Recipe) -> Chooser:
    [(search, budget)] = recipe.routed_of(str(recipe.policies[0].name))
    return chooser_of(recipe, search, str(recipe.policies[0].name), budget)


def test_a_fitted_file_chooses_by_the_probe(tmp_path: Path) -> None:
    chosen = chooser(parse_recipe(routed_recipe(routes_file(tmp_path))))
    assert chosen.probe == 4
    found = [chosen.choose(probe, Budget(60)) for probe in (EASY, MEDIUM, HARD)]
    assert [(f.difficulty, f.route.strategy, f.route.n) for f in found] == [
        (Difficulty.EASY, "best_of_n", 64),
        (Difficulty.MEDIUM, "dvts", 56),
        (Difficulty.HARD, "beam", 16),
    ]
    assert found[1].pass_at_1 == pytest.approx(0.5)


def sized_recipe(model: str, **changes: Any) -> dict[str, Any]:
    """A recipe by the paper's table with a real policy."""
    policy = {"name": "small", "model": model, "engine": "transformers"}
    return routed_recipe("liu2025", changes, policies=[policy])


@pytest.mark.parametrize(
    ("changes", "strategy", "n", "vote"),
    [
        ({}, "beam", 64, Vote.WEIGHTED),
        ({"budget": 30}, "beam", 28, Vote.WEIGHTED),
        ({"routes": "liu2025_aime"}, "dvts", 64, Vote.WEIGHTED),
        ({"routes": "liu2025_r1"}, "best_of_n", 64, Vote.MAJORITY),
    ],
)
def test_the_table_needs_no_probe_where_difficulty_decides_nothing(
    changes: dict[str, Any], strategy: str, n: int, vote: Vote
) -> None:
    chosen = chooser(parse_recipe(sized_recipe(SMALL_MODEL, **changes)))
    [(_, budget)] = parse_recipe(sized_recipe(SMALL_MODEL, **changes)).routed_of("small")
    found = chosen.choose(SOLUTIONS.empty_table(), budget)
    assert (chosen.probe, found.difficulty) == (0, None)
    assert (found.route.strategy, found.route.n, found.route.vote) == (strategy, n, vote)


def test_the_table_predicts_where_difficulty_decides(tmp_path: Path) -> None:
    predictor = routes_file(tmp_path, thresholds={"easy": 0.5, "hard": 0.1})
    chosen = chooser(parse_recipe(sized_recipe(MIDDLE_MODEL, predictor=predictor)))
    found = [chosen.choose(probe, Budget(60)).route for probe in (EASY, HARD)]
    assert chosen.probe == 4
    assert [(route.strategy, route.n) for route in found] == [("dvts", 60), ("beam", 60)]


@pytest.mark.parametrize(
    ("model", "changes", "line"),
    [
        (MIDDLE_MODEL, {}, "liu2025 goes by difficulty for 'small': give predictor, a file of"),
        (SMALL_MODEL, {"budget": "1e5 tokens"}, "liu2025 knows no costs: give the budget in sol"),
        (SMALL_MODEL, {"budget": 3}, "table liu2025: beam needs 4 solutions, not 3"),
        ("org/unheard-of", {}, "liu2025 goes by the policy's size, which is not known of 'small'"),
    ],
)
def test_one_line_for_a_table_that_cannot_choose(
    model: str, changes: dict[str, Any], line: str
) -> None:
    assert refusal(sized_recipe(model, **changes)).startswith(f"searches.1: {line}")


def test_the_predictor_must_have_the_thresholds_of_the_table(tmp_path: Path) -> None:
    line = refusal(sized_recipe(MIDDLE_MODEL, predictor=routes_file(tmp_path)))
    assert line.startswith("searches.1: the routes were fitted with thresholds easy=0.6, hard=0.2")


def test_budgets_are_named_with_all_their_digits(tmp_path: Path) -> None:
    routes = routes_file(tmp_path)
    tokens = Budget(1234567, Measure.TOKENS)
    search = parse_recipe(routed_recipe(routes)).routed_of("small")[0][0]
    assert search.variant(tokens) == "routes=routes budget=1234567tokens"
    assert search.mark(tokens) == "routed=routes,1234567tokens"
