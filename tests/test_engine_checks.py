"""How models are run: what a recipe says of engines, prompts and shared GPUs, and its mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_recipe import fake_recipe, refusal

from actors.engines.vllm_start import OWN_KEYS
from actors.prm_families import PRM_FAMILIES
from jobs.models import policy_spec, prm_spec
from jobs.recipe import parse_recipe

pytestmark = pytest.mark.unit

VLLM = {"name": "one", "model": "org/one", "engine": "vllm"}
PRM = {"model": "org/prm", "engine": "vllm", "family": "qwen2.5-math-prm"}


def vllm_policy(**changes: Any) -> dict[str, Any]:
    return fake_recipe(policies=[VLLM | changes])


def vllm_pair(policy: dict[str, Any], prm: dict[str, Any]) -> dict[str, Any]:
    return fake_recipe(policies=[VLLM | policy], prm=PRM | prm)


# Defaults


@pytest.mark.parametrize(
    ("engine", "gpus", "dtype"),
    [
        ("vllm", 0, "float32"),
        ("vllm", 1, "bfloat16"),
        ("vllm", 0.5, "bfloat16"),
        ("transformers", 0, "float64"),
        ("transformers", 1, "bfloat16"),
    ],
)
def test_the_default_dtype_follows_engine_and_gpus(engine: str, gpus: float, dtype: str) -> None:
    recipe = parse_recipe(vllm_policy(engine=engine, gpus_per_replica=gpus))
    assert recipe.policies[0].dtype == dtype


def test_a_share_of_a_gpu_is_a_share_of_its_memory() -> None:
    def options(**changes: Any) -> dict[str, Any]:
        return dict(parse_recipe(vllm_policy(**changes)).policies[0].options)

    assert options(gpus_per_replica=0.5) == {"gpu_memory_utilization": 0.45}
    assert options(gpus_per_replica=1) == {}
    assert options(gpus_per_replica=0.25, engine="fake") == {}
    given = {"gpu_memory_utilization": 0.3}
    assert options(gpus_per_replica=0.5, options=given) == given


def test_a_resolved_recipe_resolves_to_itself() -> None:
    recipe = parse_recipe(vllm_pair({"gpus_per_replica": 0.5}, {"gpus_per_replica": 0.25}))
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_options_reach_the_engine_but_for_those_of_the_layout() -> None:
    options = {"max_model_len": 4096, "quantization": "fp8", "compat": "search-and-learn"}
    spec = prm_spec(parse_recipe(vllm_pair({}, {"options": options})).prm)
    assert spec is not None
    assert spec.options == options
    assert spec.engine_options() == {"max_model_len": 4096, "quantization": "fp8"}


# Mistakes


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"dtype": "float64"}, "policies.0.dtype: vllm has no float64: use float32"),
        ({"options": {"tensor_parallel_size": 2}}, "gpus_per_replica=0, but options cut"),
        (
            {"options": {"tensor_parallel_size": 2}, "gpus_per_replica": 0.5},
            "gpus_per_replica=0.5, but options cut the model over 2 GPUs: set gpus_per_replica: 2",
        ),
        (
            {"options": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}},
            "set gpus_per_replica: 4",
        ),
        ({"options": {"tensor_parallel_size": "two"}}, "='two': use a whole number from 1"),
        ({"options": {"pipeline_parallel_size": 0}}, "=0: use a whole number from 1"),
        ({"gpus_per_replica": 2}, "set options.tensor_parallel_size: 2, or gpus_per_replica: 1"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica=1.5: use a whole number, or a part"),
        ({"engine": "transformers", "gpus_per_replica": 2}, "transformers uses one; set 1"),
        ({"options": {"gpu_memory_utilization": 90}}, "=90: use a number above 0, up to 1"),
        ({"options": {"gpu_memory_utilization": "high"}}, "='high': use a number above 0"),
        ({"options": {"max_model_len": 2048}}, "options.max_model_len=2048 does not hold a"),
    ],
)
def test_one_line_for_a_model_that_cannot_run(changes: dict[str, Any], line: str) -> None:
    message = refusal(vllm_policy(**changes))
    assert message.startswith("policies.0.")
    assert line in message


@pytest.mark.parametrize("key", list(OWN_KEYS))
def test_what_branchwise_sets_is_refused_in_options(key: str) -> None:
    message = refusal(vllm_pair({}, {"options": {key: 1}}))
    assert message.startswith(f"prm.options.{key} is set by Branchwise: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"tensor_parallel_size": 4}, "gpus_per_replica": 4},
        {
            "options": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            "gpus_per_replica": 4,
        },
        {"options": {"max_model_len": 2049}},
        {"options": {"max_model_len": -1}},
        {"options": {"max_model_len": "auto"}},
        {"options": {"tensor_parallel_size": 1}, "gpus_per_replica": 0.5},
    ],
)
def test_models_that_can_run_are_taken(changes: dict[str, Any]) -> None:
    parse_recipe(vllm_policy(**changes))


# Options of the PRM that are Branchwise's own


def test_a_published_rule_is_asked_for_by_name() -> None:
    parse_recipe(vllm_pair({}, {"options": {"compat": "search-and-learn"}}))
    message = refusal(vllm_pair({}, {"options": {"compat": "search_and_learn"}}))
    assert message == (
        "prm.options.compat: unknown 'search_and_learn': did you mean 'search-and-learn'?"
    )


def test_a_layout_of_ones_own_belongs_to_the_custom_family() -> None:
    message = refusal(vllm_pair({}, {"options": {"family": {"separator": "+"}}}))
    assert message.startswith("prm.options.family")
    assert "custom" in message


def test_the_custom_family_needs_its_layout() -> None:
    assert "custom" in PRM_FAMILIES
    parse_recipe(vllm_pair({}, {"family": "custom", "options": {"family": {"separator": "+"}}}))
    assert "prm.options.family" in refusal(vllm_pair({}, {"family": "custom"}))
    misspelt = {"family": "custom", "options": {"family": {"separater": "+"}}}
    assert "did you mean 'separator'?" in refusal(vllm_pair({}, misspelt))


def test_a_fake_prm_takes_them_too() -> None:
    from actors.engines.fake import FakePRM

    prm = fake_recipe()["prm"] | {"options": {"compat": "search-and-learn"}}
    spec = prm_spec(parse_recipe(fake_recipe(prm=prm)).prm)
    assert spec is not None
    FakePRM(spec)


# Prompts


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompt": "qwen_box"}, "policies.0.prompt: unknown prompt style 'qwen_box': did you"),
        ({"prompt": "qwen_boxed", "system_prompt": "x"}, "policies.0.system_prompt: prompt qwen"),
        ({"prompt": "r1", "system_prompt": "x"}, "policies.0.system_prompt: prompt r1 has a"),
        ({"prompt": "template"}, "policies.0.prompt_template is missing: give the whole prompt"),
        ({"prompt_template": "{problem}"}, "policies.0.prompt_template means nothing with prompt"),
        (
            {"prompt": "template", "prompt_template": "Q: {question} A:"},
            "policies.0.prompt_template has no {problem}, but {question}: rename it",
        ),
        (
            {"prompt": "template", "prompt_template": "Q: \\boxed{}"},
            "policies.0.prompt_template has no {problem}: say where the problem goes",
        ),
        (
            {"prompt": "template", "prompt_template": "{problem} {problem}"},
            "policies.0.prompt_template holds {problem} 2 times: keep one",
        ),
    ],
)
def test_one_line_for_a_wrong_prompt(changes: dict[str, Any], line: str) -> None:
    assert refusal(vllm_policy(**changes)).startswith(line)


def test_a_style_reaches_the_replicas() -> None:
    template = "Q: {problem}, as \\boxed{}"
    recipe = parse_recipe(vllm_policy(prompt="template", prompt_template=template))
    assert policy_spec(recipe.policies[0]).prompt.template == template


def checkpoint(folder: Path, **tokenizer: Any) -> dict[str, Any]:
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return {"model": str(folder), "engine": "transformers"}


def test_a_folder_without_a_chat_template_needs_one_of_ones_own(tmp_path: Path) -> None:
    base = checkpoint(tmp_path)
    message = refusal(vllm_policy(**base, prompt="qwen_boxed"))
    assert message.startswith("policies.0.model: ")
    assert "policies.0.prompt: template" in message
    parse_recipe(vllm_policy(**base, prompt="template", prompt_template="{problem}"))


def test_chat_templates_are_found_where_checkpoints_keep_them(tmp_path: Path) -> None:
    base = checkpoint(tmp_path, chat_template="{{ messages }}")
    parse_recipe(vllm_policy(**base))
    checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    parse_recipe(vllm_policy(**base))


# GPUs that models share


def part(gpus: float, memory: float | None = None, replicas: int = 1) -> dict[str, Any]:
    options = {} if memory is None else {"gpu_memory_utilization": memory}
    return {"gpus_per_replica": gpus, "replicas": replicas, "options": options}


@pytest.mark.parametrize(
    ("policy", "prm"),
    [
        (part(0.5), part(0.5)),
        (part(0.5, 0.5), part(0.5, 0.45)),
        (part(0.6, 0.9), part(0.6, 0.9)),
        (part(1, 0.95), part(0.5, 0.9)),
        (part(0.25, replicas=8), part(0.5, replicas=2)),
        (part(0.1, replicas=10), part(0.3, replicas=3)),
    ],
)
def test_models_that_fit_on_one_gpu_share_it(policy: dict[str, Any], prm: dict[str, Any]) -> None:
    assert parse_recipe(vllm_pair(policy, prm))


@pytest.mark.parametrize(
    ("policy", "prm", "sum_of_shares"),
    [
        (part(0.5, 0.5), part(0.5, 0.5), "1.00"),
        (part(0.5, 0.6, replicas=2), part(1), "1.20"),
        (part(0.25, 0.2, replicas=2), part(0.5, 0.6), "1.00"),
        (part(0.3), part(0.3, 0.5, replicas=3), "1.50"),
    ],
)
def test_models_that_want_more_than_a_gpu_are_refused(
    policy: dict[str, Any], prm: dict[str, Any], sum_of_shares: str
) -> None:
    message = refusal(vllm_pair(policy, prm))
    assert f"gpu_memory_utilization can add up to {sum_of_shares} on one GPU" in message
