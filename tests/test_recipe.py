"""Recipes: what they hold, how they are overridden, and the one line each mistake gets."""

import copy
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from actors.prm_families import PRM_FAMILIES
from jobs.recipe import load_recipe, parse_recipe, recipe_digest
from jobs.recipe_checks import model_folder
from jobs.settings import LimitSettings, Recipe, SamplingSettings
from search.config import Limits
from search.errors import RecipeError
from search.partition import partition
from search.problem import Problem
from search.protocols import Sampling
from search.rewards import Reduction
from search.strategies import STRATEGIES

pytestmark = pytest.mark.unit

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
HEAVY = ("ray", "torch", "transformers", "datasets", "reasoning_gym", "pyarrow")


def fake_recipe(**changes: Any) -> dict[str, Any]:
    """A small recipe that works as it is, with some of its top-level keys replaced."""
    recipe: dict[str, Any] = {
        "name": "small",
        "data": [{"source": "reasoning_gym:chain_sum", "size": 3, "seed": 7}],
        "policies": [{"name": "one", "model": "scripted", "engine": "fake"}],
        "prm": {"model": "scripted", "engine": "fake", "family": "qwen2.5-math-prm"},
        "searches": [
            {"strategy": "best_of_n", "n": 8},
            {"strategy": "beam", "n": [4, 8], "branching": 4},
        ],
    }
    return copy.deepcopy(recipe) | changes


def write_recipe(folder: Path, document: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def refusal(document: Any) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document)
    message = str(caught.value)
    assert "\n" not in message
    return message


def searching(**search: Any) -> dict[str, Any]:
    return fake_recipe(searches=[search])


# What a recipe holds


def test_defaults_are_written_out() -> None:
    recipe = parse_recipe(fake_recipe())
    assert recipe.policies[0].dtype == "float64"
    assert [search.branching for search in recipe.searches] == [None, 4]
    assert recipe.runs_folder == "runs"


def test_gpus_change_the_default_dtype() -> None:
    gpu = {"model": "a/big-model", "engine": "fake", "gpus_per_replica": 1}
    policies = [gpu, gpu | {"name": "exact", "dtype": "float32"}]
    recipe = parse_recipe(fake_recipe(policies=policies))
    assert [policy.dtype for policy in recipe.policies] == ["bfloat16", "float32"]
    assert [policy.name for policy in recipe.policies] == ["big-model", "exact"]


def test_one_source_may_stand_without_a_list() -> None:
    source = fake_recipe()["data"][0]
    assert parse_recipe(fake_recipe(data=source)) == parse_recipe(fake_recipe())


def test_a_list_of_n_is_one_search_each() -> None:
    configs = parse_recipe(fake_recipe(seed=5)).search_configs()
    widths = [(c.strategy, c.n, c.branching, c.keep, c.run_seed) for c in configs]
    assert widths == [("best_of_n", 8, 1, 8, 5), ("beam", 4, 4, 1, 5), ("beam", 8, 4, 2, 5)]


def test_dvts_keeps_one_a_subtree_and_branches_four_times_by_default() -> None:
    [config] = parse_recipe(searching(strategy="dvts", n=64, reduction="min")).search_configs()
    assert (config.branching, config.keep, config.reduction) == (4, 1, Reduction.MIN)


def test_a_search_may_be_for_some_policies_only() -> None:
    fake = {"model": "fake", "engine": "fake"}
    searches = [
        {"strategy": "dvts", "n": 64, "policies": ["small"]},
        {"strategy": "dvts", "n": 64, "policies": ["large"]},
        {"strategy": "beam", "n": 8},
    ]
    policies = [{**fake, "name": "small"}, {**fake, "name": "large"}]
    recipe = parse_recipe(fake_recipe(policies=policies, searches=searches))
    of_small = [(c.strategy, c.n) for c in recipe.search_configs("small")]
    assert of_small == [("dvts", 64), ("beam", 8)]
    assert len(recipe.search_configs()) == 3


