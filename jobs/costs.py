"""What a search over one problem cost, in each of the measures that a budget may be given in.

Invariant: policy and PRM are both counted, and so are prompts, prefixes that missed the cache,
discarded steps and wasted speculation. `PAPER_FLOPS` alone is narrower, for comparison with
published numbers, and is never a budget.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.budgets import Measure
from search.budget import FLOPS_PER_PARAMETER_AND_TOKEN
from search.votes import Floats

# Liu et al. 2025 (arXiv 2502.06703), table 4: 2 x policy parameters x generated tokens.
PAPER_FLOPS = "paper_flops"
COSTS = (*map(str, Measure), PAPER_FLOPS)
WRITTEN = (
    "generated_policy_tokens",
    "wasted_policy_tokens",
    "lookahead_policy_tokens",
    "computed_prefix_policy_tokens",
)
PRM_TOKENS = "computed_prm_tokens"
_SUMMED = ("solutions", *WRITTEN, PRM_TOKENS, "flops")


def model_parameters(units: pa.Table, policy: str) -> tuple[float, float]:
    """Parameters of a policy and of its PRM, solved from what its units cost: 2 FLOPs a parameter
    and token. (0, 0) where the units do not tell; the PRM's is 0 if nothing was scored."""
    rows = units.filter(pc.equal(units["policy"], policy))
    rows = rows.filter(pc.greater(rows["flops"], 0.0))
    if not len(rows):
        return 0.0, 0.0
    written = sum(_filled(rows, name) for name in WRITTEN)
    tokens = np.stack([written, _filled(rows, PRM_TOKENS)], axis=1)
    used = tokens.any(axis=0)
    unknown = tokens[:, used].astype(np.float64)
    target = rows["flops"].to_numpy() / FLOPS_PER_PARAMETER_AND_TOKEN
    solved, _, rank, _ = np.linalg.lstsq(unknown, target, rcond=None)
    if rank < unknown.shape[1]:
        return 0.0, 0.0
    found = np.zeros(2)
    found[used] = np.round(solved)
    return float(found[0]), float(found[1])


def _filled(units: pa.Table, column: str) -> Any:
    return pc.fill_null(units[column], 0).to_numpy()


def problem_costs(
    units: pa.Table, key: tuple[str, ...], parameters: Mapping[str, float]
) -> dict[tuple[Any, ...], Floats]:
    """(COSTS,) of each search over each problem, by the columns of `key` and the problem id.

    units: rows of `UNITS`. key: the columns that name a search. parameters: of each policy.
    Units that failed are left out, with the solutions that they would have brought.
    """
    done = units.filter(pc.equal(units["status"], "done"))
    columns = ["policy", *(name for name in key if name != "policy"), "problem_id"]
    sums = done.group_by(columns).aggregate([(name, "sum") for name in _SUMMED])
    return {
        tuple(row[name] for name in (*key, "problem_id")): _costs(row, parameters)
        for row in sums.to_pylist()
    }


def _costs(row: Mapping[str, Any], parameters: Mapping[str, float]) -> Floats:
    tokens = sum(row[f"{name}_sum"] or 0 for name in (*WRITTEN, PRM_TOKENS))
    size = parameters.get(row["policy"], 0.0)
    narrow = FLOPS_PER_PARAMETER_AND_TOKEN * size * row["generated_policy_tokens_sum"]
    return np.array([row["solutions_sum"], tokens, row["flops_sum"], narrow], dtype=np.float64)


def tokens_and_flops(units: pa.Table) -> tuple[int, float]:
    """What units cost together, counted as budgets are; units that failed count nothing."""
    tokens = sum(int(_filled(units, name).sum()) for name in (*WRITTEN, PRM_TOKENS))
    return tokens, float(_filled(units, "flops").sum())


def costs_at(costs: Floats, n: int, splits: bool) -> Floats:
    """(COSTS,) of a search at n, read off a search that brought `costs[0]` solutions.

    Independent parts cost the same each, so a strategy that splits costs in proportion; the one
    point of a strategy that does not has the cost that it had, and counts as n solutions even if
    fewer of its candidates were finished.
    """
    scaled = costs * (n / costs[0]) if splits else costs.copy()
    scaled[0] = n
    return scaled
