"""A recipe: the YAML file that says what a run does.

Invariant: a `Recipe` returned by `load_recipe` can be planned without loading a model, and its
digest names it: the same keys and values give the same digest whatever their order in the file.
Nothing heavy is imported here, so a mistake in a recipe is answered at once.
"""

import copy
import hashlib
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from jobs.data import DataSource, SourceKind, did_you_mean, source_kind
from jobs.engine_checks import MEMORY_SHARE
from jobs.recipe_checks import complaints_about
from jobs.settings import (
    SEARCH_KINDS,
    AnySearch,
    Dtype,
    ModelSettings,
    PolicySettings,
    Recipe,
    SearchSettings,
)
from jobs.yaml_files import MAX_DEPTH, parse_yaml, read_yaml
from search.errors import RecipeError, one_line

DEFAULT_SPLIT = "test"
# vLLM's memory on a GPU that replicas share: of what a replica is lent, so much.
VLLM_SHARE = 0.9
_LONGEST_PLACE = 9

ModelT = TypeVar("ModelT", bound=ModelSettings)


def load_recipe(path: Path, overrides: Sequence[str] = (), *, elsewhere: bool = False) -> Recipe:
    """Reads, overrides (`key.path=value`), checks and resolves; raises RecipeError, one line.

    elsewhere: it will run on other machines, where folders may be that are not here.
    """
    document = _read(path)
    try:
        for override in overrides:
            document = _override(document, override)
        return parse_recipe(document, elsewhere=elsewhere)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(document: object, *, elsewhere: bool = False) -> Recipe:
    """Checks and resolves what a YAML or JSON file held; raises RecipeError, one line.

    elsewhere: see `load_recipe`.
    """
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        # A misspelt key is the cause of the missing one beside it, so it is reported first.
        details = sorted(_own(error.errors()), key=lambda d: d["type"] != "extra_forbidden")
        raise _refusal([_explain(detail) for detail in details]) from None
    return resolve(recipe, elsewhere=elsewhere)


def _own(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the complaint that a list is too short because its items were refused."""
    places = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(place[: len(detail["loc"])] == detail["loc"] != place for place in places)
    ]


def resolve(recipe: Recipe, *, elsewhere: bool = False) -> Recipe:
    """The recipe with every default written out, if it can work; raises RecipeError.

    elsewhere: see `load_recipe`. Looks at files, never into models. Paths stay as they were
    written.
    """
    filled = recipe.model_copy(
        update={
            "data": tuple(_filled_source(source) for source in recipe.data),
            "policies": tuple(_filled_policy(policy) for policy in recipe.policies),
            "prm": recipe.prm and _filled_model(recipe.prm),
            "searches": tuple(_filled_search(search) for search in recipe.searches),
        }
    )
    if complaints := list(complaints_about(filled, elsewhere)):
        raise _refusal(complaints)
    return filled


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 (hexadecimal) of the recipe as JSON with sorted keys."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> object:
    try:
        document = read_yaml(path)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        fault = "is empty" if document is None else "is not a mapping of keys to values"
        raise RecipeError(f"{path} {fault}: start from a file in jobs/recipes")
    return document


def _override(document: object, text: str) -> object:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"the override {text!r} needs the form key.path=value")
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise RecipeError(f"the override {text!r} is not YAML: {one_line(error)}") from None
    keys = path.strip().split(".")
    if len(keys) > MAX_DEPTH:
        raise RecipeError(f"the override {text!r} goes too deep: no recipe has so many keys")
    return _replaced(document, keys, parsed, path.strip())


def _replaced(node: object, keys: list[str], value: object, path: str) -> object:
    """A copy of `node` with the value at the end of `keys`; sections not there are added."""
    if not keys:
        return value
    branch = {} if node is None else copy.copy(node)
    if isinstance(branch, dict):
        branch[keys[0]] = _replaced(branch.get(keys[0]), keys[1:], value, path)
    elif isinstance(branch, list):
        place = _place(branch, keys[0], path)
        branch[place] = _replaced(branch[place], keys[1:], value, path)
    else:
        raise RecipeError(f"the override {path} goes too deep: {node!r} has no key {keys[0]!r}")
    return branch


def _place(items: list[object], key: str, path: str) -> int:
    if not key.isdecimal() or len(key) > _LONGEST_PLACE or int(key) >= len(items):
        raise RecipeError(f"the override {path} needs a place from 0 to {len(items) - 1}: {key!r}")
    return int(key)


def _refusal(complaints: list[str]) -> RecipeError:
    others = len(complaints) - 1
    more = f" (and {others} more problem{'s' * (others > 1)})" if others else ""
    return RecipeError(one_line(complaints[0]) + more)


def _explain(detail: ErrorDetails) -> str:
    """One of pydantic's errors as `path: what to change`."""
    path = ".".join(str(key) for key in detail["loc"] if key not in SEARCH_KINDS)
    message = detail["msg"]
    match detail["type"]:
        case "extra_forbidden":
            *section, key = detail["loc"]
            return f"unknown key {path!r}: {did_you_mean(str(key), _keys_of(section))}"
        case "missing":
            return f"{path}: this key is missing"
        case "value_error":
            return f"{path}: {message.removeprefix('Value error, ')}"
        case "model_type":
            return f"{path or 'the recipe'}: should be a section with keys of its own"
    return f"{path}: {message[0].lower()}{message[1:]}, not {_shown(detail['input'])}"


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return f"such a {type(value).__name__}"


def _keys_of(location: Sequence[int | str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in location:
        if key in SEARCH_KINDS:
            section = SEARCH_KINDS[str(key)]
        elif isinstance(key, str) and key != "searches":
            annotation = section.model_fields[key].annotation
            kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
            section = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return list(section.model_fields)


def _filled_source(source: DataSource) -> DataSource:
    match source_kind(source.source):
        case SourceKind.REASONING_GYM if source.seed is None:
            return source.model_copy(update={"seed": 0})
        case SourceKind.HUB if source.split is None and "split" not in source.options:
            return source.model_copy(update={"split": DEFAULT_SPLIT})
    return source


def _filled_policy(policy: PolicySettings) -> PolicySettings:
    name = policy.name or policy.model.rstrip("/").rpartition("/")[2]
    return _filled_model(policy).model_copy(update={"name": name})


def _filled_model(model: ModelT) -> ModelT:
    return model.model_copy(update={"dtype": _dtype(model), "options": _options(model)})


def _filled_search(search: AnySearch) -> AnySearch:
    if not isinstance(search, SearchSettings):
        return search
    # A branching given where there is none stays, to be complained about.
    return search.model_copy(update={"branching": search.branching or search.candidates()})


def _dtype(model: ModelSettings) -> Dtype:
    # float64 makes results equal whatever the batch; GPUs are for models too large for that.
    exact: Dtype = "float32" if model.engine == "vllm" else "float64"
    return model.dtype or ("bfloat16" if model.gpus_per_replica else exact)


def _options(model: ModelSettings) -> dict[str, JsonValue]:
    shares_gpu = model.engine == "vllm" and 0 < model.gpus_per_replica < 1
    share: dict[str, JsonValue] = {MEMORY_SHARE: round(VLLM_SHARE * model.gpus_per_replica, 4)}
    return share | model.options if shares_gpu else model.options
