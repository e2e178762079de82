"""What a search over a problem costs by itself, with caches that nobody else has filled.

As run, a search finds prompts in the KV cache and steps that already have a reward, left there by
the searches before it, those of other policies too: what it computes depends on the order of the
recipe. Here every search reads the prompt once, the policy and the PRM each, and has every step
scored that it gives to the PRM. Invariant: no cost depends on the order of searches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.costs import model_parameters
from jobs.prompt_tokens import PromptTokens
from search.budget import FLOPS_PER_PARAMETER_AND_TOKEN
from search.votes import Floats

_SAMPLED = ("generated_policy_tokens", "wasted_policy_tokens", "lookahead_policy_tokens")
_GENERATED, _SCORED = "generated_policy_tokens", "minimal_prm_tokens"
_PREFIX = "computed_prefix_policy_tokens"
_SUMMED = ("solutions", *_SAMPLED, _SCORED, _PREFIX)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of a policy and of its PRM, 0 if unknown."""

    policy: float
    prm: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of one search over one problem.

    sampled: by the policy, discarded, wasted and read-ahead ones too; generated: those of the tree;
    scored: of the steps that the PRM was given; prompt: of the problem, which the policy and the
    PRM read once each. The tables do not have the PRM's own prompt: it is taken as equally long.
    """

    solutions: float
    sampled: float
    generated: float
    scored: float
    prompt: float

    def at(self, n: int, splits: bool, scored: bool, sizes: Sizes) -> Floats:
        """(COSTS,) at n, in the order of `jobs.costs.COSTS`.

        splits: whether the parts of the search are independent, so that n solutions cost their
        share. scored: whether the PRM reads them; a majority vote needs none.
        """
        share = n / self.solutions if splits else 1.0
        policy = share * self.sampled + self.prompt
        prm = share * self.scored + self.prompt if scored else 0.0
        each = FLOPS_PER_PARAMETER_AND_TOKEN
        flops = each * (sizes.policy * policy + sizes.prm * prm)
        return np.array([n, policy + prm, flops, each * sizes.policy * share * self.generated])


def run_sizes(units: pa.Table, policies: list[str]) -> dict[str, Sizes]:
    """Of each policy, from what its units cost. The PRM is one for all, so the policy whose units
    tell its size tells it for those that found every reward in a cache."""
    found = {name: model_parameters(units, name) for name in policies}
    prm = max((size for _, size in found.values()), default=0.0)
    return {name: Sizes(policy, prm) for name, (policy, _) in found.items()}


def spent_tokens(
    units: pa.Table, key: tuple[str, ...], prompts: PromptTokens
) -> dict[tuple[Any, ...], Spent]:
    """Of each search over each problem, by the columns of `key` and the problem id.

    key: the columns that name a search, the policy first. Units that failed are left out, with
    the solutions that they would have brought. Where the prompt is not known it is the largest part
    of a prefix that any search of the policy computed for the problem.
    """
    done = units.filter(pc.equal(units["status"], "done"))
    sums = done.group_by([*key, "problem_id"]).aggregate([(name, "sum") for name in _SUMMED])
    rows = sums.to_pylist()
    guesses: dict[tuple[str, str], float] = {}
    for row in rows:
        place = row["policy"], row["problem_id"]
        guesses[place] = max(guesses.get(place, 0.0), row[f"{_PREFIX}_sum"] or 0)
    return {
        tuple(row[name] for name in (*key, "problem_id")): _spent(row, guesses | prompts)
        for row in rows
        if row["solutions_sum"]
    }


def _spent(row: Mapping[str, Any], prompts: PromptTokens) -> Spent:
    return Spent(
        solutions=row["solutions_sum"],
        sampled=sum(row[f"{name}_sum"] or 0 for name in _SAMPLED),
        generated=row[f"{_GENERATED}_sum"] or 0,
        scored=row[f"{_SCORED}_sum"] or 0,
        prompt=prompts[row["policy"], row["problem_id"]],
    )
