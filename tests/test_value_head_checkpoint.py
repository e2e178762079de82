"""Skywork's checkpoints under the names vLLM knows: the same numbers, made once, made whole."""

import json
from pathlib import Path

import pytest
import torch
from prm_zoo import made
from safetensors.torch import load_file, save_file

from actors.engines import value_head_checkpoint
from actors.engines.value_head_checkpoint import as_sequence_classifier
from search.errors import RecipeError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "branchwise" / "value-heads"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As published: in two files, with the language model's head."""
    folder = tmp_path / "prm"
    folder.mkdir()
    tensors = load_file(made("skywork-o1-prm", folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = torch.ones(3, 4)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:7], "model-2.safetensors": names[7:]}
    for file, part in parts.items():
        kept = {name: tensors[name].to(torch.bfloat16) for name in part}
        save_file(kept, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_the_numbers_are_the_same_under_other_names(source: Path) -> None:
    made_folder = Path(as_sequence_classifier(str(source)))
    old, new = tensors_of(source), tensors_of(made_folder)
    renamed = {
        name.replace("v_head.summary.", "score."): tensor
        for name, tensor in old.items()
        if name != "lm_head.weight"
    }
    assert new.keys() == renamed.keys()
    assert all(torch.equal(new[name], renamed[name]) for name in new)
    assert {"score.weight", "score.bias"} <= new.keys()
    index = json.loads((made_folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == new.keys()
    config = json.loads((made_folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert (made_folder / "tokenizer.json").exists()


def test_it_is_made_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = as_sequence_classifier(str(source))
    monkeypatch.setattr(value_head_checkpoint, "_make", None)
    assert as_sequence_classifier(str(source)) == first


def test_a_folder_that_changed_is_made_again(source: Path) -> None:
    first = as_sequence_classifier(str(source))
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    assert as_sequence_classifier(str(source)) != first


def test_one_that_was_faster_is_used(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = value_head_checkpoint.rename_tensors

    def overtaken(old: Path, new: Path) -> None:
        rename(old, new)
        with monkeypatch.context() as patch:
            patch.setattr(value_head_checkpoint, "rename_tensors", rename)
            as_sequence_classifier(str(source))

    monkeypatch.setattr(value_head_checkpoint, "rename_tensors", overtaken)
    assert "score.weight" in tensors_of(Path(as_sequence_classifier(str(source))))


def test_what_was_begun_is_not_taken(
    source: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(value_head_checkpoint, "rename_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            as_sequence_classifier(str(source))
    assert list(cache_folder.iterdir()) == []
    assert "score.weight" in tensors_of(Path(as_sequence_classifier(str(source))))


def test_a_file_that_ends_early_is_refused(source: Path) -> None:
    file = source / "model-2.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(RecipeError, match="ends too early"):
        as_sequence_classifier(str(source))


def test_a_folder_without_weights_is_refused(source: Path) -> None:
    for file in source.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(RecipeError, match=r"has no \*\.safetensors"):
        as_sequence_classifier(str(source))
