"""Costs of searches and budgets, worked out by hand."""

from typing import Any

import pyarrow as pa
import pytest

from jobs.budgets import Budget, Measure, parse_budget
from jobs.costs import costs_at, model_parameters, problem_costs, tokens_and_flops
from search.errors import RecipeError
from search.schemas import UNITS

pytestmark = pytest.mark.unit

KEY = ("policy", "strategy", "n", "branching")


def unit(**columns: Any) -> dict[str, Any]:
    """A unit with a policy of 10 parameters and a PRM of 100."""
    row = {
        "problem_id": "p",
        "policy": "small",
        "strategy": "dvts",
        "n": 16,
        "branching": 4,
        "status": "done",
        "solutions": 8,
        "generated_policy_tokens": 50,
        "discarded_policy_tokens": 20,
        "wasted_policy_tokens": 3,
        "computed_prefix_policy_tokens": 7,
        "computed_prm_tokens": 40,
    } | columns
    written = sum(
        row[f"{name}_policy_tokens"] for name in ("generated", "wasted", "computed_prefix")
    )
    return {"flops": 2.0 * (10 * written + 100 * row["computed_prm_tokens"])} | row


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), UNITS)


def test_policy_and_prm_are_both_counted_with_prompts_and_waste() -> None:
    units = table(unit(), unit(generated_policy_tokens=30), unit(problem_id="q"))
    found = problem_costs(units, KEY, {"small": 10.0})
    flops = 2 * (10 * (50 + 3 + 7) + 100 * 40) + 2 * (10 * (30 + 3 + 7) + 100 * 40)
    tokens = (50 + 3 + 7 + 40) + (30 + 3 + 7 + 40)
    narrow = 2 * 10 * (50 + 30)
    assert found["small", "dvts", 16, 4, "p"].tolist() == [16, tokens, flops, narrow]
    assert len(found) == 2


def test_units_are_added_up_as_budgets_are_counted() -> None:
    failed = {"status": "error", "solutions": 0} | dict.fromkeys(
        name for name in UNITS.names if name.endswith("_tokens") or name == "flops"
    )
    units = table(unit(), unit(lookahead_policy_tokens=9, flops=5.0), unit() | failed)
    assert tokens_and_flops(units) == (100 + 109, 2 * (600 + 4000) + 5.0)
    assert tokens_and_flops(UNITS.empty_table()) == (0, 0.0)


def test_what_failed_is_not_counted() -> None:
    failed = dict.fromkeys(("flops", "generated_policy_tokens", "computed_prm_tokens"))
    broken = unit() | failed | {"status": "error", "solutions": 0}
    found = problem_costs(table(unit(), broken), KEY, {})
    assert found["small", "dvts", 16, 4, "p"].tolist() == [8, 100, 2 * (600 + 4000), 0.0]


def test_independent_parts_cost_in_proportion() -> None:
    [whole] = problem_costs(table(unit()), KEY, {"small": 10.0}).values()
    assert costs_at(whole, 4, splits=True).tolist() == (whole / 2).tolist()


def test_one_tree_costs_what_it_cost() -> None:
    """A beam of 16 of which 8 candidates were finished."""
    [whole] = problem_costs(table(unit(strategy="beam")), KEY, {}).values()
    assert costs_at(whole, 16, splits=False).tolist() == [16, *whole[1:]]
    assert whole[0] == 8


def test_sizes_follow_from_costs() -> None:
    units = table(unit(), unit(computed_prm_tokens=90), unit(policy="none", flops=0.0))
    assert model_parameters(units, "small") == (10.0, 100.0)
    assert model_parameters(units, "none") == (0.0, 0.0)
    assert model_parameters(table(unit(), unit()), "small") == (0.0, 0.0)
    silent = unit(computed_prm_tokens=90, flops=2.0 * (10 * 57 + 100 * 90))
    units = table(unit(), silent | {"wasted_policy_tokens": None})
    assert model_parameters(units, "small") == (10.0, 100.0)
    alone = table(unit(computed_prm_tokens=0))
    assert model_parameters(alone, "small") == (10.0, 0.0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("64", Budget(64, Measure.SOLUTIONS)),
        ("64 solutions", Budget(64, Measure.SOLUTIONS)),
        (" 2e5  tokens ", Budget(200_000, Measure.TOKENS)),
        ("1.5e12 flops", Budget(1.5e12, Measure.FLOPS)),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "many", "64 samples", "tokens 64", "0", "-1 tokens", "inf"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"the budget '.*'"):
        parse_budget(text)
