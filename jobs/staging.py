"""The working directory of a submitted run: Branchwise's packages, a recipe, what it names.

Invariant: what a recipe names either travels, or is refused here by its size and its place, or
lies where the cluster's machines find it themselves. Nothing else of a checkout is sent.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.repository import REPOSITORY
from jobs.data import SourceKind, find_path, source_kind
from jobs.recipe_checks import model_folder
from jobs.routed_settings import RoutedSettings
from jobs.settings import ModelSettings, Recipe
from search.errors import RecipeError, one_line

PACKAGES = ("search", "actors", "cluster", "jobs", "embedded")
STAGED_RECIPE = "recipe.yaml"
# Of Ray, for all that a job brings; it counts after compression, and weights hardly shrink.
LIMIT_MIB = 100
LIMIT_BYTES = LIMIT_MIB << 20
CARRIED = "carried"
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", ".git", ".gitignore", ".rayignore", "models", "recipes", ".work"
)
_NOT_CARRIED = shutil.ignore_patterns("__pycache__", ".git", ".gitignore", ".rayignore")
_ELSEWHERE = "put it on storage that the cluster sees and name it with --shared, on the hub, or "
_ELSEWHERE += "into the image"

Settings = TypeVar("Settings", bound=ModelSettings)


@dataclass(frozen=True, slots=True)
class Carried:
    """A file or folder of this machine that travels. key: where the recipe names it."""

    key: str
    path: Path
    staged: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Staging:
    """A recipe as the cluster reads it, and what has to be there for it."""

    recipe: Recipe
    carried: tuple[Carried, ...]

    @property
    def size_bytes(self) -> int:
        """Before compression."""
        unique = {each.staged: each.size_bytes for each in self.carried}
        return sum(unique.values()) + sum(_size(path, _LEFT_OUT) for path in _packages())

    def write(self, folder: Path) -> None:
        """Makes the working directory; raises RecipeError."""
        from yaml import safe_dump

        try:
            for package in _packages():
                shutil.copytree(package, folder / package.name, ignore=_LEFT_OUT)
            for each in self.carried:
                _copy(each.path, folder / each.staged)
            document = self.recipe.model_dump(mode="json")
            text = safe_dump(document, sort_keys=False, allow_unicode=True)
            (folder / STAGED_RECIPE).write_text(text)
        except (OSError, shutil.Error) as error:
            raise RecipeError(f"cannot copy what the run needs: {one_line(error)}") from error


def staged(recipe: Recipe, shared: Sequence[str] = ()) -> Staging:
    """What travels with a recipe; raises RecipeError for what cannot.

    shared: folders that the cluster's machines see under the same path.
    """
    found = _Places(tuple(Path(each).expanduser().absolute() for each in shared))
    changed = recipe.model_copy(
        update={
            "data": tuple(
                source.model_copy(update={"source": found.data(f"data.{place}", source.source)})
                for place, source in enumerate(recipe.data)
            ),
            "policies": tuple(
                found.model(f"policies.{place}", policy)
                for place, policy in enumerate(recipe.policies)
            ),
            "prm": recipe.prm and found.model("prm", recipe.prm),
            "searches": tuple(
                found.routes(f"searches.{place}", search)
                if isinstance(search, RoutedSettings)
                else search
                for place, search in enumerate(recipe.searches)
            ),
        }
    )
    staging = Staging(changed, tuple(found.carried))
    _check_size(staging)
    return staging


class _Places:
    """Where each path of a recipe is on the cluster."""

    def __init__(self, shared: Sequence[Path]) -> None:
        self._shared = shared
        self.carried: list[Carried] = []

    def data(self, key: str, source: str) -> str:
        is_file = source_kind(source) in (SourceKind.JSONL, SourceKind.PARQUET)
        return self._place(f"{key}.source", source, find_path) if is_file else source

    def model(self, key: str, model: Settings) -> Settings:
        if model.engine == "fake":
            place = model.model
        else:
            place = self._place(f"{key}.model", model.model, model_folder)
        self._check_options(f"{key}.options", model.options)
        return model.model_copy(update={"model": place})

    def routes(self, key: str, search: RoutedSettings) -> RoutedSettings:
        from jobs.liu2025 import Exam

        changes = {}
        if search.routes not in list(Exam):
            changes["routes"] = self._place(f"{key}.routes", search.routes, find_path)
        if search.predictor:
            changes["predictor"] = self._place(f"{key}.predictor", search.predictor, find_path)
        return search.model_copy(update=changes)

    def _place(self, key: str, written: str, find: Callable[[str], Path | None]) -> str:
        """How the cluster calls it: as before if it lies there, or is found at the same place."""
        path = find(written)
        if path is None or self._is_shared(path):
            return written
        is_below = not Path(written).is_absolute() and ".." not in Path(written).parts
        own = hashlib.sha256(written.encode()).hexdigest()[:8]
        place = written if is_below and written[0] != "~" else f"{CARRIED}/{own}/{path.name}"
        self.carried.append(Carried(key, path, place, _size(path, _NOT_CARRIED)))
        return place

    def _check_options(self, key: str, options: dict[str, Any]) -> None:
        for name, value in options.items():
            is_path = isinstance(value, str) and value.startswith(("/", "~"))
            path = find_path(value) if is_path else None
            if path and not self._is_shared(path):
                raise RecipeError(
                    f"{key}.{name}: {value} lies on this machine, and paths in options do not "
                    f"travel: {_ELSEWHERE}"
                )

    def _is_shared(self, path: Path) -> bool:
        return any(path.is_relative_to(each) for each in self._shared)


def _check_size(staging: Staging) -> None:
    if staging.size_bytes <= LIMIT_BYTES:
        return
    largest = max(staging.carried, key=lambda each: each.size_bytes)
    takes = f"{mib(largest.size_bytes)} of {mib(staging.size_bytes)} in all"
    raise RecipeError(
        f"{largest.key}: {largest.path} takes {takes}, and a job may bring {LIMIT_MIB} MiB: "
        f"{_ELSEWHERE}"
    )


def mib(size_bytes: float) -> str:
    """Bytes for a reader."""
    return f"{size_bytes / 2**20:.1f} MiB"


def _packages() -> list[Path]:
    return [REPOSITORY / name for name in PACKAGES]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=_NOT_CARRIED, dirs_exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _size(path: Path, ignore: Callable[[str, list[str]], set[str]]) -> int:
    """Bytes of a file, or of a folder without what is left out; raises RecipeError."""
    try:
        return path.stat().st_size if path.is_file() else sum(_sizes(path, ignore))
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from None


def _sizes(folder: Path, ignore: Callable[[str, list[str]], set[str]]) -> Iterator[int]:
    for at, folders, files in os.walk(folder, followlinks=True):
        ignored = ignore(at, [*folders, *files])
        folders[:] = [name for name in folders if name not in ignored]
        yield from ((Path(at) / name).stat().st_size for name in files if name not in ignored)
