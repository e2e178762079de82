"""What the table `routes` says in other tables: accuracies, and names of what units did.

Invariant: accuracies of compute-optimal searches follow from the rows of `routes` alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.budgets import Measure
from jobs.curves import NO_REDUCTION, ROUTE_VOTE
from jobs.intervals import accuracy_interval
from search.config import COMPUTE_OPTIMAL, routed_mark
from search.schemas import ANSWERS

Row = dict[str, Any]
# What names a compute-optimal search: its budget in solutions is its `n`.
SEARCH = ("policy", "variant", "n")
_NAMED = ("variant", "n", "measure", "probe_solutions", "rest_solutions")


def routed_answers(routes: pa.Table) -> pa.Table:
    """`ANSWERS` of compute-optimal searches: a row a problem, then their mean and its interval."""
    searches: dict[tuple[Any, ...], list[Row]] = {}
    for row in routes.to_pylist():
        if row["expected_correct"] is not None:
            searches.setdefault(tuple(row[name] for name in SEARCH), []).append(row)
    rows = [row for place in sorted(searches) for row in _answer_rows(searches[place])]
    return pa.Table.from_pylist(rows, ANSWERS)


def _answer_rows(rows: Sequence[Row]) -> list[Row]:
    n = solutions_at(rows)
    shared = {
        name: rows[0][name] for name in ("policy", "strategy", "branching", "keep", "variant")
    }
    shared |= {"n": n, "searched_n": n, "reduction": NO_REDUCTION, "vote": ROUTE_VOTE}
    ordered = sorted(rows, key=lambda row: str(row["problem_id"]))
    single = [
        shared | {name: row[name] for name in ("problem_id", "answer", "expected_correct")}
        for row in ordered
    ]
    values = np.array([row["expected_correct"] for row in ordered], np.float64)
    mean, low, high = (float(side) for side in accuracy_interval(values))
    ends = {"ci_low": _known(low), "ci_high": _known(high)}
    return [*single, shared | {"answer": "", "expected_correct": mean} | ends]


def solutions_at(rows: Sequence[Row]) -> int:
    """N at which a search stands: its budget in solutions, else what it spent on average."""
    if rows[0]["measure"] == Measure.SOLUTIONS:
        return int(rows[0]["n"])
    solutions = sum(int(row["probe_solutions"] + row["rest_solutions"]) for row in rows)
    return round(solutions / len(rows))


def named_units(units: pa.Table, routes: pa.Table) -> pa.Table:
    """`UNITS` with probes and routes under the names of their compute-optimal searches."""
    searches: dict[tuple[str, str], list[Row]] = {}
    answered = routes.filter(pc.is_valid(routes["expected_correct"]))
    for row in answered.select(["policy", "searched_as", *_NAMED]).to_pylist():
        searches.setdefault((row["policy"], row["searched_as"]), []).append(row)
    names = ("policy", "strategy", "n", "branching", "keep", "variant")
    rows = units.select(names).to_pylist()
    for row in rows:
        if mark := routed_mark(row["variant"]):
            found = searches.get((row["policy"], mark))
            row |= {"strategy": COMPUTE_OPTIMAL, "branching": 0, "keep": 0}
            row["variant"] = found[0]["variant"] if found else mark
            row["n"] = solutions_at(found) if found else 0
    for name in names:
        place = units.schema.get_field_index(name)
        values = pa.array([row[name] for row in rows], units.schema.field(name).type)
        units = units.set_column(place, units.schema.field(name), values)
    return units


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
