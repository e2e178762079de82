"""From a recipe's model sections to what replicas are told."""

import dataclasses

from actors.prm_families import PRM_FAMILIES
from actors.prompts import CHAT, PROMPT_STYLES, TEMPLATE, PromptStyle
from actors.spec import Autoscaling, ModelSpec
from jobs.recipe_checks import model_folder
from jobs.settings import ModelSettings, PolicySettings, PRMSettings


def policy_spec(settings: PolicySettings) -> ModelSpec:
    """The policy as its replicas see it."""
    spec = _spec(settings, settings.name or settings.model)
    return dataclasses.replace(spec, prompt=prompt_style(settings))


def prompt_style(settings: PolicySettings) -> PromptStyle:
    """The policy's style, with the texts that the recipe gives for it."""
    if settings.prompt == CHAT:
        return PromptStyle(system=settings.system_prompt)
    if settings.prompt == TEMPLATE:
        return PromptStyle(template=settings.prompt_template or "")
    return PROMPT_STYLES[settings.prompt]


def prm_spec(settings: PRMSettings | None) -> ModelSpec | None:
    """The PRM as its replicas see it; None if the recipe has none."""
    if settings is None:
        return None
    own_prompt = PRM_FAMILIES[settings.family].system_prompt
    prompt = own_prompt if settings.system_prompt is None else settings.system_prompt
    spec = _spec(settings, "prm")
    return dataclasses.replace(spec, system_prompt=prompt, family=settings.family)


def _spec(settings: ModelSettings, name: str) -> ModelSpec:
    folder, scaling = model_folder(settings.model), _autoscaling(settings)
    return ModelSpec(
        name=name,
        model=str(folder or settings.model),
        engine=settings.engine,
        dtype=settings.dtype or "float64",
        replicas=max(1, scaling.least) if scaling else settings.replicas,
        gpus_per_replica=settings.gpus_per_replica,
        cpus_per_replica=settings.cpus_per_replica,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_batch=settings.max_batch,
        options=dict(settings.options),
        autoscaling=scaling,
    )


def _autoscaling(settings: ModelSettings) -> Autoscaling | None:
    asked = settings.autoscaling
    if asked is None:
        return None
    return Autoscaling(
        asked.min,
        asked.max,
        asked.target or settings.max_batch,
        asked.upscale_delay_s,
        asked.downscale_delay_s,
    )
