"""From a recipe's model sections to what replicas are told."""

from actors.prm_families import PRM_FAMILIES
from actors.spec import ModelSpec
from jobs.recipe_checks import model_folder
from jobs.settings import ModelSettings, PolicySettings, PRMSettings


def policy_spec(settings: PolicySettings) -> ModelSpec:
    """The policy as its replicas see it."""
    return _spec(settings, settings.name or settings.model, settings.system_prompt, "")


def prm_spec(settings: PRMSettings | None) -> ModelSpec | None:
    """The PRM as its replicas see it; None if the recipe has none."""
    if settings is None:
        return None
    own_prompt = PRM_FAMILIES[settings.family].system_prompt
    prompt = own_prompt if settings.system_prompt is None else settings.system_prompt
    return _spec(settings, "prm", prompt, settings.family)


def _spec(settings: ModelSettings, name: str, system_prompt: str, family: str) -> ModelSpec:
    folder = model_folder(settings.model)
    return ModelSpec(
        name=name,
        model=str(folder or settings.model),
        engine=settings.engine,
        dtype=settings.dtype or "float64",
        replicas=settings.replicas,
        gpus_per_replica=settings.gpus_per_replica,
        cpus_per_replica=settings.cpus_per_replica,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_batch=settings.max_batch,
        system_prompt=system_prompt,
        family=family,
        options=dict(settings.options),
    )
