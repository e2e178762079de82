"""Real Ray: fit on one run, choose by what was fitted in another, over problems it never saw."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.budgets import Budget, Measure
from jobs.cli import app
from jobs.driver import run_recipe
from jobs.evidence import gather
from jobs.recipe import parse_recipe
from jobs.report import write_report
from jobs.results import Run, load_run
from jobs.routes import Artifact, Router, load_artifact
from search.errors import RecipeError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(900),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

FITTED, TESTED, N, K = 24, 8, 16, 4
BUDGETS = (8, 16)


def recipe_over(folder: Path, name: str, searches: list[dict[str, Any]]) -> dict[str, Any]:
    fake = {"model": "fake", "engine": "fake"}
    return {
        "name": name,
        "data": {"source": str(folder / f"{name}.jsonl")},
        "policies": [{**fake, "name": "fake", "options": {"p": 0.8, "wrong_answers": 3}}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": searches,
        "limits": {"max_steps": 9, "max_step_tokens": 60, "max_solution_tokens": 400},
        "work": {"solutions_per_unit": 8},
        "runs_folder": str(folder / "runs"),
    }


def write_problems(folder: Path, name: str, count: int) -> None:
    rows = (
        {"id": f"{name}{i}", "problem": f"{name}: {i} + 1 =", "answer": "42"} for i in range(count)
    )
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, no_ray_token: None) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    write_problems(folder, "dev", FITTED)
    write_problems(folder, "test", TESTED)
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Artifact:
    """A development run, and `branchwise fit` on it."""
    searches = [{"strategy": "best_of_n", "n": N}, {"strategy": "beam", "n": [4, 8]}]
    recipe = parse_recipe(recipe_over(folder, "dev", searches))
    run = run_recipe(recipe, None, Console(quiet=True)).folder
    to = folder / "routes.yaml"
    answer = CliRunner().invoke(app, ["fit", str(run), "--to", str(to), "--probe", str(K)])
    assert answer.exit_code == 0, answer.output
    return load_artifact(to)


def routed_searches(folder: Path, tokens: float) -> list[dict[str, Any]]:
    routed = {"strategy": "compute_optimal", "routes": str(folder / "routes.yaml")}
    return [
        {"strategy": "best_of_n", "n": N},
        routed | {"budget": list(BUDGETS)},
        routed | {"budget": f"{tokens:.0f} tokens"},
    ]


@pytest.fixture(scope="module")
def tokens(fitted: Artifact) -> float:
    """Three probes."""
    return 3 * fitted.policies[0].probe_cost.tokens


@pytest.fixture(scope="module")
def run_folder(folder: Path, fitted: Artifact, tokens: float) -> Path:
    recipe = parse_recipe(recipe_over(folder, "test", routed_searches(folder, tokens)))
    outcome = run_recipe(recipe, None, Console(quiet=True))
    assert (outcome.failed_units, outcome.bad_problems) == (0, 0)
    return outcome.folder


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Iterator[Run]:
    return load_run(run_folder)


def under(table: pa.Table, row: dict[str, Any]) -> pa.Table:
    """The rows of a problem's compute-optimal search in `solutions` or `units`."""
    of_problem = table.filter(pc.equal(table["problem_id"], row["problem_id"]))
    return of_problem.filter(pc.ends_with(of_problem["variant"], row["searched_as"]))


def samples(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["strategy"], "best_of_n")).sort_by("subtree")


def test_every_problem_is_routed_at_every_budget(run: Run, tokens: float) -> None:
    rows = run.routes.to_pylist()
    assert Counter((row["measure"], row["n"]) for row in rows) == {
        ("solutions", 8): TESTED,
        ("solutions", 16): TESTED,
        ("tokens", 0): TESTED,
    }
    for row in rows:
        assert row["probe_solutions"] == K
        spent = row[f"probe_{row['measure']}"] + row[f"rest_{row['measure']}"]
        assert row["overspent"] == (spent > row["budget"])
        if row["measure"] == "solutions":
            assert not row["overspent"]


def test_the_route_is_the_one_that_the_router_names(run: Run, fitted: Artifact) -> None:
    router = Router(fitted)
    for row in run.routes.to_pylist():
        probe = samples(under(run.solutions, row)).slice(0, K)
        paid = row[f"probe_{row['measure']}"]
        left = Budget(row["budget"] - paid, Measure(row["measure"]))
        route = router.route("fake", probe, left)
        assert row["pass_at_1"] == pytest.approx(router.pass_at_1("fake", probe))
        assert row["difficulty"] == fitted.thresholds.bin_of(row["pass_at_1"])
        names = ("strategy", "n", "branching", "vote", "vote_reduction", "variant")
        assert [row[f"route_{name}"] for name in names] == [getattr(route, n) for n in names]


