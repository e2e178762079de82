"""What searches cost by themselves: by hand, and the same whatever the order of searches."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_results import synthetic_run

from jobs.prompt_tokens import prompt_tokens
from jobs.results import load_table
from jobs.standalone_costs import Sizes, Spent, run_sizes, spent_tokens
from search.schemas import NODES, UNITS

pytestmark = pytest.mark.unit

KEY = ("policy", "strategy", "n")
PROMPT = 11
# Two subtrees: place, parent, tokens; before them stand 0, 5, 5 and 0 tokens.
TREE = [("0:0", "0:", 5), ("0:0.0", "0:0", 3), ("0:0.1", "0:0", 4), ("1:0", "1:", 2)]


def unit(**columns: Any) -> dict[str, Any]:
    """Half of a search that brought 8 solutions over one problem, by a policy of 10 parameters."""
    row = {
        "problem_id": "p",
        "policy": "small",
        "strategy": "dvts",
        "n": 16,
        "unit_id": "p/dvts",
        "status": "done",
        "solutions": 8,
        "generations": len(TREE),
        "generated_policy_tokens": 50,
        "discarded_policy_tokens": 20,
        "wasted_policy_tokens": 3,
        "lookahead_policy_tokens": 2,
        "prefix_policy_tokens": 4 * PROMPT + 5 + 5,
        "computed_prefix_policy_tokens": 7,
        "computed_prm_tokens": 13,
        "minimal_prm_tokens": 40,
    } | columns
    return row


def units(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), UNITS)


def node_folder(folder: Path, unit_ids: list[str], tree: list[tuple[str, str, int]]) -> Path:
    rows = [
        {"policy": "small", "unit_id": name, "node_id": node, "parent_id": up, "policy_tokens": n}
        for name in unit_ids
        for node, up, n in tree
    ]
    pq.write_table(pa.Table.from_pylist(rows, NODES), folder / "nodes.parquet")
    return folder


def test_prompts_are_what_prefixes_hold_beside_the_steps_before(tmp_path: Path) -> None:
    folder = node_folder(tmp_path, ["p/dvts", "q/dvts"], TREE)
    other = unit(unit_id="q/dvts", problem_id="q", prefix_policy_tokens=4 * 20 + 10)
    failed = unit(unit_id="r/dvts", problem_id="r", status="error", generations=None)
    found = prompt_tokens(folder, units(unit(), other, failed))
    assert found == {("small", "p"): PROMPT, ("small", "q"): 20}


def test_the_smallest_unit_of_a_problem_tells(tmp_path: Path) -> None:
    folder = node_folder(tmp_path, ["p/dvts"], TREE)
    larger = unit(unit_id="p/beam", generations=9, prefix_policy_tokens=1000)
    assert prompt_tokens(folder, units(larger, unit())) == {("small", "p"): PROMPT}


def test_units_without_all_their_nodes_tell_no_prompt(tmp_path: Path) -> None:
    folder = node_folder(tmp_path, ["p/dvts"], TREE[:-1])
    assert prompt_tokens(folder, units(unit())) == {}


def test_every_search_of_a_run_tells_the_same_prompts(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path)
    table = load_table(folder, "units")
    together = prompt_tokens(folder, table)
    assert together
    assert min(together.values()) > 0
    for strategy in ("majority", "best_of_n", "beam", "dvts"):
        alone = prompt_tokens(folder, table.filter(pc.equal(table["strategy"], strategy)))
        assert alone
        assert alone.items() <= together.items()


def test_policy_prm_and_prompt_are_counted_and_caches_are_not() -> None:
    found = spent_tokens(units(unit(), unit()), KEY, {("small", "p"): PROMPT})
    assert found == {("small", "dvts", 16, "p"): Spent(16, 110, 100, 80, PROMPT)}
    sizes = Sizes(policy=10, prm=100)
    [spent] = found.values()
    whole, quarter = (spent.at(n, True, True, sizes).tolist() for n in (16, 4))
    assert whole == [16, 110 + 11 + 80 + 11, 2 * (10 * 121 + 100 * 91), 2 * 10 * 100]
    policy, prm = 110 / 4 + 11, 80 / 4 + 11
    assert quarter == [4, policy + prm, 2 * (10 * policy + 100 * prm), 2 * 10 * 25]
    vote = spent.at(4, True, False, sizes).tolist()
    assert vote == [4, policy, 2 * 10 * policy, 2 * 10 * 25]


def test_one_tree_costs_what_it_costs() -> None:
    spent = Spent(solutions=6, sampled=100, generated=90, scored=80, prompt=10)
    assert spent.at(8, False, True, Sizes(1, 1)).tolist() == [8, 200, 400, 180]


def test_without_nodes_the_prompt_is_the_largest_prefix_that_was_computed() -> None:
    cached = unit(strategy="beam", computed_prefix_policy_tokens=0)
    found = spent_tokens(units(cached, unit()), KEY, {})
    assert {spent.prompt for spent in found.values()} == {7}


def test_what_failed_is_left_out() -> None:
    lost = unit(status="error", solutions=0, generated_policy_tokens=None)
    [spent] = spent_tokens(units(lost, unit()), KEY, {}).values()
    assert (spent.solutions, spent.generated) == (8, 50)


def test_a_policy_whose_steps_were_all_scored_before_has_the_prm_of_the_others() -> None:
    def costs(policy: str, size: int, tokens: int, scored: int) -> dict[str, Any]:
        written = tokens + 3 + 2 + 7
        paid = {"generated_policy_tokens": tokens, "computed_prm_tokens": scored}
        return unit(policy=policy, flops=2.0 * (size * written + 100 * scored)) | paid

    table = units(
        costs("small", 10, 50, 40),
        costs("small", 10, 60, 90),
        costs("large", 70, 50, 0),
    )
    expected = {"small": Sizes(10, 100), "large": Sizes(70, 100)}
    assert run_sizes(table, ["small", "large"]) == expected
