"""Recipes that are meant to break the reader: each gets one line that says what to change."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_cases import Case, assert_one_line, changed, each

from jobs.recipe import load_recipe
from search.errors import RecipeError

pytestmark = pytest.mark.unit

TOO_LONG = "./" + "x" * 300 + "/y"
GOOD: dict[str, Any] = {
    "name": "small",
    "data": [{"source": "reasoning_gym:chain_sum", "size": 3, "seed": 7}],
    "policies": [{"name": "one", "model": "scripted", "engine": "fake"}],
    "prm": {"model": "scripted", "engine": "fake", "family": "qwen2.5-math-prm"},
    "searches": [{"strategy": "best_of_n", "n": 8}],
}


def content(case: Case) -> bytes:
    """The file of a case."""
    if "file" in case.values or "hex" in case.values:
        return case.content()
    document = changed(copy.deepcopy(GOOD), case.get("set", {}))
    if "long" in case.values:
        document = changed(document, {case["long"]: TOO_LONG})
    text = yaml.safe_dump(document, sort_keys=False)
    if "add" in case.values:
        text += case.text("add")
    return text.encode()


@each("recipes")
def test_a_hostile_recipe_is_refused_in_one_line(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("recipe.yaml")
    path.write_bytes(content(case))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, case.get("override", []))
    assert_one_line(str(caught.value), case["words"])
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_recipe_that_is_changed_is_good(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_recipe(path).name == "small"


@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "endless"])
def test_what_is_no_file_is_no_recipe(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if kind == "folder":
        path.mkdir()
    if kind == "loop":
        path.symlink_to(path)
    if kind == "endless":
        path = Path("/dev/zero")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    words = "larger than 64 MiB" if kind == "endless" else "cannot read the recipe"
    assert_one_line(str(caught.value), words)
