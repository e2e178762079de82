"""What `kubectl kustomize` makes of a folder, as far as our folders use kustomize.

Knows resources, JSON patches that select by kind, replacements of a whole value, and the
annotation that keeps an object out of the result; anything else is refused. Where kubectl is
installed, a test compares the two.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "patches", "replacements"}
LOCAL = "config.kubernetes.io/local-config"


def rendered(folder: Path) -> list[Manifest]:
    """The objects that would be applied."""
    return [manifest for manifest in _built(folder) if not _is_local(manifest)]


def _built(folder: Path) -> list[Manifest]:
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(plan) <= KNOWN, f"{folder}: not known here: {set(plan) - KNOWN}"
    manifests = [one for name in plan["resources"] for one in _resource(folder / name)]
    for patch in plan.get("patches", []):
        for manifest in _selected(manifests, patch["target"]):
            for change in yaml.safe_load(patch["patch"]):
                _put(manifest, change["path"].strip("/").split("/"), change["value"])
    for replacement in plan.get("replacements", []):
        source = dict(replacement["source"])
        value = _get(_only(_selected(manifests, source)), source["fieldPath"].split("."))
        for target in replacement["targets"]:
            for manifest in _selected(manifests, target["select"]):
                for path in target["fieldPaths"]:
                    _put(manifest, path.split("."), copy.deepcopy(value))
    return manifests


def _resource(path: Path) -> list[Manifest]:
    if path.is_dir():
        return rendered(path)
    return list(yaml.safe_load_all(path.read_text()))


def _selected(manifests: list[Manifest], target: Manifest) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == target["kind"]]


def _only(found: list[Manifest]) -> Manifest:
    (manifest,) = found
    return manifest


def _get(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value[name]
    return value


def _put(manifest: Manifest, path: list[str], value: Any) -> None:
    _get(manifest, path[:-1])[path[-1]] = value


def _is_local(manifest: Manifest) -> bool:
    return manifest["metadata"].get("annotations", {}).get(LOCAL) == "true"
