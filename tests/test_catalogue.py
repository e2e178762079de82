"""The list of shipped models: counts read from a file's header are the counts of its tensors."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jobs.catalogue import MODELS, count_parameters, embedded_models
from jobs.recipe_checks import model_folder

pytestmark = pytest.mark.unit

SHIPPED = sorted(path.parent for path in MODELS.glob("*/config.json"))
LINE = re.compile(r"(\S+) +([\d,]+) parameters  (\S+)  (\S+)")


def write_model(folder: Path, architecture: str, **tensors: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def real_count(weights: Path) -> int:
    """Numbers in the tensors themselves."""
    with safe_open(weights, "numpy") as file:
        return sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118


def test_every_shape_is_counted(tmp_path: Path) -> None:
    tensors = {
        "matrix": np.zeros((3, 4), np.float32),
        "halves": np.zeros((2, 3, 5), np.float16),
        "scalar": np.array(1, np.float32),
        "empty": np.zeros((0, 7), np.float32),
    }
    write_model(tmp_path / "one", "A", **tensors)
    weights = tmp_path / "one" / "model.safetensors"
    assert count_parameters(weights) == real_count(weights) == 12 + 30 + 1


def test_the_repository_ships_models() -> None:
    assert SHIPPED


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_models_are_counted_exactly(folder: Path) -> None:
    weights = folder / "model.safetensors"
    assert count_parameters(weights) == real_count(weights) > 0


def test_there_is_one_line_a_model(tmp_path: Path) -> None:
    models = tmp_path / "embedded" / "models"
    write_model(models / "b", "Second", x=np.zeros(1_234_567, np.float32))
    write_model(models / "a-prm", "First", x=np.zeros((2, 2), np.float32))
    (models / "no-model").mkdir()
    assert list(embedded_models(models)) == [
        "a-prm                   4 parameters  First  embedded/models/a-prm",
        "b               1,234,567 parameters  Second  embedded/models/b",
    ]


def test_lines_hold_paths_that_a_recipe_may_use() -> None:
    lines = list(embedded_models())
    assert not any("\n" in line for line in lines)
    found = [match.groups() for line in lines if (match := LINE.fullmatch(line))]
    assert [model_folder(path) for *_, path in found] == SHIPPED
    assert [name for name, *_ in found] == [folder.name for folder in SHIPPED]
    counts = [int(count.replace(",", "")) for _, count, *_ in found]
    assert counts == [count_parameters(folder / "model.safetensors") for folder in SHIPPED]


def test_a_folder_without_models_gives_no_lines(tmp_path: Path) -> None:
    assert list(embedded_models(tmp_path)) == []
