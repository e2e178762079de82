"""The models that ship with the repository, read from their files without loading them."""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

from cluster.repository import REPOSITORY

MODELS = REPOSITORY / "embedded" / "models"


def embedded_models(folder: Path = MODELS) -> Iterator[str]:
    """One line a model: name, parameters, architecture, and the path to write in a recipe."""
    for path in sorted(folder.glob("*/config.json")):
        [architecture] = json.loads(path.read_text())["architectures"]
        parameters = count_parameters(path.parent / "model.safetensors")
        shown = path.parent.relative_to(folder.parent.parent)
        yield f"{path.parent.name:14} {parameters:>10,} parameters  {architecture}  {shown}"


def count_parameters(weights: Path) -> int:
    """Reads the header of a safetensors file: 8 bytes of length, then JSON with all shapes."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
