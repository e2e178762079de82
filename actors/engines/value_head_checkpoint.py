"""Skywork's value-head checkpoints as sequence classifiers, which is how vLLM can load them.

The weights are copied once into a cache folder under the names vLLM knows; only the header of a
file is written anew. Invariant: a folder in the cache is complete, whoever was killed making it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from search.errors import RecipeError

ARCHITECTURE = "Qwen2ForPrmModel"
SERVED_AS = "Qwen2ForSequenceClassification"
RENAMED = {"v_head.summary.": "score."}
# The output embedding of the language model the PRM was made from.
UNUSED = "lm_head."
INDEX = "model.safetensors.index.json"
LENGTH_BYTES = 8


def as_sequence_classifier(model: str) -> str:
    """A folder with the checkpoint as vLLM loads it; made if it is not in the cache yet."""
    source = _folder_of(model)
    target = _cache_folder() / f"{source.name}-{_digest(source)}"
    if not target.exists():
        _make(source, target)
    return str(target)


def _folder_of(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model).resolve()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model))


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "branchwise" / "value-heads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(source: Path) -> str:
    """Tells apart what a folder held at different times."""
    files = [(path.name, path.stat()) for path in sorted(source.iterdir()) if path.is_file()]
    facts = [str(source), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def _make(source: Path, target: Path) -> None:
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise RecipeError(f"{str(source)!r} has no *.safetensors: vLLM needs them to load it")
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        made = Path(name) / "checkpoint"
        made.mkdir()
        for path in source.iterdir():
            if path.is_file() and path.suffix not in (".safetensors", ".bin"):
                shutil.copy(path, made)
        _rewrite_json(made)
        for path in weights:
            rename_tensors(path, made / path.name)
        _move(made, target)


def _move(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:  # another replica was faster
        if not target.exists():
            raise


def _rewrite_json(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("auto_map", None)
    config |= {"architectures": [SERVED_AS], "id2label": {"0": "reward"}, "num_labels": 1}
    config["label2id"] = {"reward": 0}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        places = index["weight_map"].items()
        index["weight_map"] = {_renamed(k): v for k, v in places if not k.startswith(UNUSED)}
        (folder / INDEX).write_text(json.dumps(index))


def rename_tensors(source: Path, target: Path) -> None:
    """Copies a safetensors file tensor by tensor under new names; none is held in memory whole."""
    with source.open("rb") as old, target.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(LENGTH_BYTES), "little")))
        data_start = old.tell()
        metadata = header.pop("__metadata__", {"format": "pt"})
        kept = {name: entry for name, entry in header.items() if not name.startswith(UNUSED)}
        _write_header(new, metadata, kept)
        for entry in kept.values():
            start, stop = entry["data_offsets"]
            old.seek(data_start + start)
            _copy(old, new, stop - start)


def _write_header(new: BinaryIO, metadata: Any, kept: dict[str, Any]) -> None:
    header, end = {"__metadata__": metadata}, 0
    for name, entry in kept.items():
        start, stop = entry["data_offsets"]
        header[_renamed(name)] = entry | {"data_offsets": [end, end + stop - start]}
        end += stop - start
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % LENGTH_BYTES)
    new.write(len(written).to_bytes(LENGTH_BYTES, "little") + written)


def _copy(old: BinaryIO, new: BinaryIO, left: int) -> None:
    while left:
        block = old.read(min(left, 1 << 24))
        if not block:
            raise RecipeError("a *.safetensors file ends too early: download it again")
        new.write(block)
        left -= len(block)


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
