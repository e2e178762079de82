"""Checks of run.json: whether it is still what a run wrote."""

from typing import Any

_KINDS: dict[str, type] = {
    "run_id": str,
    "recipe": dict,
    "recipe_digest": str,
    "seeds": dict,
    "versions": dict,
    "git_revision": str,
    "started_at": str,
    "finished_at": str,
    "schema_version": str,
    "seconds": float,
}


def record_fault(record: dict[str, Any], needed: tuple[str, ...] = ()) -> str:
    """What is wrong with a record, in words; empty if nothing is. needed: keys it must have."""
    for name in needed:
        if name not in record:
            return f"{name} is missing"
    for name, kind in _KINDS.items():
        if name in record and not isinstance(record[name], kind):
            return f"{name} is a {type(record[name]).__name__}, not a {kind.__name__}"
    return _recipe_fault(record.get("recipe", {})) or _seed_fault(record.get("seeds", {}))


def _recipe_fault(recipe: dict[str, Any]) -> str:
    for name in ("policies", "searches"):
        parts = recipe.get(name, [])
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            return f"recipe.{name} is no list of sections"
    prm = recipe.get("prm")
    return "" if prm is None or isinstance(prm, dict) else "recipe.prm is no section"


def _seed_fault(seeds: dict[str, Any]) -> str:
    wrong = [name for name, seed in seeds.items() if not isinstance(seed, int)]
    return f"seeds.{wrong[0]} is no whole number" if wrong else ""
