"""Two runs against each other: every search that both have, paired by problem, and what it cost.

Invariant: accuracies and costs of a row are over the same problems in both runs, those that are
equal in both; everything else is counted and left out.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jobs.costs import PRM_TOKENS, WRITTEN
from jobs.paired import SEARCH, Answered, Difference, Key, Shared, answered, difference
from jobs.paired import shared_problems as shared_of
from jobs.recipe_changes import changes
from jobs.results import load_record, load_table
from jobs.routes_table import named_units
from jobs.run_rows import Row, load_run_row
from jobs.storage import Storage, Where, folder_to_read
from search.errors import RecipeError
from search.strategies import STRATEGIES

# What names a search that was run; votes and smaller N are read off it.
_RUN_AS = ("policy", "strategy", "variant", "n", "branching")
_SPENT = (*WRITTEN, PRM_TOKENS, "flops", "seconds")
Spent = dict[Key, Row]


@dataclass(frozen=True, slots=True)
class Compared:
    """One search at one N with one vote. Ratios: second over first; None where one is unknown."""

    policy: str
    strategy: str
    variant: str
    n: int
    branching: int
    reduction: str
    vote: str
    difference: Difference
    tokens_ratio: float | None
    flops_ratio: float | None
    unit_seconds_ratio: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs. rows: of the table `runs`. changes: keys of the recipe that change a result."""

    runs: tuple[str, str]
    rows: tuple[Row, Row]
    shared: Shared
    changes: list[str]
    searches: list[Compared]


def compare(first: Where, second: Where) -> Comparison:
    """Reads both folders; raises StorageError, or RecipeError if they have nothing in common."""
    folders = folder_to_read(first), folder_to_read(second)
    records = [load_record(folder, "run_id", "recipe") for folder in folders]
    rows = load_run_row(folders[0]), load_run_row(folders[1])
    shared = shared_of(*folders)
    if not shared.ids:
        raise RecipeError(
            f"{folders[0]} and {folders[1]} have no problem in common, by id, text and answer: "
            "compare runs over the same data"
        )
    return Comparison(
        runs=(str(records[0]["run_id"]), str(records[1]["run_id"])),
        rows=rows,
        shared=shared,
        changes=changes(records[0]["recipe"], records[1]["recipe"]),
        searches=_searches(*folders, shared.ids),
    )


def _searches(first: Storage, second: Storage, ids: Collection[str]) -> list[Compared]:
    ours, theirs = answered(first), answered(second)
    spent = _spent(first, ids), _spent(second, ids)
    both = [key for key in ours if key in theirs]
    if not both:
        raise RecipeError(
            f"{first} and {second} have no search in common: {_named(ours)} in the one, "
            f"{_named(theirs)} in the other; names of policies count too"
        )
    found = [(key, difference(ours[key].correct, theirs[key].correct, ids)) for key in both]
    return [
        _compared(key, each, (ours[key], theirs[key]), spent)
        for key, each in found
        if each is not None
    ]


def _named(found: Collection[Key]) -> str:
    """The searches by policy and rule, without N and votes."""
    return ", ".join(dict.fromkeys(" ".join(filter(None, key[:3])) for key in found)) or "none"


def _compared(
    key: Key, found: Difference, sides: tuple[Answered, Answered], spent: tuple[Spent, Spent]
) -> Compared:
    first, second = (_cost(key, side, each) for side, each in zip(sides, spent, strict=True))
    return Compared(
        **dict(zip(SEARCH, key, strict=True)),
        difference=found,
        tokens_ratio=ratio(first.get("tokens"), second.get("tokens")),
        flops_ratio=ratio(first.get("flops"), second.get("flops")),
        unit_seconds_ratio=ratio(first.get("seconds"), second.get("seconds")),
    )


def _cost(key: Key, side: Answered, spent: Spent) -> Row:
    """Of the run that a point was read off, or the part of it that a smaller N would have cost."""
    values = dict(zip(SEARCH, key, strict=True))
    named = values | {"n": side.searched_n}
    row = spent.get(tuple(named[name] for name in _RUN_AS), {})
    kind = STRATEGIES.get(values["strategy"])
    part = values["n"] / side.searched_n if kind and kind.splits else 1.0
    return {name: value * part for name, value in row.items()}


def _spent(folder: Storage, ids: Collection[str]) -> Spent:
    """Sums over the units of the shared problems that were done, by search."""
    units = named_units(load_table(folder, "units"), load_table(folder, "routes"))
    done = pc.equal(units["status"], "done")
    shared = pc.is_in(units["problem_id"], pa.array(sorted(ids), pa.string()))
    kept = units.filter(pc.and_(done, shared))
    sums = kept.group_by(list(_RUN_AS)).aggregate([(name, "sum") for name in _SPENT])
    return {tuple(row[name] for name in _RUN_AS): _totals(row) for row in sums.to_pylist()}


def _totals(row: Row) -> Row:
    tokens = sum(row[f"{name}_sum"] or 0 for name in (*WRITTEN, PRM_TOKENS))
    return {"tokens": tokens, "flops": row["flops_sum"], "seconds": row["seconds_sum"]}


def ratio(first: float | None, second: float | None) -> float | None:
    """Second over first; None where one is not known or the first is 0."""
    return None if not first or second is None else second / first
