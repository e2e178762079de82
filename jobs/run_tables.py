"""From a run's commits to whole tables, one file each.

Invariant: memory holds a row group of one table, and each unit and each problem is in the tables
once, as it was committed last; so is each subtree, however the units were cut.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.commit_log import CommitLog, Part
from jobs.settings import Recipe
from jobs.standing import Standing
from jobs.storage import PARQUET, Storage
from search.config import COMPUTE_OPTIMAL, routed_mark
from search.schemas import TABLES

ROWS_A_GROUP = 100_000
# With long texts, rows are many bytes: what waits in memory must not depend on that.
BYTES_A_GROUP = 32 << 20
# A part of a few rows takes far more memory than they do; a run of many short commits has many.
PARTS_MERGED = 256
# Which commit counts is decided by the rows of this table, for all that have its key.
_OF_UNITS = {"nodes": "units", "units": "units"}
_SEARCH = ("policy", "strategy", "n", "branching", "variant")
_UNIT, _PROBLEM = ("policy", "unit_id"), ("policy", "problem_id")
WRITTEN = ("nodes", "solutions", "routes", "stops", "units")

Keep = Callable[[pa.Table], pa.Table]


def write_tables(log: CommitLog, folder: Storage, keep: Keep) -> None:
    """Writes the tables that grew while the run went on. keep: drops rows of other searches."""
    for name in WRITTEN:
        parts = (keep(rows) for rows in last_rows(log, name))
        write_parts(folder, name, parts)


def write_parts(folder: Storage, name: str, parts: Iterable[pa.Table]) -> None:
    """Writes a table whose rows come in parts; raises StorageError."""
    with (
        folder.writing(f"{name}.parquet") as file,
        pq.ParquetWriter(file, TABLES[name], **PARQUET) as writer,
    ):
        for group in _groups(parts):
            writer.write_table(group, row_group_size=len(group))


def last_rows(log: CommitLog, name: str) -> Iterator[pa.Table]:
    """All rows of a table but those that were committed again later, commit by commit."""
    key = _UNIT if name in _OF_UNITS else _PROBLEM
    last = _last_commits(log, _OF_UNITS.get(name, name), key) if log.was_continued else {}
    for part in log.parts(name):
        yield _without_replaced(log.read(part), part, key, last)


def _last_commits(log: CommitLog, name: str, key: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    """The commit that counts of each; of a unit that no longer stands, the one that replaced it."""
    found: dict[tuple[str, ...], int] = {}
    standing = Standing()
    for part in log.parts(name):
        rows = log.read(part, key).group_by(list(key)).aggregate([])
        for policy, place in zip(*(rows[column].to_pylist() for column in key), strict=True):
            replaced = standing.add(policy, place) if key == _UNIT else []
            found |= dict.fromkeys(((policy, each) for each in (place, *replaced)), part.number)
    return found


def _without_replaced(
    rows: pa.Table, part: Part, key: tuple[str, ...], last: dict[tuple[str, ...], int]
) -> pa.Table:
    if not last:
        return rows
    places = zip(*(rows[column].to_pylist() for column in key), strict=True)
    counts = [last.get(place, part.number) <= part.number for place in places]
    return rows.filter(pa.array(counts, pa.bool_()))


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in order, in groups of some size."""
    waiting, rows, size_bytes = list[pa.Table](), 0, 0
    for part in parts:
        waiting.append(part)
        rows, size_bytes = rows + len(part), size_bytes + part.nbytes
        if rows >= ROWS_A_GROUP or size_bytes >= BYTES_A_GROUP:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, rows, size_bytes = [], 0, 0
        elif len(waiting) >= PARTS_MERGED:
            waiting = [pa.concat_tables(waiting).combine_chunks()]
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def of_recipe(recipe: Recipe) -> Keep:
    """Keeps the rows of the searches that the recipe has now, at the N that they have now."""
    plain = {
        (policy.name, config.strategy, config.n, config.branching, config.variant)
        for policy in recipe.policies
        for config in recipe.search_configs(policy.name)
    }
    routed = {
        (policy.name, search.mark(budget))
        for policy in recipe.policies
        for search, budget in recipe.routed_of(str(policy.name))
    }

    def is_kept(search: tuple[Any, ...]) -> bool:
        policy, strategy, *_, variant = search
        mark = routed_mark(variant)
        if mark or strategy == COMPUTE_OPTIMAL:
            return not mark or (policy, mark) in routed
        return search in plain

    return lambda rows: _with_searches(rows, is_kept)


def _with_searches(rows: pa.Table, is_kept: Callable[[tuple[Any, ...]], bool]) -> pa.Table:
    named = rows.select(_SEARCH)
    searches = named.group_by(list(_SEARCH)).aggregate([]).to_pylist()
    if all(is_kept(tuple(each.values())) for each in searches):
        return rows
    kept = [is_kept(tuple(each.values())) for each in named.to_pylist()]
    return rows.filter(pa.array(kept, pa.bool_()))
