"""What a run needs and costs: shapes of models, memory of GPUs, and the plan that is printed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_recipe import fake_recipe

from jobs.fit import (
    BYTES_OF_QUANTIZED,
    GIB,
    VLLM_MEMORY_SHARE,
    VLLM_WORKING_BYTES,
    ModelFit,
    check_fit,
    fit_complaints,
    model_fits,
)
from jobs.known_models import KNOWN_MODELS
from jobs.model_shapes import shape_in, shape_of
from jobs.plan import UNKNOWN, plan_run, print_plan
from jobs.recipe import parse_recipe
from jobs.settings import Recipe
from search.errors import RecipeError

pytestmark = pytest.mark.unit

EMBEDDED = Path(__file__).parent.parent / "embedded" / "models"
LLAMA_1B, LLAMA_8B = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"
QWEN_7B, PRM_7B = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Math-PRM-7B"
PRM_72B = "Qwen/Qwen2.5-Math-PRM-72B"


def recipe_of(policy: dict[str, Any], prm: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A recipe of vLLM models on one GPU each."""
    vllm = {"engine": "vllm", "gpus_per_replica": 1}
    scorer = {"model": PRM_7B, "family": "qwen2.5-math-prm", **vllm, **(prm or {})}
    policies = [{"model": LLAMA_1B, **vllm, **policy}]
    return parse_recipe(fake_recipe(policies=policies, prm=scorer, **changes))


def fit_of(policy: dict[str, Any], **changes: Any) -> ModelFit:
    return model_fits(recipe_of(policy, **changes))[0]


# Shapes


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (LLAMA_1B, 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        (LLAMA_8B, 8_030_261_248),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-Math-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        (QWEN_7B, 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384),
        ("peiyi9979/math-shepherd-mistral-7b-prm", 7_241_732_096),
    ],
)
def test_known_shapes_give_the_published_parameter_counts(model: str, parameters: int) -> None:
    assert KNOWN_MODELS[model].parameters == parameters


@pytest.mark.parametrize("name", ["policy-0.1m", "policy-0.6m", "policy-3m"])
def test_a_folder_is_read_and_its_shape_counts_as_its_weights_do(name: str) -> None:
    shape = shape_in(EMBEDDED / name)
    assert shape is not None
    assert shape.counted
    assert dataclasses.replace(shape, counted=0).parameters == shape.counted


