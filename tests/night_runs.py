"""Finished partitions by date, written from the shares of right answers that a test makes up."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.intervals import accuracy_interval
from jobs.partitions import RunName
from jobs.recipe import parse_recipe, recipe_digest
from jobs.results import RECORD, new_record, write_table
from jobs.run_rows import write_run_row
from jobs.storage import Storage, storage_at
from search.schemas import ANSWERS, PROBLEMS, TABLES, UNITS

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "data": {"source": "reasoning_gym:chain_sum", "size": 4},
    "policies": [{"name": "one", "model": "scripted", "engine": "fake"}],
    "prm": {"model": "scripted", "engine": "fake", "family": "qwen2.5-math-prm"},
    "searches": [{"strategy": "best_of_n", "n": 8}, {"strategy": "beam", "n": 8}],
    "regression": {},
}
SEARCH = {"policy": "one", "strategy": "best_of_n", "n": 8, "branching": 1, "keep": 8}
SEARCH |= {"variant": ""}
CELLS = (("last", "weighted"), ("min", "max"), ("none", "pass"))


def document(**changes: Any) -> dict[str, Any]:
    """The recipe of the nights, with some of its keys replaced."""
    return RECIPE | changes


def write_night(
    runs: Path | Storage,
    date: str,
    shares: Mapping[str, float] | Sequence[float],
    *,
    changes: Mapping[str, Any] | None = None,
    tokens: int = 1000,
    seconds: float = 10.0,
    texts: str = "",
    bad: int = 0,
    failed: int = 0,
    name: RunName | None = None,
) -> Storage:
    """One that has ended. shares: right answers by problem; tokens: of each problem."""
    if not isinstance(shares, Mapping):
        shares = {f"p{place}": share for place, share in enumerate(shares)}
    recipe = parse_recipe(document(**(changes or {})))
    name = name or RunName(recipe.name, date)
    folder = storage_at(runs).child(name.run_id)
    record = new_record(
        recipe.name, recipe.model_dump(mode="json"), recipe_digest(recipe), name.run_id
    )
    record = replace(record, finished_at=record.started_at, seconds=seconds)
    rows = {
        "problems": _problems(shares, texts, bad),
        "answers": _answers(shares),
        "units": _units(shares, tokens, failed),
    }
    for table, schema in TABLES.items():
        if table != "runs":
            write_table(folder, table, pa.Table.from_pylist(rows.get(table, []), schema))
    write_run_row(folder, record, recipe)
    folder.write(RECORD, json.dumps(asdict(record)).encode())
    return folder


def _problems(shares: Mapping[str, float], texts: str, bad: int) -> list[dict[str, Any]]:
    row = dict.fromkeys(PROBLEMS.names) | {"reference_answer": "42", "metadata": "{}"}
    good = [row | {"problem_id": each, "text": f"{each}?{texts}"} for each in shares]
    return good + [row | {"problem_id": f"bad{place}", "error": "no text"} for place in range(bad)]


def _answers(shares: Mapping[str, float]) -> list[dict[str, Any]]:
    mean, low, high = (float(side) for side in accuracy_interval(np.array(list(shares.values()))))
    known = {"ci_low": None if np.isnan(low) else low, "ci_high": None if np.isnan(high) else high}
    found = []
    for reduction, vote in CELLS:
        shared = dict.fromkeys(ANSWERS.names) | SEARCH | {"searched_n": 8, "answer": ""}
        shared |= {"reduction": reduction, "vote": vote}
        values = [{"problem_id": each, "expected_correct": p} for each, p in shares.items()]
        found += [shared | value for value in (*values, {"expected_correct": mean} | known)]
    return found


def _units(shares: Mapping[str, float], tokens: int, failed: int) -> list[dict[str, Any]]:
    rows = []
    for place, problem in enumerate(shares):
        row = dict.fromkeys(UNITS.names) | SEARCH | {"problem_id": problem, "attempts": 2}
        row |= {"unit_id": f"{problem}/0", "status": "done", "seconds": 0.5, "solutions": 8}
        row |= {"generated_policy_tokens": tokens, "computed_prm_tokens": 10, "flops": 0.0}
        if place < failed:
            row |= {"status": "error", "generated_policy_tokens": None, "solutions": 0}
        rows.append(row)
    return rows
