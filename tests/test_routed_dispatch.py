"""Compute-optimal searches through the dispatcher with real trees, without a cluster."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_results import graded as judged
from test_routed_recipes import routed_recipe, routes_file

from cluster.unit_tables import UnitTables
from jobs.commit_log import CommitLog
from jobs.dispatch import Dispatch
from jobs.plan_searches import routed_search
from jobs.recall import PolicyRecall, Recall
from jobs.recipe import parse_recipe
from jobs.route_choosers import chooser_of
from jobs.routed_search import RoutedSearch
from jobs.routes_rows import routes_rows
from jobs.run_tables import last_rows
from jobs.run_writer import RunWriter
from jobs.search_plans import WholeSearch
from jobs.settings import Recipe
from jobs.storage import storage_at
from search.partition import WorkUnit, run_unit
from search.problem import Problem
from search.rows import node_table, search_columns, solution_table, unit_costs
from search.schemas import ROUTES, UNITS
from search.scripted import SeededPolicy, SeededPRM

pytestmark = pytest.mark.unit

PROBLEMS = [Problem(f"p{place}", f"Problem {place}?", "42") for place in range(6)]


async def judge(problem: Problem, solutions: pa.Table) -> pa.Table:
    return judged(solutions)


async def grown(unit: WorkUnit) -> UnitTables:
    growth = await run_unit(unit, SeededPolicy(p=0.7, wrong_answers=2), SeededPRM())
    row = search_columns(unit, "small") | unit_costs(growth, 10, 10) | {"status": "done"}
    return UnitTables(
        unit,
        node_table(unit, "small", growth.tree),
        solution_table(unit, "small", growth),
        pa.Table.from_pylist([row], UNITS),
    )


def plans_of(recipe: Recipe) -> list[WholeSearch | RoutedSearch]:
    plain = [WholeSearch(config, 4) for config in recipe.search_configs("small")]
    routed = []
    for search, budget in recipe.routed_of("small"):
        chooser = chooser_of(recipe, search, "small", budget)
        base = routed_search(recipe, "small", search, budget, None).base  # type: ignore[arg-type]
        routed.append(RoutedSearch(search, budget, chooser, base, 4, judge))
    return [*plain, *routed]


def dispatched(
    recipe: Recipe, folder: Path, last_first: bool
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """All problems through the dispatcher; units come back in one order or in the other."""
    plans, routes, solutions = plans_of(recipe), [ROUTES.empty_table()], []
    skipped: list[Problem] = []

    async def commit(problem: Problem, found: pa.Table) -> None:
        solutions.append(judged(found))
        routes.append(routes_rows(plans, "small", problem, solutions[-1]))

    log = CommitLog(storage_at(folder))
    recall = PolicyRecall(Recall(log), "small")

    async def run() -> None:
        async with RunWriter(log) as writer, asyncio.TaskGroup() as tasks:
            dispatch = Dispatch(PROBLEMS, plans, writer, commit, tasks, recall, skipped.append)
            while not dispatch.backlog.is_over:
                bundles = []
                while bundle := dispatch.backlog.take(4):
                    bundles.append(bundle)
                units = [unit for bundle in bundles for unit in bundle.units]
                for unit in reversed(units) if last_first else units:
                    dispatch.deliver(await grown(unit))
                for _ in range(20):
                    await asyncio.sleep(0)

    asyncio.run(run())
    assert not skipped
    units = pa.concat_tables(last_rows(log, "units"))
    return pa.concat_tables(routes), pa.concat_tables(solutions), units


def test_problems_are_routed_and_paid_whatever_comes_back_first(tmp_path: Path) -> None:
    routes = routes_file(tmp_path)
    recipe = parse_recipe(routed_recipe(routes, {"budget": [16, 64]}))
    order = [("problem_id", "ascending"), ("n", "ascending")]
    found, solutions, units = dispatched(recipe, tmp_path / "a", False)
    again, _, _ = dispatched(recipe, tmp_path / "b", True)
    assert found.sort_by(order).equals(again.sort_by(order))
    assert len(found) == 2 * len(PROBLEMS)
    assert len(set(found["route_strategy"].to_pylist())) > 1
    names = units["unit_id"].to_pylist()
    assert len(set(names)) == len(names)
    for row in found.to_pylist():
        check_row(row, units, solutions)


def check_row(row: dict[str, Any], units: pa.Table, solutions: pa.Table) -> None:
    """Costs are those of the units, and the votes those of the route."""
    ours = units.filter(
        pc.and_(
            pc.equal(units["problem_id"], row["problem_id"]),
            pc.ends_with(units["variant"], row["searched_as"]),
        )
    )
    assert pc.sum(ours["flops"]).as_py() == row["probe_flops"] + row["rest_flops"]
    assert row["probe_solutions"] + row["rest_solutions"] <= row["budget"]
    assert row["expected_correct"] is not None
    here = solutions.filter(
        pc.and_(
            pc.equal(solutions["problem_id"], row["problem_id"]),
            pc.ends_with(solutions["variant"], row["searched_as"]),
        )
    )
    if row["answer_class"] >= 0:
        assert row["answer_class"] in here["answer_class"].to_pylist()
    strategies = set(here["strategy"].to_pylist())
    assert strategies == {"best_of_n", row["route_strategy"]}


@pytest.mark.parametrize("routed", [False, True])
def test_the_last_bundle_is_known_if_no_search_asks_for_more(tmp_path: Path, routed: bool) -> None:
    """It may write ahead: cluster/admission.py."""
    recipe = parse_recipe(routed_recipe(routes_file(tmp_path), {"budget": 16}))
    plans = plans_of(recipe)
    plans = [plan for plan in plans if routed or plan.is_whole]
    log = CommitLog(storage_at(tmp_path / "run"))

    async def commit(problem: Problem, found: pa.Table) -> None:
        pass

    async def run() -> list[bool]:
        recall, lasts = PolicyRecall(Recall(log), "small"), list[bool]()
        async with RunWriter(log) as writer, asyncio.TaskGroup() as tasks:
            dispatch = Dispatch(PROBLEMS, plans, writer, commit, tasks, recall, print)
            while not dispatch.backlog.is_over:
                while bundle := dispatch.backlog.take(4):
                    lasts.append(bundle.is_last)
                    for unit in bundle.units:
                        dispatch.deliver(await grown(unit))
                await asyncio.sleep(0)
        return lasts

    lasts = asyncio.run(run())
    assert len(lasts) > 1
    assert lasts == [False] * (len(lasts) - 1) + [not routed]