def test_the_cache_of_the_hub_is_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((EMBEDDED / "policy-3m" / "config.json").read_bytes())
    assert shape_of("org/tiny") is None
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shape = shape_of("org/tiny")
    assert shape is not None
    assert shape.parameters == 3_051_520


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"hidden_size": "wide"}'])
def test_a_config_that_does_not_tell_gives_no_shape(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert shape_in(tmp_path) is None


# Memory


def test_weights_and_cache_of_a_model_on_one_gpu() -> None:
    fit = fit_of({"model": LLAMA_8B}, cluster={"gpu_memory_gib": 80})
    share, weights = VLLM_MEMORY_SHARE * 80 * GIB, 2 * 8_030_261_248
    assert fit.weight_bytes == weights
    assert fit.share_bytes == pytest.approx(share)
    assert fit.kv_token_bytes == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert fit.kv_room_bytes == pytest.approx(share - weights - VLLM_WORKING_BYTES)


def test_a_model_is_cut_over_its_gpus() -> None:
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    one, four = (
        fit_of({"model": LLAMA_8B}),
        fit_of({"model": LLAMA_8B, "gpus_per_replica": 4, "options": options}),
    )
    assert one.weight_bytes == 4 * (four.weight_bytes or 0)
    assert one.kv_token_bytes == 4 * (four.kv_token_bytes or 0)


def test_a_gpu_holds_at_least_one_head() -> None:
    options = {"tensor_parallel_size": 8}
    eight = fit_of({"model": QWEN_7B, "gpus_per_replica": 8, "options": options})
    assert eight.kv_token_bytes == 2 * 28 * 128 * 2


def test_a_part_of_a_gpu_is_a_part_of_its_memory() -> None:
    fit = fit_of({"gpus_per_replica": 0.25}, cluster={"gpu_memory_gib": 100})
    assert fit.share_bytes == pytest.approx(0.225 * 100 * GIB)


@pytest.mark.parametrize("method", list(BYTES_OF_QUANTIZED))
def test_quantized_weights_are_smaller_but_not_their_embeddings(method: str) -> None:
    whole, small = (
        fit_of({"model": QWEN_7B}),
        fit_of({"model": QWEN_7B, "options": {"quantization": method}}),
    )
    assert whole.weight_bytes
    assert small.weight_bytes
    embeddings = 2 * 2 * 152064 * 3584
    body = (whole.weight_bytes - embeddings) * BYTES_OF_QUANTIZED[method] / 2
    assert small.weight_bytes == pytest.approx(embeddings + body)


def test_an_unknown_quantization_claims_nothing() -> None:
    fit = fit_of({"options": {"quantization": "some_new_method"}})
    assert (fit.weight_bytes, fit.kv_room_bytes, fit.sequences) == (None, None, None)


def test_an_eight_bit_cache_holds_twice_as_much() -> None:
    eight = fit_of({"options": {"kv_cache_dtype": "fp8"}})
    assert eight.kv_token_bytes == (fit_of({}).kv_token_bytes or 0) / 2


def test_without_gpus_the_cache_has_the_size_it_is_given() -> None:
    fit = fit_of({"gpus_per_replica": 0, "options": {"kv_cache_memory_bytes": 1 << 28}})
    assert (fit.share_bytes, fit.kv_room_bytes) == (None, 1 << 28)


def test_sequences_at_once_are_bounded_by_the_batch_and_by_the_cache() -> None:
    assert fit_of({"max_batch": 8}).sequences == 8
    fit = fit_of({"model": LLAMA_8B, "max_batch": 100_000})
    assert fit.kv_room_bytes
    assert fit.sequences == int(fit.kv_room_bytes // (128 * 1024 * (2048 + 512)))


# What cannot fit


@pytest.mark.parametrize(
    ("policy", "prm", "changes", "line"),
    [
        (
            {},
            {"model": PRM_72B},
            {},
            "prm: the weights of Qwen/Qwen2.5-Math-PRM-72B take 133.2 GiB",
        ),
        ({}, {"model": PRM_72B}, {}, "raise options.tensor_parallel_size and gpus_per_replica"),
        ({}, {"model": PRM_72B}, {}, "set cluster.gpu_memory_gib"),
        (
            {"model": QWEN_7B, "gpus_per_replica": 0.3},
            {"gpus_per_replica": 0.6},
            {"cluster": {"gpu_memory_gib": 40}},
            "its share of a GPU of 40 GiB is 10.8 GiB: raise gpus_per_replica",
        ),
        (
            {"model": QWEN_7B, "engine": "transformers"},
            {},
            {"cluster": {"gpu_memory_gib": 12}},
            "use a smaller model or dtype, or engine: vllm",
        ),
        ({}, {}, {"limits": {"max_solution_tokens": 4096}}, "context of 4096 tokens of prm (Qwen"),
        (
            {"model": LLAMA_8B},
            {},
            {"cluster": {"gpu_memory_gib": 24}},
            "policies.0: vLLM cannot hold one sequence of 131072 tokens in a KV cache of 7.1 GiB: "
            "set options.max_model_len: 2560 or so",
        ),
        (
            {"model": "Qwen/Qwen2.5-0.5B-Instruct", "gpus_per_replica": 0},
            {},
            {},
            "policies.0: vLLM cannot hold one sequence of 32768 tokens in a KV cache of 0.5 GiB",
        ),
    ],
)
def test_one_line_for_what_cannot_fit(
    policy: dict[str, Any], prm: dict[str, Any], changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_fit(recipe_of(policy, prm, **changes))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "prm", "changes"),
    [
        ({}, {}, {}),
        (
            {},
            {"model": PRM_72B, "gpus_per_replica": 4, "options": {"tensor_parallel_size": 4}},
            {},
        ),
        ({}, {"model": PRM_72B}, {"cluster": {"gpu_memory_gib": 192}}),
        ({"model": "org/never-heard-of"}, {}, {}),
        ({"gpus_per_replica": 0.4}, {"gpus_per_replica": 0.6}, {}),
        (
            {"model": LLAMA_8B, "options": {"max_model_len": 4096}},
            {},
            {"cluster": {"gpu_memory_gib": 24}},
        ),
    ],
)
def test_what_fits_or_is_not_known_is_taken(
    policy: dict[str, Any], prm: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert list(fit_complaints(recipe_of(policy, prm, **changes))) == []


def test_fake_models_need_no_memory() -> None:
    assert list(fit_complaints(parse_recipe(fake_recipe()))) == []


# The plan


def test_work_units_and_tokens_follow_from_the_searches() -> None:
    limits = {"max_steps": 10, "max_step_tokens": 50, "max_solution_tokens": 400}
    searches = [{"strategy": "best_of_n", "n": 64}, {"strategy": "dvts", "n": 64}]
    work = {"solutions_per_unit": 32}
    plan = plan_run(parse_recipe(fake_recipe(limits=limits, searches=searches, work=work)))
    assert (plan.problems, plan.searches, plan.units) == (3, 2, 2 + 2)
    assert plan.level_tokens == 2 * 64 * 400
    assert plan.most_tokens == 64 * 400 + 16 * (400 + 3 * 10 * 50)


def test_tokens_of_variants_follow_from_their_rules() -> None:
    limits = {"max_steps": 10, "max_step_tokens": 50, "max_solution_tokens": 400}

    def planned(**search: Any) -> tuple[int, int]:
        searches = [{"n": 64, **search}]
        plan = plan_run(parse_recipe(fake_recipe(limits=limits, searches=searches)))
        return plan.level_tokens, plan.most_tokens

    assert planned(strategy="rebase") == (64 * 400, 400 + 63 * 10 * 50)
    ahead = planned(strategy="dvts", lookahead=2, score_every=4)
    # Each of at most ten candidates of a kept path has up to 100 tokens written after it.
    assert ahead == (64 * 600, 16 * (400 + 3 * 10 * 50 + 4 * 10 * 100))
    asked_again = planned(strategy="dvts", compat="compute_optimal_tts")
    assert asked_again == (64 * 400, 4 * 16 * (400 + 3 * 10 * 50))


def test_the_largest_policy_and_the_prm_run_at_once() -> None:
    gpu = {"engine": "fake", "gpus_per_replica": 1}
    policies = [gpu | {"name": "a", "model": "a", "replicas": 2}, gpu | {"name": "b", "model": "b"}]
    prm = {"model": "c", "family": "qwen2.5-math-prm", "replicas": 3} | gpu
    plan = plan_run(parse_recipe(fake_recipe(policies=policies, prm=prm)))
    assert (plan.gpus, plan.cores) == (5, 2 + 3 + 1)


def test_problems_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"problem": "?", "answer": 1}) + "\n\n" for _ in range(7)))

    def count(**source: Any) -> int | None:
        return plan_run(parse_recipe(fake_recipe(data=source))).problems

    assert count(source=str(rows)) == 7
    assert count(source=str(rows), size=5) == 5
    assert count(source="HuggingFaceH4/MATH-500") == 500
    assert count(source="org/data") is None
    assert count(source="org/data", size=20) == 20


