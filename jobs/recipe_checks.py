"""Checks of a recipe that need more than one of its keys, or the disk.

Invariant: a complaint is one line that says what to change, and where.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.data import DataSource, SourceKind, did_you_mean, find_path, is_hub_id, source_kind
from jobs.engine_checks import (
    engine_complaints,
    prm_complaints,
    prompt_complaints,
    sharing_complaints,
)
from jobs.headline import headline_complaints
from jobs.routed_checks import routed_complaints
from jobs.search_checks import rule_complaints
from jobs.settings import AnySearch, ModelSettings, PolicySettings, Recipe, SearchSettings
from jobs.spending_checks import spending_complaints
from search.strategies import STRATEGIES
from search.thinking import Scored

_FIELDS_ONLY = {"text_field", "reference_field", "id_field"}
_KEYS_OF_KIND = {
    SourceKind.REASONING_GYM: {"seed", "options"},
    SourceKind.JSONL: _FIELDS_ONLY,
    SourceKind.PARQUET: _FIELDS_ONLY,
    SourceKind.HUB: {"split", "options", *_FIELDS_ONLY},
}


def model_folder(model: str) -> Path | None:
    """The absolute folder of a checkpoint on disk; None for a Hugging Face id."""
    return find_path(model) if _names_folder(model) else None


def complaints_about(recipe: Recipe, elsewhere: bool = False) -> Iterator[str]:
    """What to change, one line a complaint; looks at files, never into models.

    elsewhere: an absolute path that is not here is taken for one of other machines.
    """
    yield from _source_complaints(recipe.data)
    yield from _name_complaints(recipe.policies)
    for place, policy in enumerate(recipe.policies):
        where = f"policies.{place}"
        yield from _model_complaints(where, policy, elsewhere)
        yield from engine_complaints(where, policy, recipe.limits)
        yield from prompt_complaints(where, policy, model_folder(policy.model))
    if recipe.prm:
        yield from _model_complaints("prm", recipe.prm, elsewhere)
        yield from engine_complaints("prm", recipe.prm, recipe.limits)
        yield from prm_complaints(recipe.prm)
    yield from sharing_complaints(recipe)
    for place, search in enumerate(recipe.searches):
        if isinstance(search, SearchSettings):
            yield from _search_complaints(f"searches.{place}", search, recipe.prm is not None)
    names = [str(policy.name) for policy in recipe.policies]
    yield from _policy_complaints(recipe.searches, names)
    yield from _repeated_searches(recipe.searches, names)
    yield from _protocol_complaints(recipe)
    yield from _difficulty_complaints(recipe)
    yield from headline_complaints(recipe)
    plain = [search for search in recipe.searches if isinstance(search, SearchSettings)]
    for place, policy in enumerate(recipe.policies):
        yield from _thinking_complaints(f"policies.{place}.thinking", policy, plain)
    if recipe.difficulty.hard < recipe.difficulty.easy:
        yield from routed_complaints(recipe)


def _source_complaints(sources: Sequence[DataSource]) -> Iterator[str]:
    drawn: set[tuple[str, int | None]] = set()
    for place, source in enumerate(sources):
        kind = source_kind(source.source)
        for key in sorted(set[str]().union(*_KEYS_OF_KIND.values()) - _KEYS_OF_KIND[kind]):
            if getattr(source, key) not in (None, {}):
                yield f"data.{place}.{key} means nothing for {source.source!r}: remove it"
        if kind is SourceKind.REASONING_GYM:
            if source.size is None:
                yield f"data.{place}.size is missing: say how many problems to draw"
            if (source.source, source.seed) in drawn:
                yield f"data.{place} repeats {source.source} with seed {source.seed}: change it"
            drawn.add((source.source, source.seed))
        if source.split and "split" in source.options:
            yield f"data.{place}.split is given twice: remove it from options"


def _name_complaints(policies: Sequence[PolicySettings]) -> Iterator[str]:
    first: dict[str | None, int] = {}
    for place, policy in enumerate(policies):
        if (before := first.setdefault(policy.name, place)) != place:
            yield f"policies.{place}.name={policy.name} is taken by policies.{before}: rename one"


def _model_complaints(where: str, settings: ModelSettings, elsewhere: bool) -> Iterator[str]:
    yield from _scaling_complaints(where, settings)
    model = settings.model
    if settings.engine == "fake" or not _names_folder(model):
        return
    folder = find_path(model)
    if folder is None and elsewhere and Path(model).is_absolute():
        return
    if folder is None:
        yield f"{where}.model: there is no folder {model!r}{_nearest_folder(model)}"
    elif not (folder / "config.json").is_file():
        yield f"{where}.model: {model!r} has no config.json: give the folder of a checkpoint"


def _scaling_complaints(where: str, settings: ModelSettings) -> Iterator[str]:
    scaling = settings.autoscaling
    if scaling is None:
        return
    if scaling.min > scaling.max:
        yield f"{where}.autoscaling.min={scaling.min} is above max={scaling.max}: lower it"
    if settings.replicas != 1:
        yield f"{where}.replicas={settings.replicas} says what autoscaling decides: remove it"


def _names_folder(model: str) -> bool:
    """Whether a model is meant as a folder rather than as a Hugging Face id."""
    return not is_hub_id(model) or find_path(model.partition("/")[0]) is not None


def _nearest_folder(model: str) -> str:
    parent = find_path(str(Path(model).parent))
    try:
        names = sorted(child.name for child in parent.iterdir()) if parent else []
    except OSError:  # a file, or a folder that is not ours to read
        names = []
    near = difflib.get_close_matches(Path(model).name, names, n=1)
    return f": did you mean {str(Path(model).parent / near[0])!r}?" if near else ""


def _search_complaints(where: str, search: SearchSettings, has_prm: bool) -> Iterator[str]:
    branching = search.branching
    if STRATEGIES[search.strategy].uses_prm and not has_prm:
        yield f"{where}: {search.strategy} needs a PRM: add a prm section, or use majority"
    if branching and not STRATEGIES[search.strategy].branches:
        yield f"{where}.branching: {search.strategy} does not branch: remove it"
    elif branching:
        for n in search.n:
            yield from _width_complaints(where, n, branching)
    yield from rule_complaints(where, search)
    yield from spending_complaints(where, search)


def _width_complaints(where: str, n: int, branching: int) -> Iterator[str]:
    below = n // branching * branching
    if n < branching:
        yield f"{where}.n={n} is smaller than branching={branching}: use {branching} or more"
    elif n != below:
        options = f"use {below} or {below + branching}"
        yield f"{where}.n={n} is not a multiple of branching={branching}: {options}"


def _policy_complaints(searches: Sequence[AnySearch], names: Sequence[str]) -> Iterator[str]:
    for place, search in enumerate(searches):
        for name in search.policies or ():
            if name not in names:
                hint = did_you_mean(name, names)
                yield f"searches.{place}.policies: there is no policy {name!r}: {hint}"
    for place, name in enumerate(names):
        if not any(search.is_run_by(name) for search in searches):
            yield f"policies.{place}: no search is run by {name!r}: add one, or remove the policy"


def _repeated_searches(searches: Sequence[AnySearch], names: Sequence[str]) -> Iterator[str]:
    # Tables and work units name a search by these alone, so a reduction tells none apart.
    seen: set[tuple[str, str, int | None]] = set()
    for place, search in enumerate(searches):
        for what, branching in _names_of(search):
            keys = {(name, what, branching) for name in names if search.is_run_by(name)}
            if keys & seen:
                yield f"searches.{place} repeats {what}: remove one"
            seen |= keys


def _difficulty_complaints(recipe: Recipe) -> Iterator[str]:
    easy, hard = recipe.difficulty.easy, recipe.difficulty.hard
    if hard >= easy:
        yield f"difficulty.hard={hard:g} is not below easy={easy:g}: choose hard < easy"


def _names_of(search: AnySearch) -> Iterator[tuple[str, int | None]]:
    """What tables call each search of an entry, and its branching."""
    if isinstance(search, SearchSettings):
        rule = f"{search.strategy} {search.variant}".rstrip()
        for n in search.n:
            yield f"{rule} with n={n} and the same branching", search.branching
    else:
        for budget in search.budgets:
            rule = f"{search.strategy} routes={search.routes_name}"
            yield f"{rule} with a budget of {budget.exact}", None


def _protocol_complaints(recipe: Recipe) -> Iterator[str]:
    independent = [name for name, kind in STRATEGIES.items() if kind.samples]
    for place, search in enumerate(recipe.searches):
        if recipe.protocol == "sampling" and search.strategy not in independent:
            yield (
                f"searches.{place}: {search.strategy} does not draw independent samples: use "
                f"{' or '.join(independent)}, or protocol: search"
            )


def _thinking_complaints(
    where: str, policy: PolicySettings, searches: Sequence[SearchSettings]
) -> Iterator[str]:
    thinking = policy.thinking
    if thinking is None:
        return
    if thinking.start == thinking.end:
        yield f"{where}.start and end are both {thinking.end!r}: give each a mark of its own"
    for search in (each for each in searches if each.is_run_by(str(policy.name))):
        kind = STRATEGIES[search.strategy]
        if search.compat:
            yield f"{where}: {search.compat} knows no thinking parts: remove compat or thinking"
        if kind.uses_prm and not kind.samples and thinking.score is Scored.ANSWER:
            yield (
                f"{where}.score: {search.strategy} compares steps while the policy thinks: set "
                "score: all, or use best_of_n or majority"
            )