@pytest.mark.parametrize(
    ("searches", "message"),
    [
        ([{"strategy": "beam", "n": 8, "policies": ["smal"]}], "did you mean 'small'"),
        ([{"strategy": "beam", "n": 8, "policies": ["small"]}], "no search is run by 'large'"),
        (
            [{"strategy": "beam", "n": 8}, {"strategy": "beam", "n": 8, "policies": ["large"]}],
            "repeats beam with n=8",
        ),
    ],
)
def test_searches_for_policies_that_cannot_be(searches: list[Any], message: str) -> None:
    fake = {"model": "fake", "engine": "fake"}
    policies = [{**fake, "name": "small"}, {**fake, "name": "large"}]
    with pytest.raises(RecipeError, match=message):
        parse_recipe(fake_recipe(policies=policies, searches=searches))


def test_limits_and_sampling_reach_the_search() -> None:
    changes = {"limits": {"max_steps": 3}, "sampling": {"temperature": 0, "delimiter": ";"}}
    config = parse_recipe(fake_recipe(**changes)).search_configs()[0]
    assert config.limits == Limits(max_steps=3)
    assert config.sampling == Sampling(temperature=0, delimiter=";")


# Set by the rules of `compat`, not by a recipe.
PUBLISHED_RULES = ("box_mark", "cut_step_ends")


@pytest.mark.parametrize(
    ("section", "settings"), [(LimitSettings, Limits), (SamplingSettings, Sampling)]
)
def test_sections_have_the_fields_and_defaults_of_the_search(
    section: type[BaseModel], settings: type
) -> None:
    searched = [field.name for field in fields(settings) if field.name not in PUBLISHED_RULES]
    assert list(section.model_fields) == searched
    assert settings(**section().model_dump()) == settings()


def test_the_keys_of_variants_reach_the_search() -> None:
    searches = [
        {"strategy": "dvts", "n": 8, "lookahead": 2, "score_every": 3},
        {"strategy": "dvts", "n": 8, "compat": "search_and_learn", "lookahead": 2},
        {"strategy": "dvts", "n": 8, "compat": "compute_optimal_tts"},
        {"strategy": "rebase", "n": 8, "width_temperature": 0.1},
        {"strategy": "rebase", "n": 8},
        {"strategy": "dvts", "n": 8},
    ]
    recipe = parse_recipe(fake_recipe(searches=searches))
    assert [config.variant for config in recipe.search_configs()] == [
        "lookahead=2 score_every=3",
        "compat=search_and_learn lookahead=2",
        "compat=compute_optimal_tts",
        "width_temperature=0.1",
        "",
        "",
    ]
    assert recipe.search_configs()[3].keep == 8
    twice = searches[:1] * 2
    with pytest.raises(RecipeError, match="repeats dvts lookahead=2 score_every=3 with n=8"):
        parse_recipe(fake_recipe(searches=twice))