def printed(recipe: Recipe) -> str:
    console = Console(force_terminal=False)
    with console.capture() as captured:
        print_plan(plan_run(recipe), console)
    return captured.get()


def test_a_plan_is_plain_text_off_a_terminal() -> None:
    text = printed(recipe_of({"replicas": 2}, data={"source": "org/data"}))
    rows = dict(line.strip().split("  ", 1) for line in text.splitlines() if "  " in line.strip())
    assert "2.3 GiB a GPU" in rows["weights"]
    assert "32 KiB" in rows["KV cache of a token"]
    assert rows["GPUs at once"].strip() == "3 (largest policy and PRM)"
    assert "a problem" in rows["work units"]
    assert "80 GiB a GPU is assumed: set cluster.gpu_memory_gib" in text
    assert text.isascii()


def test_replicas_that_come_and_go_are_planned_for_the_most() -> None:
    text = printed(recipe_of({"autoscaling": {"min": 0, "max": 3}}))
    [row] = [line for line in text.splitlines() if line.strip().startswith("replicas")]
    assert "0 to 3" in row
    assert "4 (largest policy and PRM)" in text


def test_an_unknown_model_is_unknown_and_the_plan_says_what_would_tell() -> None:
    text = printed(recipe_of({"model": "org/never-heard-of"}))
    assert UNKNOWN in text
    assert "set policies.0.model to a folder with its config.json" in text
