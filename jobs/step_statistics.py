"""Where a prediction's steps come from: the recipe's limits with assumptions, or a past run.

Invariant: a prediction says which of both it stands on, and every number of it can be replaced.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from jobs.results import load_run
from jobs.settings import Recipe
from jobs.storage import Where, folder_to_read
from search.errors import RecipeError
from search.protocols import StopReason
from search.step_model import StepModel, evenly_spread_ends

# Of solutions of mathematics problems by small instruction-tuned models; all are assumptions.
ASSUMED_STEP_TOKENS = 50
ASSUMED_STEP_CV = 0.6
ASSUMED_PROMPT_TOKENS = 150
PRM_COLUMNS = ("computed_prm_tokens", "minimal_prm_tokens")
# A solution is seldom as long as the limit, which is there for those that never end.
ASSUMED_SHARE_OF_LIMIT = 1 / 4


def assumed_steps(
    recipe: Recipe, step_tokens: float | None = None, steps: int | None = None
) -> StepModel:
    """A quarter of the longest solution, in steps of 50 tokens or half of the longest step."""
    limits = recipe.limits
    tokens = step_tokens or min(ASSUMED_STEP_TOKENS, math.ceil(limits.max_step_tokens / 2))
    whole = limits.max_solution_tokens * ASSUMED_SHARE_OF_LIMIT
    count = steps or max(1, min(limits.max_steps, round(whole / tokens)))
    return StepModel(
        step_tokens=tokens,
        step_cv=ASSUMED_STEP_CV,
        end_shares=evenly_spread_ends(count, count // 3),
        prompt_tokens=ASSUMED_PROMPT_TOKENS,
        prm_prompt_tokens=ASSUMED_PROMPT_TOKENS,
    )


def measured_steps(folder: Where, policy: str) -> StepModel:
    """Steps as a past run's policy wrote them; of all its policies if it had none of that name."""
    folder = folder_to_read(folder)
    run = load_run(folder)
    nodes, units = (_of_policy(table, policy) for table in (run.nodes, run.units))
    if nodes.num_rows == 0:
        raise RecipeError(f"the run {folder} has no steps: take one whose searches succeeded")
    columns = ("policy_tokens", "depth", "stop_reason")
    tokens, depths, reasons = (nodes[column].to_pylist() for column in columns)
    return observed_steps(
        tokens,
        depths,
        reasons,
        prompt_tokens=round(_sum(units, "computed_prefix_policy_tokens") / units.num_rows),
        prm_prompt_tokens=_prm_prompt_tokens(units),
        # Equal steps are scored once, so a PRM may compute less than it must have read.
        prm_tokens_per_token=min(_sum(units, c) for c in PRM_COLUMNS) / sum(tokens) or 1.0,
    )


def observed_steps(
    tokens: Sequence[int],
    depths: Sequence[int],
    reasons: Sequence[str],
    *,
    prompt_tokens: int,
    prm_prompt_tokens: int,
    prm_tokens_per_token: float,
) -> StepModel:
    """The model of steps that were written, each with its length, depth and end."""
    mean = statistics.fmean(tokens)
    return StepModel(
        step_tokens=mean,
        step_cv=statistics.pstdev(tokens) / mean,
        end_shares=end_shares(depths, reasons),
        prompt_tokens=prompt_tokens,
        prm_prompt_tokens=prm_prompt_tokens,
        prm_tokens_per_token=prm_tokens_per_token,
    )


def end_shares(depths: Sequence[int], reasons: Sequence[str]) -> tuple[float, ...]:
    """Of the steps at each depth, from 1, the share that ends its solution."""
    steps, ends = [0] * max(depths), [0] * max(depths)
    for depth, reason in zip(depths, reasons, strict=True):
        steps[depth - 1] += 1
        ends[depth - 1] += reason not in (StopReason.DELIMITER, StopReason.LENGTH)
    return tuple(ended / every for ended, every in zip(ends, steps, strict=True))


def _of_policy(table: Any, policy: str) -> Any:
    rows = table.filter(pc.equal(table["policy"], policy))
    return rows if rows.num_rows else table


def _sum(table: Any, column: str) -> int:
    return int(pc.sum(table[column]).as_py() or 0)


def _prm_prompt_tokens(units: Any) -> int:
    """What the PRM computed beside new steps, for each unit that it scored."""
    scored: int = sum(tokens > 0 for tokens in units["computed_prm_tokens"].drop_null().to_pylist())
    spent = _sum(units, "computed_prm_tokens") - _sum(units, "minimal_prm_tokens")
    return int(max(0, spent) / max(1, scored))