def sections_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A section and all sections inside it."""
    found = [model]
    for field in model.model_fields.values():
        for kind in kinds_in(field.annotation):
            found += sections_of(kind)
    return found


def kinds_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key may hold, in lists and among alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in kinds_in(part)]


def test_every_key_is_described() -> None:
    sections = sections_of(Recipe)
    assert len(sections) == 20
    for section in sections:
        assert all(field.description for field in section.model_fields.values())


def test_majority_needs_no_prm() -> None:
    assert parse_recipe(searching(strategy="majority", n=8) | {"prm": None}).prm is None


# Folders and files


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = parse_recipe(fake_recipe(policies=[{"model": str(tmp_path)}]))
    assert recipe.policies[0].model == str(tmp_path)
    assert model_folder(str(tmp_path)) == tmp_path


def test_a_relative_folder_is_kept_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(fake_recipe(policies=[{"model": "models/tiny"}]))
    assert (recipe.policies[0].model, recipe.policies[0].name) == ("models/tiny", "tiny")
    assert model_folder("models/tiny") == tmp_path / "models" / "tiny"


def test_relative_folders_are_also_found_from_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder("jobs/recipes") == RECIPES.resolve()


def test_a_hub_id_is_not_looked_up() -> None:
    parse_recipe(fake_recipe(policies=[{"model": "01-org/model-1.5b"}]))
    assert model_folder("01-org/model-1.5b") is None


def test_a_missing_model_folder_is_named_with_its_nearest(tmp_path: Path) -> None:
    (tmp_path / "policy-3m").mkdir()
    message = refusal(fake_recipe(policies=[{"model": str(tmp_path / "policy-2m")}]))
    assert message.startswith("policies.0.model: there is no folder")
    assert message.endswith("policy-3m'?")


@pytest.mark.parametrize("model", ["./no-such", "/no/such", "embedded/no-such", "no-such"])
def test_missing_model_folders_are_refused(model: str) -> None:
    prm = {"model": model, "family": "qwen2.5-math-prm"}
    assert f"prm.model: there is no folder {model!r}" in refusal(fake_recipe(prm=prm))


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(fake_recipe(policies=[{"model": str(tmp_path)}]))


# Mistakes: each gets one line that says what to change


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"serches": []}, "unknown key 'serches': did you mean 'searches'?"),
        ({"limits": {"max_stepz": 3}}, "unknown key 'limits.max_stepz': did you mean 'max_steps'?"),
        ({"limits": None}, "limits: should be a section with keys of its own"),
        ({"name": "a b"}, "name: string should match pattern"),
        ({"seed": "one"}, "seed: input should be a valid integer"),
        ({"policies": []}, "policies: tuple should have at least 1 item"),
        ({"policies": [{"name": "x"}]}, "policies.0.model: this key is missing"),
        ({"sampling": {"temperature": -0.1}}, "sampling.temperature: input should be greater"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p: input should be greater than 0, not 0"),
        ({"sampling": {"top_p": 1.1}}, "sampling.top_p: input should be less than or equal to 1"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature: input should be"),
        ({"work": {"solutions_per_unit": 0}}, "work.solutions_per_unit: input should be greater"),
        ({"limits": {"max_steps": -1}}, "limits.max_steps: input should be greater than 0, not -1"),
        ({"prm": None}, "searches.0: best_of_n needs a PRM: add a prm section, or use majority"),
    ],
)
def test_one_line_for_a_mistake(changes: dict[str, Any], line: str) -> None:
    assert refusal(fake_recipe(**changes)).startswith(line)


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"strategy": "bean", "n": 8}, "searches.0.strategy: unknown strategy 'bean': did you"),
        ({"strategy": "zzz", "n": 8}, "choose from majority, best_of_n, beam, dvts"),
        ({"strategy": "beam", "n": 8, "branchin": 2}, "'searches.0.branchin': did you mean"),
        ({"strategy": "beam", "n": 10, "branching": 4}, "multiple of branching=4: use 8 or 12"),
        ({"strategy": "dvts", "n": [8, 6]}, "searches.0.n=6 is not a multiple of branching=4"),
        ({"strategy": "beam", "n": 2, "branching": 4}, "n=2 is smaller than branching=4: use 4"),
        ({"strategy": "beam", "n": 0}, "searches.0.n.0: input should be greater than 0, not 0"),
        ({"strategy": "beam", "n": []}, "searches.0.n: tuple should have at least 1 item"),
        ({"strategy": "best_of_n", "n": 8, "branching": 4}, "best_of_n does not branch: remove"),
        ({"strategy": "beam", "n": [8, 8]}, "searches.0 repeats beam with n=8"),
        ({"strategy": "beam", "n": 8, "reduction": "max"}, "should be 'last', 'min', 'mean' or"),
    ],
)
def test_one_line_for_a_wrong_search(search: dict[str, Any], line: str) -> None:
    assert line in refusal(searching(**search))


def test_searches_that_differ_in_reduction_alone_are_the_same() -> None:
    beam = {"strategy": "beam", "n": 8}
    message = refusal(fake_recipe(searches=[beam, beam | {"reduction": "min"}]))
    assert message.startswith("searches.1 repeats beam with n=8")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"source": "problems.csv"}, "data.0.source: cannot read 'problems.csv': give a .jsonl"),
        ({"source": "a.jsonl", "size": 0}, "data.0.size: input should be greater than 0, not 0"),
        ({"source": "a.jsonl", "split": "x"}, "data.0.split means nothing for 'a.jsonl': remove"),
        ({"source": "reasoning_gym:chain_sum"}, "data.0.size is missing"),
        ({"source": "org/set", "seed": 0}, "data.0.seed means nothing for 'org/set': remove it"),
        ({"source": "org/set", "split": "a", "options": {"split": "b"}}, "split is given twice"),
    ],
)
def test_one_line_for_a_wrong_source(source: dict[str, Any], line: str) -> None:
    assert line in refusal(fake_recipe(data=[source]))


def test_the_same_task_with_the_same_seed_is_refused() -> None:
    task = fake_recipe()["data"][0]
    message = refusal(fake_recipe(data=[task, task | {"options": {"max_terms": 3}}]))
    assert message.startswith("data.1 repeats reasoning_gym:chain_sum with seed 7")


def test_an_unknown_prm_family_is_refused() -> None:
    prm = {"model": "scripted", "engine": "fake", "family": "qwen2-math-prm"}
    known = next(iter(PRM_FAMILIES))
    line = f"prm.family: unknown PRM family 'qwen2-math-prm': did you mean '{known}'?"
    assert refusal(fake_recipe(prm=prm)) == line


def test_policy_names_must_differ() -> None:
    policy = {"model": "org/scripted", "engine": "fake"}
    message = refusal(fake_recipe(policies=[policy, policy]))
    assert message == "policies.1.name=scripted is taken by policies.0: rename one"


def test_further_mistakes_are_counted() -> None:
    two = {"temperature": -1, "top_p": 2}
    assert refusal(fake_recipe(sampling=two)).endswith("(and 1 more problem)")
    assert refusal(fake_recipe(sampling=two, seed=-1)).endswith("(and 2 more problems)")


def test_a_misspelt_key_comes_before_the_missing_one() -> None:
    document = fake_recipe()
    document["polices"] = document.pop("policies")
    assert refusal(document).startswith("unknown key 'polices': did you mean 'policies'?")


@pytest.mark.parametrize("document", [3, [], {1: 2}, {}])
def test_what_is_no_recipe_at_all_is_refused(document: Any) -> None:
    refusal(document)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*No such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty: start from a file in jobs/recipes"),
        (b"# nothing\n", "is empty"),
        (b"- a\n", "is not a mapping of keys to values"),
        (b"a: [1\n", "is not valid YAML"),
        (b"a: \xff\n", "is not valid YAML"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, fake_recipe(seed=-1))
    with pytest.raises(RecipeError, match=r"recipe\.yaml: seed: "):
        load_recipe(path)


# Overrides


def test_overrides_replace_values_in_sections_and_lists(tmp_path: Path) -> None:
    changes = [
        "policies.0.replicas=2",
        "searches.1.n=[16, 32]",
        "searches.0.n=4",
        "limits.max_steps=3",
        'sampling.delimiter="\\n"',
        "name=other",
    ]
    recipe = load_recipe(write_recipe(tmp_path, fake_recipe()), changes)
    assert recipe.policies[0].replicas == 2
    assert [search.n for search in recipe.searches] == [(4,), (16, 32)]
    assert (recipe.limits.max_steps, recipe.sampling.delimiter) == (3, "\n")
    assert recipe.name == "other"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("limits.max_stepz=3", "unknown key 'limits.max_stepz': did you mean 'max_steps'?"),
        ("policies.0.replica=2", "unknown key 'policies.0.replica': did you mean 'replicas'?"),
        ("nothing", "the override 'nothing' needs the form key.path=value"),
        ("=3", "needs the form key.path=value"),
        ("seed=[1", "is not YAML"),
        ("policies.1.replicas=2", "needs a place from 0 to 0: '1'"),
        ("policies.-1.replicas=2", "needs a place from 0 to 0: '-1'"),
        ("name.first=a", "the override name.first goes too deep"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, fake_recipe()), [override])
    assert line in str(caught.value)


def test_an_override_leaves_what_shares_a_yaml_anchor_alone(tmp_path: Path) -> None:
    shared = {"temperature": 1.0}
    policies = [
        {"name": name, "model": "x", "engine": "fake", "options": shared} for name in ("a", "b")
    ]
    path = write_recipe(tmp_path, fake_recipe(policies=policies))
    assert "&id" in path.read_text()
    recipe = load_recipe(path, ["policies.0.options.temperature=2"])
    assert [policy.options["temperature"] for policy in recipe.policies] == [2, 1.0]


# Digest


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(item) for key, item in reversed(value.items())}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    document = fake_recipe(limits={"max_steps": 3, "max_step_tokens": 9})
    turned = reversed_keys(document)
    assert list(turned) != list(document)
    assert recipe_digest(parse_recipe(turned)) == recipe_digest(parse_recipe(document))


def test_the_digest_is_stable() -> None:
    digest = recipe_digest(parse_recipe(fake_recipe()))
    assert digest == recipe_digest(parse_recipe(fake_recipe(seed=0, runs_folder="runs")))
    assert digest != recipe_digest(parse_recipe(fake_recipe(seed=1)))
    assert len(digest) == 64


@given(
    seed=st.integers(0, 2**63),
    strategy=st.sampled_from(list(STRATEGIES)),
    kept=st.lists(st.integers(1, 200), min_size=1, max_size=4, unique=True),
    temperature=st.floats(0, 5),
    delimiter=st.text(st.characters(codec="utf-8"), min_size=1),
    reduction=st.sampled_from(list(Reduction)),
)
def test_a_resolved_recipe_reads_back_as_itself(
    seed: int,
    strategy: str,
    kept: list[int],
    temperature: float,
    delimiter: str,
    reduction: Reduction,
) -> None:
    search = {"strategy": strategy, "n": [4 * count for count in kept], "reduction": str(reduction)}
    sampling = {"temperature": temperature, "delimiter": delimiter}
    recipe = parse_recipe(fake_recipe(seed=seed, searches=[search], sampling=sampling))
    again = parse_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)
    assert again.search_configs() == recipe.search_configs()


# The shipped recipes


@pytest.mark.parametrize(
    ("name", "strategy", "n", "units"),
    [("math500-llama1b-dvts512", "dvts", 512, 16), ("aime24-qwen7b-beam256", "beam", 256, 1)],
)
def test_gpu_recipes_are_parsed_resolved_and_planned(
    name: str, strategy: str, n: int, units: int
) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    [config] = recipe.search_configs()
    planned = list(partition(Problem("p", "?", "1"), config, recipe.work.solutions_per_unit))
    assert (recipe.name, config.strategy, config.n, config.branching) == (name, strategy, n, 4)
    assert recipe.policies[0].dtype == "bfloat16"
    assert len(planned) == units


def test_the_demo_recipe_climbs_a_ladder_of_three() -> None:
    document = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    models = [*document["policies"], document["prm"]]
    assert all(model["model"].startswith("embedded/models/") for model in models)
    recipe = load_recipe(
        RECIPES / "demo.yaml",
        [f"policies.{place}.engine=fake" for place in range(3)] + ["prm.engine=fake"],
    )
    assert len(recipe.policies) == 3
    assert {config.strategy for config in recipe.search_configs()} == {"best_of_n", "beam", "dvts"}


# Cheapness


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    code = f"import sys, jobs.recipe; print([m for m in {HEAVY} if m in sys.modules])"
    command, root = [sys.executable, "-c", code], RECIPES.parent.parent
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert loaded.stdout.strip() == "[]"
