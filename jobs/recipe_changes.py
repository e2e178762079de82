"""What a recipe says otherwise than the one that a run was begun with.

Invariant: two recipes without a difference that matters give every unit that both have the same
rows, so a run that was begun with one may be finished with the other.
"""

import fnmatch
from collections.abc import Iterator
from typing import Any

from search.strategies import STRATEGIES

# Where and how fast a run goes, which changes no row.
FREE = (
    "work.*",
    "cluster.*",
    "runs_folder",
    "policies.*.replicas",
    "policies.*.autoscaling*",
    "policies.*.cpus_per_replica",
    "policies.*.gpus_per_replica",
    "policies.*.max_ongoing_requests",
    "policies.*.max_batch",
    "policies.*.timing*",
    "prm.replicas",
    "prm.autoscaling*",
    "prm.cpus_per_replica",
    "prm.gpus_per_replica",
    "prm.max_ongoing_requests",
    "prm.max_batch",
    "prm.timing*",
    "max_entropy_lambda",
    "headline.*",
    "regression*",
)
# More of these is more to do, and changes nothing that has been done.
GROWING = ("data", "policies", "searches")
Document = dict[str, Any]


def changes(before: Document, now: Document) -> list[str]:
    """Differences that matter, each as `key: before -> now`; empty if there are none."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = sorted({*old, *new})
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in keys
        if old.get(key) != new.get(key) and not _is_free(key, old, new, before, now)
    ]


def growth(before: Document, now: Document) -> list[str]:
    """Keys by which there is more to do than before, or less."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        key
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
        and key.partition(".")[0] in GROWING
        and not any(fnmatch.fnmatchcase(key, pattern) for pattern in FREE)
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by its path; a list of plain values is a leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{place}")
    else:
        yield path, value


def _is_free(key: str, old: Document, new: Document, before: Document, now: Document) -> bool:
    if any(fnmatch.fnmatchcase(key, pattern) for pattern in FREE):
        return True
    section, _, rest = key.partition(".")
    if section not in GROWING:
        return False
    place = int(rest.split(".")[0])
    if place >= len(before[section]):
        return True
    if section == "data" and key.endswith(".size"):
        return _has_grown([old.get(key)], [new.get(key)])
    if section == "searches" and key.endswith(".n") and place < len(now[section]):
        return _n_may_change(now[section][place], old[key], new.get(key) or [])
    return False


def _n_may_change(search: Document, old: list[int], new: list[int]) -> bool:
    """Any larger N of a search whose parts are independent; else the old ones stay."""
    kind = STRATEGIES.get(search["strategy"])
    if kind is not None and kind.splits and not search.get("stop") and not search.get("allocation"):
        return _has_grown(old, new)
    return set(old) <= set(new)


def _has_grown(old: list[Any], new: list[Any]) -> bool:
    """A size without a limit is the largest."""
    top = float("inf")
    before = [top if each is None else float(each) for each in old]
    after = [top if each is None else float(each) for each in new]
    return bool(after) and max(after) >= max(before)


def _shown(values: Document, key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
