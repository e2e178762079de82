"""The recipes of the papers: parsed, resolved, planned, fit for their GPUs, and on the page."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from jobs.fit import fit_complaints
from jobs.known_models import KNOWN_MODELS
from jobs.plan import plan_run, print_plan
from jobs.recipe import load_recipe, parse_recipe
from jobs.settings import Recipe
from search.partition import partition
from search.problem import Problem

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "jobs" / "recipes" / "paper").glob("*.yaml"))
PAGE = (ROOT / "docs" / "paper.md").read_text()
POLICIES = {
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    *(f"Qwen/Qwen2.5-{size}B-Instruct" for size in ("0.5", "1.5", "3", "7", "14", "32", "72")),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "WeiboAI/VibeThinker-1.5B",
}
PRMS = {
    "Qwen/Qwen2.5-Math-PRM-7B": "qwen2.5-math-prm",
    "Qwen/Qwen2.5-Math-PRM-72B": "qwen2.5-math-prm",
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "skywork-o1-prm",
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B": "skywork-o1-prm",
    "peiyi9979/math-shepherd-mistral-7b-prm": "math-shepherd",
    "RLHFlow/Llama3.1-8B-PRM-Mistral-Data": "rlhflow-mistral",
    "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": "rlhflow-deepseek",
}
# Its config.json is not among the known shapes, so a plan cannot say how it fits.
NOT_KNOWN = {"WeiboAI/VibeThinker-1.5B"}


def recipes() -> list[Recipe]:
    return [load_recipe(file) for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_is_parsed_resolved_and_planned(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    assert list(fit_complaints(recipe)) == []
    plan = plan_run(recipe)
    assert plan.problems == (500 if file.stem.startswith("math500") else 30)
    out = io.StringIO()
    print_plan(plan, Console(file=out))
    assert f"{plan.gpus:g} (largest policy and PRM)" in out.getvalue()
    for config in recipe.search_configs(recipe.policies[0].name):
        units = list(partition(Problem("p", "?", "1"), config, recipe.work.solutions_per_unit))
        assert sum(unit.solutions for unit in units) == config.n


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_models_run_in_full_batches_on_gpus_of_80_gib(file: Path) -> None:
    recipe = load_recipe(file, ["cluster.gpu_memory_gib=80"])
    for fit in plan_run(recipe).fits:
        model = fit.settings
        assert (model.engine, model.dtype) == ("vllm", "bfloat16")
        cut = [gpus for size, gpus in {"72B": 4, "32B": 2}.items() if size in model.model]
        assert model.gpus_per_replica == (cut or [1])[0]
        if model.model not in NOT_KNOWN:
            # Of full length: most solutions are far shorter.
            assert (fit.sequences or 0) >= min(16, model.max_batch)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_published_number_is_on_the_page(file: Path) -> None:
    head = file.read_text().partition("name:")[0]
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{file.stem}` |")]
    assert "Published" in head
    numbers = set(re.findall(r"(?<!\d)\d\d\.\d(?!\d)", row))
    assert numbers - set(re.findall(r"\d\d\.\d", head)) == set()
    assert numbers or "curve only" in head


def test_all_models_of_the_papers_are_there_by_their_ids() -> None:
    assert {policy.model for recipe in recipes() for policy in recipe.policies} == POLICIES
    assert {r.prm.model: r.prm.family for r in recipes() if r.prm} == PRMS
    assert POLICIES | PRMS.keys() <= KNOWN_MODELS.keys() | NOT_KNOWN


def test_limits_and_sampling_are_as_published() -> None:
    for recipe in recipes():
        thinks = recipe.policies[0].thinking is not None
        pair = (recipe.sampling.temperature, recipe.sampling.top_p)
        tokens = recipe.limits.max_solution_tokens
        if "r1-distill" in recipe.name:
            assert (thinks, pair, tokens) == (True, (0.6, 0.95), 32768)
        elif "vibethinker" in recipe.name:
            assert (thinks, pair, tokens) == (True, (1.0, 0.95), 40960)
        else:
            assert (thinks, pair) == (False, (0.7, 1.0))
            assert tokens in (3584, 7680)


def test_the_greedy_sample_of_the_page_is_a_recipe() -> None:
    [command] = re.findall(r"`(sampling\.temperature=0 .*)`", PAGE)
    overrides = re.findall(r"'[^']+'|\S+=\S+", command)
    for file in FILES:
        [config] = load_recipe(file, [each.strip("'") for each in overrides]).search_configs()
        assert (config.strategy, config.n, config.sampling.temperature) == ("majority", 1, 0)


def test_no_row_of_the_page_is_without_its_recipe() -> None:
    rows = re.findall(r"^\| `([\w.\-]+)` \|", PAGE, re.M)
    assert sorted(rows) == sorted(file.stem for file in FILES)
