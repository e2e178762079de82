"""The artifact and the router: what is chosen, and every line with which something is refused."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from jobs.budgets import Budget, Measure
from jobs.difficulty import FEATURES, Difficulty, Thresholds
from jobs.liu2025 import Exam, liu2025, liu2025_strategy
from jobs.routes import (
    Artifact,
    LearnedPolicy,
    LearnedPredictor,
    LearnedRoute,
    MeanCost,
    Route,
    Router,
    Validation,
    hashed,
    load_artifact,
    overlap,
    save_artifact,
)
from search.errors import PolicyError, RecipeError, StorageError
from search.rewards import Reduction
from search.schemas import SOLUTIONS
from search.votes import Vote

pytestmark = pytest.mark.unit

COST = {"tokens": 100.0, "flops": 1e6, "paper_flops": 1e5}
ESTIMATE = {"mean": 0.5, "low": 0.4, "high": 0.6}
SEARCH = {"branching": 1, "reduction": "last", "vote": "weighted", "vote_reduction": "last"}
BINS = ("easy", "medium", "hard")
CONFUSION = {row: dict.fromkeys(BINS, 1.0) for row in BINS}


def learned(difficulty: str, budget: float, rest: float, strategy: str, n: int) -> dict[str, Any]:
    return {
        "measure": "solutions",
        "budget": budget,
        "difficulty": difficulty,
        "route": SEARCH | {"strategy": strategy, "n": n},
        "accuracy": ESTIMATE,
        "cost": COST | {"solutions": rest},
        "problems": 9,
    }


def document() -> dict[str, Any]:
    """Agreement alone decides: all agree is easy, none hard, a half medium (log-odds -4 to 4)."""
    stay = [learned(d, 4, 0, "best_of_n", 4) for d in BINS]
    more = [
        learned("easy", 16, 4, "best_of_n", 8),
        learned("medium", 16, 12, "dvts", 12),
        learned("hard", 16, 8, "beam", 8),
        learned("easy", 64, 60, "best_of_n", 64),
        learned("medium", 64, 56, "dvts", 56),
        learned("hard", 64, 16, "beam", 16),
    ]
    policy = {
        "policy": "small",
        "prm": "judge",
        "parameters": 1e6,
        "prm_parameters": 3e6,
        "problems": 20,
        "left_out": 0,
        "probe_cost": COST | {"solutions": 4.0},
        "predictor": {
            "intercept": -4.0,
            "weights": dict.fromkeys(FEATURES, 0.0) | {"agreement": 8.0},
            "confusion": CONFUSION,
            "share_right": 0.5,
            "share_right_without": 0.4,
            "mean_error": 0.1,
        },
        "routes": stay + more,
        "validation": [],
    }
    return {
        "version": 1,
        "probe": 4,
        "thresholds": {"easy": 0.6, "hard": 0.2},
        "seed": 0,
        "standard_errors": 1.0,
        "runs": [{"run_id": "dev", "recipe_digest": "0"}],
        "problem_ids": [hashed("a"), hashed("b")],
        "problem_texts": [hashed("What is a?"), hashed("What is b?")],
        "policies": [policy],
    }


def artifact(**changes: Any) -> Artifact:
    return Artifact.model_validate(document() | changes)


def probe(*classes: int) -> pa.Table:
    rows = [
        {"subtree": i, "answer_class": c, "verdict": "incorrect", "rewards": [0.5]}
        for i, c in enumerate(classes)
    ]
    return pa.Table.from_pylist(rows, SOLUTIONS)


EASY, MEDIUM, HARD = probe(3, 3, 3, 3), probe(3, 3, 1, -1), probe(-1, -1, -1, -1)


def refused(text: str, path: Path, **changes: Any) -> None:
    """A file with these changes is refused with this line."""
    path.write_text(yaml.safe_dump(document() | changes))
    with pytest.raises(RecipeError) as caught:
        load_artifact(path)
    assert str(caught.value) == f"{path}: {text}"


# The router


def test_the_probe_decides_the_search() -> None:
    router = Router(artifact())
    assert router.probe == 4
    chosen = [router.route("small", p, Budget(60)) for p in (EASY, MEDIUM, HARD)]
    assert [(route.strategy, route.n) for route in chosen] == [
        ("best_of_n", 64),
        ("dvts", 56),
        ("beam", 16),
    ]
    assert router.pass_at_1("small", MEDIUM) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("left", "n"), [(1000, 56), (56, 56), (55.9, 12), (12, 12), (11, 4), (0, 4), (-3, 4)]
)
def test_the_largest_budget_that_is_left_is_used(left: float, n: int) -> None:
    assert Router(artifact()).route("small", MEDIUM, Budget(left)).n == n


def test_a_route_says_what_it_still_has_to_write() -> None:
    route = Router(artifact()).route("small", EASY, Budget(60))
    assert route == Route("best_of_n", 64, 1, Reduction.LAST, Vote.WEIGHTED, Reduction.LAST)
    assert route.reuses(4)
    assert not Router(artifact()).route("small", MEDIUM, Budget(60)).reuses(4)


def test_a_probe_that_lost_samples_still_routes() -> None:
    assert Router(artifact()).route("small", probe(3, 3), Budget(60)).strategy == "best_of_n"
    with pytest.raises(PolicyError, match="a probe brought no solutions"):
        Router(artifact()).route("small", probe(), Budget(60))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Router(artifact()).route("smal", EASY, Budget(60))
    assert str(caught.value) == ("nothing was fitted for the policy 'smal': did you mean 'small'?")


def test_an_unknown_prm_is_refused() -> None:
    assert Router(artifact(), prm="judge").check("small", Budget(4)) is None
    with pytest.raises(RecipeError) as caught:
        Router(artifact(), prm="jury").check("small", Budget(4))
    assert str(caught.value) == "the policy 'small' was fitted with judge, not with 'jury'"


def test_several_prms_need_a_choice() -> None:
    [policy] = document()["policies"]
    other = copy.deepcopy(policy) | {"prm": "jury"}
    both = artifact(policies=[policy, other])
    with pytest.raises(RecipeError, match="was fitted with judge, jury, not with None"):
        Router(both).check("small", Budget(4))
    Router(both, prm="jury").check("small", Budget(4))


def test_a_budget_too_small_to_probe_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Router(artifact()).check("small", Budget(3))
    assert str(caught.value) == (
        "a budget of 3 solutions is too small to probe small: a probe of 4 samples costs "
        "4 solutions; raise it or fit a smaller probe"
    )


def test_a_measure_without_routes_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Router(artifact()).check("small", Budget(1e6, Measure.TOKENS))
    assert str(caught.value) == "no routes for budgets in tokens, only in solutions: fit again"


def test_thresholds_must_be_those_of_the_fit() -> None:
    Router(artifact(), thresholds=Thresholds(easy=0.6, hard=0.2))
    with pytest.raises(RecipeError) as caught:
        Router(artifact(), thresholds=Thresholds())
    assert str(caught.value) == (
        "the routes were fitted with thresholds easy=0.6, hard=0.2: "
        "use those, or fit again with others"
    )


# Overlap


def test_problems_that_were_learned_from_are_named() -> None:
    assert overlap(artifact(), ["c", "b", "a"]) == ["b", "a"]
    assert overlap(artifact(), ["c", "d"]) == []


def test_a_known_text_counts_under_another_id() -> None:
    texts = ["What is\n  a?", "What is d?"]
    assert overlap(artifact(), ["c", "d"], texts) == ["c"]
    assert overlap(artifact(problem_texts=[hashed("")]), ["c"], [""]) == []


# The file


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "routes.yaml"
    save_artifact(artifact(), path)
    assert load_artifact(path) == artifact()
    assert path.read_text().startswith("# Learned by `branchwise fit`")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_artifact(artifact(), tmp_path / "file" / "routes.yaml")


def test_what_is_no_artifact_is_refused_in_one_line(tmp_path: Path) -> None:
    path, again = tmp_path / "routes.yaml", "write it again with branchwise fit"
    refused(f"the file: version 2: this Branchwise reads version 1: {again}", path, version=2)
    refused(f"probe: Input should be greater than 0: {again}", path, probe=0)
    refused(f"extra: Extra inputs are not permitted: {again}", path, extra=1)
    refused(
        "thresholds easy=0.1, hard=0.5: choose 0 < hard < easy <= 1",
        path,
        thresholds={"easy": 0.1, "hard": 0.5},
    )
    refused(
        f"thresholds.middle: Unexpected keyword argument: {again}",
        path,
        thresholds={"easy": 0.5, "middle": 0.3, "hard": 0.1},
    )


def test_a_damaged_policy_is_refused_in_one_line(tmp_path: Path) -> None:
    path, again = tmp_path / "routes.yaml", "write it again with branchwise fit"
    [policy] = document()["policies"]
    without = [row for row in policy["routes"] if row["difficulty"] != "hard"]
    refused(
        f"policies.0: no route within the probe for hard in solutions: {again}",
        path,
        policies=[policy | {"routes": without}],
    )
    weights = {"weights": {"agreement": 1.0}}
    refused(
        f"policies.0.predictor: weights must be those of {', '.join(FEATURES)}: {again}",
        path,
        policies=[policy | {"predictor": policy["predictor"] | weights}],
    )
    strange = copy.deepcopy(policy)
    strange["routes"][0]["route"]["strategy"] = "bean"
    refused(
        f"policies.0.routes.0: unknown strategy 'bean': did you mean 'beam'?: {again}",
        path,
        policies=[strange],
    )


def test_a_file_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read .*: write it with branchwise fit"):
        load_artifact(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_artifact(tmp_path / "bad.yaml")


def test_the_page_names_every_key() -> None:
    text = (Path(__file__).parent.parent / "docs" / "compute-optimal.md").read_text()
    sections = (Artifact, LearnedPolicy, LearnedPredictor, LearnedRoute, Validation, MeanCost)
    keys = {name for section in sections for name in section.model_fields}
    keys |= {each.name for each in fields(Route)} | {*FEATURES, *Difficulty}
    assert sorted(key for key in keys if f"`{key}`" not in text and f"*{key}*" not in text) == []


# The paper's table


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (1.2e9, ["beam", "beam", "beam"]),
        (3.2e9, ["beam", "beam", "beam"]),
        (7.6e9, ["dvts", "dvts", "beam"]),
        (32.8e9, ["dvts", "dvts", "beam"]),
        (72.7e9, ["best_of_n", "best_of_n", "best_of_n"]),
    ],
)
def test_the_table_of_the_paper(parameters: float, expected: list[str]) -> None:
    assert [liu2025_strategy(parameters, bin_) for bin_ in Difficulty] == expected


@pytest.mark.parametrize("bin_", list(Difficulty))
def test_the_paper_has_other_rules_for_aime_and_r1(bin_: Difficulty) -> None:
    sizes = (1.5e9, 8e9, 14.8e9, 72e9)
    aime = [liu2025_strategy(size, bin_, Exam.AIME24) for size in sizes]
    assert aime == ["dvts", "dvts", "best_of_n", "best_of_n"]
    assert liu2025(1.5e9, bin_, 64, Exam.R1) == Route(
        "best_of_n", 64, 1, Reduction.LAST, Vote.MAJORITY
    )


def test_the_table_gives_as_many_solutions_as_fit() -> None:
    route = liu2025(1.2e9, Difficulty.EASY, 19)
    assert (route.strategy, route.n, route.branching) == ("beam", 16, 4)
    assert (route.vote, route.vote_reduction) == (Vote.WEIGHTED, Reduction.LAST)
    assert liu2025(72e9, Difficulty.EASY, 19).n == 19


def test_the_table_needs_parameters_and_a_budget() -> None:
    with pytest.raises(RecipeError, match="goes by the policy's parameters"):
        liu2025(0.0, Difficulty.EASY, 64)
    with pytest.raises(RecipeError, match="table liu2025: beam needs 4 solutions, not 3"):
        liu2025(1e9, Difficulty.EASY, 3)
