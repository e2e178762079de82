"""Checks of how models are run: engines, their options, prompts, and GPUs that models share.

Invariant: a complaint is one line that says what to change, and where. Needs no engine: options
that only the engine knows are checked when a replica starts.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from actors.engines.vllm_start import OWN_KEYS
from actors.prm_families import SEARCH_AND_LEARN, family_of
from actors.prompts import CHAT, PROBLEM, TEMPLATE
from actors.spec import ModelSpec
from jobs.data import did_you_mean
from jobs.settings import LimitSettings, ModelSettings, PolicySettings, PRMSettings, Recipe
from search.errors import RecipeError

COMPATS = (SEARCH_AND_LEARN,)
MEMORY_SHARE = "gpu_memory_utilization"
# What vLLM may take of one card in all; the rest is the driver's and the processes' own.
MEMORY_SHARES_OF_A_CARD = 0.95
# Ray counts GPUs in parts of 1/10000.
ROUNDING = 1e-4


def engine_complaints(where: str, model: ModelSettings, limits: LimitSettings) -> Iterator[str]:
    """What keeps one model from running on its engine."""
    yield from _gpu_complaints(where, model)
    if model.engine == "vllm":
        yield from _vllm_complaints(where, model)
        yield from _context_complaints(where, model, limits)


def world_size(model: ModelSettings) -> int:
    """GPUs that one copy of the model is cut over."""
    sizes = (model.options.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline"))
    tensor, pipeline = (size if isinstance(size, int) and size > 0 else 1 for size in sizes)
    return tensor * pipeline


def _gpu_complaints(where: str, model: ModelSettings) -> Iterator[str]:
    gpus, size = model.gpus_per_replica, world_size(model)
    if 0 < gpus < ROUNDING:
        yield f"{where}.gpus_per_replica={gpus:g}: Ray counts GPUs in parts of 1/10000: use more"
    elif gpus > 1 and gpus != int(gpus):
        yield f"{where}.gpus_per_replica={gpus:g}: use a whole number, or a part of one GPU"
    elif model.engine == "transformers" and gpus > 1:
        yield f"{where}.gpus_per_replica={gpus:g}: transformers uses one; set 1, or engine: vllm"
    elif model.engine == "vllm" and size > 1 and gpus != size:
        cut = f"options cut the model over {size} GPUs"
        yield f"{where}.gpus_per_replica={gpus:g}, but {cut}: set gpus_per_replica: {size}"
    elif model.engine == "vllm" and gpus > 1 and size == 1:
        use = f"set options.tensor_parallel_size: {gpus:g}, or gpus_per_replica: 1"
        yield f"{where}.gpus_per_replica={gpus:g}, but the model is not cut over them: {use}"


def _vllm_complaints(where: str, model: ModelSettings) -> Iterator[str]:
    if model.dtype == "float64":
        yield f"{where}.dtype: vllm has no float64: use float32, or engine: transformers"
    for key in OWN_KEYS.keys() & model.options.keys():
        instead = f"use {where}.{OWN_KEYS[key]}" if OWN_KEYS[key] else "remove it"
        yield f"{where}.options.{key} is set by Branchwise: {instead}"
    for kind in ("tensor", "pipeline"):
        if not _is_count(value := model.options.get(f"{kind}_parallel_size", 1)):
            yield f"{where}.options.{kind}_parallel_size={value!r}: use a whole number from 1"
    share = model.options.get(MEMORY_SHARE, 1)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        yield f"{where}.options.{MEMORY_SHARE}={share!r}: use a number above 0, up to 1"


def _is_count(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _context_complaints(where: str, model: ModelSettings, limits: LimitSettings) -> Iterator[str]:
    context, longest = model.options.get("max_model_len"), limits.max_solution_tokens
    # -1 and "auto" leave it to vLLM.
    if isinstance(context, int) and 0 < context <= longest:
        yield (
            f"{where}.options.max_model_len={context} does not hold a problem and a solution of "
            f"limits.max_solution_tokens={longest}: raise the one or lower the other"
        )


def prompt_complaints(where: str, policy: PolicySettings, folder: Path | None) -> Iterator[str]:
    """What keeps a policy's prompt from being rendered; `folder` is that of its checkpoint."""
    if policy.prompt != CHAT and policy.system_prompt:
        yield (
            f"{where}.system_prompt: prompt {policy.prompt} has a text of its own: remove it, or "
            "use prompt: chat"
        )
    if policy.prompt == TEMPLATE:
        yield from _template_complaints(where, policy.prompt_template)
    elif policy.prompt_template is not None:
        yield f"{where}.prompt_template means nothing with prompt {policy.prompt}: use template"
    elif policy.engine != "fake" and folder and not _has_chat_template(folder):
        yield (
            f"{where}.model: {policy.model!r} has no chat template: set {where}.prompt: template "
            "and give the prompt in prompt_template"
        )