def test_what_was_paid_is_what_the_units_say(run: Run) -> None:
    for row in run.routes.to_pylist():
        units = under(run.units, row)
        assert pc.sum(units["solutions"]).as_py() <= row["probe_solutions"] + row["rest_solutions"]
        counted = (
            "generated_policy_tokens",
            "wasted_policy_tokens",
            "lookahead_policy_tokens",
            "computed_prefix_policy_tokens",
            "computed_prm_tokens",
        )
        tokens = sum(pc.sum(units[name]).as_py() for name in counted)
        assert tokens == row["probe_tokens"] + row["rest_tokens"]
        assert row["probe_tokens"] > 0


def test_samples_are_those_of_a_plain_best_of_n(run: Run) -> None:
    plain = samples(run.solutions.filter(pc.equal(run.solutions["variant"], "")))
    for row in run.routes.to_pylist():
        whole = plain.filter(pc.equal(plain["problem_id"], row["problem_id"]))["text"].to_pylist()
        ours = samples(under(run.solutions, row))["text"].to_pylist()
        goes_on = row["route_strategy"] == "best_of_n"
        assert ours == whole[: max(K, row["route_n"]) if goes_on else K]


def test_no_unit_is_named_twice(run: Run) -> None:
    names = run.units["unit_id"].to_pylist()
    assert len(set(names)) == len(names)


def test_answers_have_its_accuracy_and_leave_other_curves_alone(run: Run) -> None:
    answers = run.answers.to_pylist()
    ours = [row for row in answers if row["strategy"] == "compute_optimal"]
    means = [row for row in ours if row["problem_id"] is None]
    assert len(means) == 3
    for mean in means:
        values = [
            row["expected_correct"]
            for row in ours
            if row["problem_id"] and (row["variant"], row["n"]) == (mean["variant"], mean["n"])
        ]
        assert len(values) == TESTED
        assert mean["expected_correct"] == pytest.approx(sum(values) / TESTED)
        assert mean["ci_low"] < mean["ci_high"]
    others = {(row["strategy"], row["variant"]) for row in answers} - {
        (row["strategy"], row["variant"]) for row in ours
    }
    assert others == {("best_of_n", "")}
    assert {row["n"] for row in answers if row["strategy"] == "best_of_n"} == {1, 2, 4, 8, 16}
    assert set(run.samples["variant"].to_pylist()) == {""}


def test_the_class_that_won_is_one_of_the_table(run: Run) -> None:
    for row in run.routes.to_pylist():
        solutions = under(run.solutions, row)
        known = dict(
            zip(
                solutions["answer_class"].to_pylist(),
                solutions["verdict"].to_pylist(),
                strict=True,
            )
        )
        if row["expected_correct"] in (0.0, 1.0) and row["answer_class"] >= 0:
            right = known[row["answer_class"]] == "correct"
            assert right == (row["expected_correct"] == 1.0)


def test_the_report_shows_it_beside_the_others(run_folder: Path, tmp_path: Path) -> None:
    text = write_report([run_folder], tmp_path).markdown.read_text()
    section = text.partition("### Compute-optimal search")[2].partition("###")[0]
    lines = [line for line in section.splitlines() if line.startswith("| fake |")]
    totals = [line for line in lines if "N = " in line or "not run" in line][:3]
    assert [line.split("|")[3].strip() for line in totals][:2] == ["8 solutions", "16 solutions"]
    curve = text.partition("### Accuracy at each N")[2].partition("###")[0]
    assert "compute_optimal routes=routes" in curve
    assert "routed=" not in text


def test_a_fit_does_not_learn_from_routed_rows(run_folder: Path) -> None:
    learned = gather([run_folder], K, [])
    [evidence] = learned.policies
    assert {(route.strategy, route.variant) for route in evidence.routes} == {("best_of_n", "")}


def test_problems_of_the_fit_are_refused(folder: Path, fitted: Artifact, tokens: float) -> None:
    before = sorted((folder / "runs").iterdir())
    recipe = parse_recipe(recipe_over(folder, "dev", routed_searches(folder, tokens)))
    with pytest.raises(RecipeError, match="24 of 24 problems were learned from"):
        run_recipe(recipe, None, Console(quiet=True))
    assert sorted((folder / "runs").iterdir()) == before
