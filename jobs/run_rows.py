"""The one row of the table `runs`: what a run was, what it cost, and how well it did.

Invariant: all but seconds and GPUs follows from the run's other tables and its run.json, read some
rows at a time.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.costs import PRM_TOKENS, WRITTEN
from jobs.gpu_types import type_of_accelerator
from jobs.headline import headline_of
from jobs.partitions import KEY
from jobs.recipe import parse_recipe
from jobs.results import RECORD, RunRecord, load_record, load_table, table_parts, write_table
from jobs.settings import ModelSettings, Recipe
from jobs.storage import Storage, Where, folder_to_read
from search.errors import RecipeError, StorageError
from search.schemas import RUNS

Row = dict[str, Any]
_SUMMED = (
    "solutions",
    "generated_policy_tokens",
    "prefix_policy_tokens",
    "discarded_policy_tokens",
    "computed_prm_tokens",
    "minimal_prm_tokens",
    "flops",
)
_COUNTED = ("status", "attempts", *dict.fromkeys((*_SUMMED, *WRITTEN, PRM_TOKENS)))
_SEARCH = ("policy", "strategy", "variant", "n", "branching", "reduction", "vote")
_VALUES = ("expected_correct", "ci_low", "ci_high")
_NAMED = ("run_id", "recipe_digest", "git_revision", "started_at", "finished_at")


def write_run_row(
    folder: Storage, record: RunRecord, recipe: Recipe, gpus: Collection[str] = ()
) -> None:
    """Writes `runs.parquet` beside the other tables. gpus: what Ray calls those of the cluster."""
    document = asdict(record)
    row = _row(folder, document) | _gpu_columns(recipe, record.seconds, gpus)
    row |= _headline_columns(folder, recipe)
    write_table(folder, "runs", pa.Table.from_pylist([row], RUNS))


def load_run_row(run: Where) -> Row:
    """The row of a finished run; of one from before the table it is made from the others."""
    folder = folder_to_read(run)
    if rows := load_table(folder, "runs").to_pylist():
        [row] = rows
        return dict(row)
    record = load_record(folder, *_NAMED, "recipe", "versions")
    if not record["finished_at"]:
        raise StorageError(f"{folder} has not ended: finish it first, by the command it began with")
    found = dict.fromkeys(RUNS.names) | _row(
        folder, record | {"seconds": _elapsed_s(folder, record)}
    )
    try:
        return found | _headline_columns(folder, parse_recipe(record.get("recipe")))
    except RecipeError:  # its models, or a key of it, are not there any more
        return found


def _row(folder: Storage, record: Row) -> Row:
    run_id, seconds = str(record["run_id"]), record["seconds"]
    row = {name: record[name] for name in _NAMED} | _units(folder) | _problems(folder)
    tokens = row["generated_policy_tokens"]
    return row | {
        "recipe": record["recipe"].get("name"),
        "partition": run_id.partition(f"/{KEY}")[2] or None,
        "versions": json.dumps(record["versions"], sort_keys=True),
        "seconds": seconds,
        "policy_tokens_per_second": tokens / seconds if seconds else None,
    }


def _units(folder: Storage) -> Row:
    """Counts and sums over work units; what failed units spent is not known and counts nothing."""
    row: Row = dict.fromkeys(("units", "failed_units", "retries", "tokens", *_SUMMED), 0)
    for part in table_parts(folder, "units", _COUNTED):
        row["units"] += len(part)
        row["failed_units"] += _sum(pc.equal(part["status"], "error"))
        row["retries"] += _sum(pc.subtract(part["attempts"], 1))
        row["tokens"] += sum(_sum(part[name]) for name in (*WRITTEN, PRM_TOKENS))
        for name in _SUMMED:
            row[name] += _sum(part[name])
    return row


def _problems(folder: Storage) -> Row:
    parts = [part["error"] for part in table_parts(folder, "problems", ("error",))]
    bad = sum(len(errors) - errors.null_count for errors in parts)
    return {"problems": sum(map(len, parts)), "bad_problems": bad}


def _headline_columns(folder: Storage, recipe: Recipe) -> Row:
    """The search that stands for the run, and its accuracy, null if nothing of it was finished."""
    chosen = headline_of(recipe)
    if chosen is None:
        return {}
    found = _points(folder, {name: getattr(chosen, name) for name in _SEARCH})
    point = max(found, key=lambda row: (row["n"], row["searched_n"]), default=dict[str, Any]())
    low, high = point.get("ci_low"), point.get("ci_high")
    values = {"accuracy": point.get("expected_correct"), "ci_low": low, "ci_high": high}
    return (
        {name: getattr(chosen, name) for name in _SEARCH} | {"n": point.get("n", chosen.n)} | values
    )


def _points(folder: Storage, search: Row) -> Iterable[Row]:
    """The means over problems of a search, one for each N that it was read off."""
    names = (*_SEARCH, "searched_n", *_VALUES)
    for part in table_parts(folder, "answers", ("problem_id", *names)):
        keep = pc.is_null(part["problem_id"])
        for name, value in search.items():
            keep = keep if value is None else pc.and_(keep, pc.equal(part[name], value))
        yield from part.filter(keep).select(names).to_pylist()


def _gpu_columns(recipe: Recipe, seconds: float, names: Collection[str]) -> Row:
    """GPUs as if its replicas had held them all the time; a price only if they are of one type.

    Of replicas that came and went it is not known how long they held theirs.
    """
    models: list[ModelSettings] = [*recipe.policies, *([recipe.prm] if recipe.prm else [])]
    if any(model.autoscaling for model in models):
        return {"gpu_seconds": None, "gpu_type": None, "usd": None}
    held = max(policy.most_gpus for policy in recipe.policies)
    held += recipe.prm.most_gpus if recipe.prm else 0.0
    row: Row = {"gpu_seconds": held * seconds, "gpu_type": None, "usd": None}
    kinds = [type_of_accelerator(name) for name in names]
    if held and len(kinds) == 1 and kinds[0]:
        usd = held * seconds / 3600 * kinds[0].usd_per_hour
        row |= {"gpu_type": kinds[0].name, "usd": usd}
    return row


def _elapsed_s(folder: Storage, record: Row) -> float:
    """Seconds from start to end, for a record that does not say how long was worked."""
    try:
        times = [datetime.fromisoformat(record[name]) for name in ("started_at", "finished_at")]
        return (times[1] - times[0]).total_seconds()
    except (ValueError, TypeError):
        raise StorageError(f"{folder.called(RECORD)} has a time that is none") from None


def _sum(values: Any) -> Any:
    return pc.sum(values).as_py() or 0