def _template_complaints(where: str, template: str | None) -> Iterator[str]:
    if template is None:
        yield f"{where}.prompt_template is missing: give the whole prompt, with {PROBLEM} in it"
        return
    if template.count(PROBLEM) == 1:
        return
    others = [name for name in re.findall(r"\{(\w+)\}", template) if f"{{{name}}}" != PROBLEM]
    if PROBLEM in template:
        yield f"{where}.prompt_template holds {PROBLEM} {template.count(PROBLEM)} times: keep one"
    elif others:
        yield f"{where}.prompt_template has no {PROBLEM}, but {{{others[0]}}}: rename it"
    else:
        yield f"{where}.prompt_template has no {PROBLEM}: say where the problem goes"


def _has_chat_template(folder: Path) -> bool:
    """Looks into the tokenizer's files; true where there are none to look into."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    try:
        return "chat_template" in json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return True


def prm_complaints(prm: PRMSettings) -> Iterator[str]:
    """The options of a PRM that are Branchwise's own, whatever the engine."""
    compat = prm.options.get("compat")
    if "compat" in prm.options and compat not in COMPATS:
        yield f"prm.options.compat: unknown {compat!r}: {did_you_mean(str(compat), COMPATS)}"
    spec = ModelSpec("prm", prm.model, prm.engine, "", family=prm.family, options=prm.options)
    try:
        family_of(spec)
    except RecipeError as error:
        yield str(error)


def sharing_complaints(recipe: Recipe) -> Iterator[str]:
    """vLLM engines that may meet on one card and want more than the card has."""
    prm = [("prm", recipe.prm)] if recipe.prm else []
    for place, policy in enumerate(recipe.policies):
        pair = [(f"policies.{place}", policy), *prm]
        sharing = [(where, model) for where, model in pair if 0 < model.gpus_per_replica < 1]
        wanted = most_on_a_card([model for _, model in sharing])
        if wanted > MEMORY_SHARES_OF_A_CARD + ROUNDING:
            named = " and ".join(f"{where}.options.{MEMORY_SHARE}" for where, _ in sharing)
            yield (
                f"{named} can add up to {wanted:.2f} on one GPU: lower to "
                f"{MEMORY_SHARES_OF_A_CARD:g} in all, or raise gpus_per_replica"
            )


def most_on_a_card(models: list[ModelSettings]) -> float:
    """The largest sum of memory shares of replicas that fit on one GPU together."""
    return _most(models, 1.0)


def _most(models: list[ModelSettings], left: float) -> float:
    if not models:
        return 0.0
    first, *others = models
    gpus, share = max(first.gpus_per_replica, ROUNDING), _memory_share(first)
    fitting = min(first.replicas, int((left + ROUNDING) / gpus))
    if not others:
        return max(0.0, fitting * share)
    return max(count * share + _most(others, left - count * gpus) for count in range(fitting + 1))


def _memory_share(model: ModelSettings) -> float:
    share = model.options.get(MEMORY_SHARE) if model.engine == "vllm" else None
    return float(share) if isinstance(share, int | float) else 0.0
