"""How a search is cut into work units changes nothing but `unit_id`."""

import asyncio
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.protocols import StopReason
from search.rewards import Reduction
from search.rows import node_table, solution_table
from search.schemas import NODES, SOLUTIONS
from search.scripted import SeededPolicy, SeededPRM
from search.strategies import STRATEGIES, keep_count, subtree_count

PROBLEM = Problem("p/1", "What is 6 x 7?", "42")
SPLIT = ["best_of_n", "dvts", "majority"]
POLICY, PRM = SeededPolicy(p=0.6, mean_steps=3, spread=2), SeededPRM(0.7)
STOPS = {str(reason) for reason in StopReason}


def config_of(strategy: str, n: int, branching: int, seed: int = 0) -> SearchConfig:
    keep = keep_count(strategy, n, branching)
    limits = Limits(max_steps=4, max_solution_tokens=90)
    return SearchConfig(strategy, n, branching, keep, Reduction.MIN, seed, limits)


def run(unit: WorkUnit) -> Growth:
    return asyncio.run(run_unit(unit, POLICY, PRM))


def joined(tables: list[pa.Table], key: str) -> pa.Table:
    table = pa.concat_tables(tables).drop_columns(["unit_id"])
    return table.sort_by([("subtree", "ascending"), (key, "ascending")])


def tables_of(units: list[WorkUnit]) -> tuple[pa.Table, pa.Table]:
    """Node and solution tables of all units, without what names the unit."""
    grown = [(unit, run(unit)) for unit in units]
    nodes = [node_table(unit, "x", growth.tree) for unit, growth in grown]
    solutions = [solution_table(unit, "x", growth) for unit, growth in grown]
    return joined(nodes, "node_id"), joined(solutions, "solution_id")


@pytest.mark.unit
@pytest.mark.parametrize("size", range(1, 14))
@pytest.mark.parametrize("strategy", SPLIT)
def test_no_size_of_units_changes_a_table(strategy: str, size: int) -> None:
    config = config_of(strategy, 12, 2)
    nodes, solutions = tables_of(list(partition(PROBLEM, config, config.n)))
    split_nodes, split_solutions = tables_of(list(partition(PROBLEM, config, size)))
    assert split_nodes.equals(nodes)
    assert split_solutions.equals(solutions)
    assert solutions.num_rows == 12


@st.composite
def cuts(draw: st.DrawFn) -> tuple[SearchConfig, list[int]]:
    """A search and any borders of its subtrees, not only equal ones."""
    strategy, branching = draw(st.sampled_from(SPLIT)), draw(st.integers(1, 3))
    config = config_of(
        strategy, branching * draw(st.integers(1, 6)), branching, draw(st.integers(0, 999))
    )
    total = subtree_count(strategy, config.n, branching)
    inner = draw(st.sets(st.integers(1, total - 1))) if total > 1 else set()
    return config, [0, *sorted(inner), total]


@pytest.mark.unit
@settings(max_examples=25, deadline=None)
@given(cuts())
def test_no_partition_changes_a_table(cut: tuple[SearchConfig, list[int]]) -> None:
    config, borders = cut
    units = [
        WorkUnit(f"u{first}", PROBLEM, config, first, stop) for first, stop in pairwise(borders)
    ]
    nodes, solutions = tables_of(list(partition(PROBLEM, config, config.n)))
    split_nodes, split_solutions = tables_of(units[::-1])
    assert split_nodes.equals(nodes)
    assert split_solutions.equals(solutions)


@pytest.mark.unit
def test_dvts_equals_its_subtrees_run_one_by_one() -> None:
    config = config_of("dvts", 16, 4)
    whole = run(WorkUnit("whole", PROBLEM, config, 0, 4))
    parts = [run(WorkUnit(f"u{i}", PROBLEM, config, i, i + 1)) for i in range(4)]

    def seen(growth: Growth) -> set[tuple[object, ...]]:
        tree = growth.tree
        return set(zip(tree.node_ids(), tree.texts, tree.rewards, tree.kept, strict=True))

    assert seen(whole) == set().union(*map(seen, parts))
    assert whole.budget.policy_tokens == sum(part.budget.policy_tokens for part in parts)
    assert whole.budget.prefix_tokens == sum(part.budget.prefix_tokens for part in parts)
    assert whole.budget.prm_tokens_minimal == sum(p.budget.prm_tokens_minimal for p in parts)


@pytest.mark.unit
@pytest.mark.parametrize("strategy", SPLIT)
def test_the_first_subtrees_are_a_smaller_run(strategy: str) -> None:
    large, small = config_of(strategy, 12, 2), config_of(strategy, 4, 2)
    widths = ["n", "keep"]
    _, of_large = tables_of(list(partition(PROBLEM, large, 12)))
    _, of_small = tables_of(list(partition(PROBLEM, small, 4)))
    first = of_large.slice(0, of_small.num_rows)
    assert first.drop_columns(widths).equals(of_small.drop_columns(widths))


@pytest.mark.unit
@given(
    st.sampled_from(sorted(STRATEGIES)), st.integers(1, 5), st.integers(1, 40), st.integers(1, 300)
)
def test_every_subtree_is_in_exactly_one_unit(
    strategy: str, branching: int, groups: int, size: int
) -> None:
    config = config_of(strategy, branching * groups, branching)
    units = list(partition(PROBLEM, config, size))
    subtrees = [subtree for unit in units for subtree in range(unit.first, unit.stop)]
    assert subtrees == list(range(subtree_count(strategy, config.n, branching)))
    assert all(unit.first < unit.stop for unit in units)
    assert len({unit.unit_id for unit in units}) == len(units)
    if not STRATEGIES[strategy].splits:
        assert len(units) == 1


@pytest.mark.unit
@given(st.sampled_from(SPLIT), st.integers(1, 5), st.integers(1, 40), st.integers(1, 300))
def test_a_unit_holds_no_more_solutions_than_asked(
    strategy: str, branching: int, groups: int, size: int
) -> None:
    config = config_of(strategy, branching * groups, branching)
    total = subtree_count(strategy, config.n, branching)
    solutions_each = config.n // total
    for unit in partition(PROBLEM, config, size):
        # One subtree is the smallest unit there is.
        assert (unit.stop - unit.first) * solutions_each <= max(size, solutions_each)


@pytest.mark.unit
def test_unit_names_are_the_same_in_every_run() -> None:
    names = [unit.unit_id for unit in partition(PROBLEM, config_of("dvts", 16, 4), 8)]
    assert names == ["p/1/dvts-16x4/0-2", "p/1/dvts-16x4/2-4"]


@pytest.mark.unit
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_tables_have_their_schemas_and_widths(strategy: str) -> None:
    config = config_of(strategy, 8, 2)
    [unit] = partition(PROBLEM, config, 8)
    growth = run(unit)
    nodes, solutions = node_table(unit, "small", growth.tree), solution_table(unit, "small", growth)
    assert nodes.schema.equals(NODES, check_metadata=True)
    assert solutions.schema.equals(SOLUTIONS, check_metadata=True)
    for row in (*nodes.to_pylist(), *solutions.to_pylist()):
        assert (row["n"], row["branching"], row["keep"]) == (8, 2, config.keep)
        assert (row["policy"], row["unit_id"]) == ("small", unit.unit_id)
        assert row["stop_reason"] in STOPS


@pytest.mark.unit
def test_rows_are_ordered_by_place_and_not_by_name() -> None:
    config = config_of("best_of_n", 12, 1)
    [unit] = partition(PROBLEM, config, 12)
    solutions = solution_table(unit, "x", run(unit))
    assert solutions["subtree"].to_pylist() == list(range(12))
