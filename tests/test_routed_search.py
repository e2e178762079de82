"""Compute-optimal searches by hand: what is run of a problem, paid, voted on and written."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_samples import samples_of_parts

from jobs.budgets import Budget, Measure
from jobs.curves import answers_table
from jobs.difficulty import Difficulty, measured
from jobs.intervals import accuracy_interval
from jobs.leaves import leaf_coverage
from jobs.results import load_table
from jobs.route_choosers import Chosen
from jobs.routed_search import RoutedSearch, most_solutions
from jobs.routed_settings import RoutedSettings
from jobs.routes import Route
from jobs.routes_rows import routes_rows
from jobs.routes_table import named_units, routed_answers
from search.config import Compat as System
from search.config import (
    CompatOption,
    SearchConfig,
    is_routed,
    is_uneven,
    variant_of,
    variant_settings,
)
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.rewards import Reduction
from search.rows import search_columns
from search.schemas import ANSWERS, ROUTES, SOLUTIONS, TABLES, UNITS
from search.votes import Vote

pytestmark = pytest.mark.unit

PROBLEM = Problem("p", "1 + 1", "2")
BASE = SearchConfig("best_of_n", 1, 1, 1, Reduction.LAST, 3, spending="routed=r,16solutions")
SETTINGS = RoutedSettings(strategy="compute_optimal", routes="r.yaml", budget=(16,))
SAMPLES = Route("best_of_n", 16, 1, Reduction.LAST, Vote.MAJORITY)
BEAM = Route("beam", 8, 4, Reduction.MIN, Vote.WEIGHTED, Reduction.LAST)
DVTS = Route("dvts", 12, 4, Reduction.LAST, Vote.MAX, Reduction.PROD, "lookahead=2")
RIGHT, WRONG, NONE = 0, 1, -1


@dataclass
class Script:
    """Always the same route; what was left to it is remembered."""

    route: Route
    probe: int = 4
    left: list[float] = field(default_factory=list)

    def choose(self, probe: pa.Table, left: Budget) -> Chosen:
        assert len(probe) == self.probe
        self.left.append(left.amount)
        return Chosen(self.route, 0.25, Difficulty.MEDIUM)

    def routes(self, budget: Budget) -> list[Route]:
        return [self.route]


@dataclass
class ScriptedRun:
    """Units answered at once: ten tokens and a thousand FLOPs a solution; some units fail."""

    failing: str = ""
    ran: list[WorkUnit] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, units: Sequence[WorkUnit]) -> pa.Table:
        self.ran += units
        failed = [bool(self.failing) and self.failing in unit.unit_id for unit in units]
        self.rows += [unit_row(u, error) for u, error in zip(units, failed, strict=True)]
        found = [solutions_of(u) for u, error in zip(units, failed, strict=True) if not error]
        return pa.concat_tables([SOLUTIONS.empty_table(), *found])

    @property
    def units(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, UNITS)


def unit_row(unit: WorkUnit, failed: bool) -> dict[str, Any]:
    row = search_columns(unit, "small") | {"status": "error" if failed else "done"}
    if failed:
        return row | {"solutions": 0}
    return row | {
        "solutions": unit.solutions,
        "generated_policy_tokens": 7 * unit.solutions,
        "computed_prefix_policy_tokens": unit.solutions,
        "wasted_policy_tokens": 0,
        "lookahead_policy_tokens": 0,
        "computed_prm_tokens": 2 * unit.solutions,
        "flops": 1000.0 * unit.solutions,
    }


def solutions_of(unit: WorkUnit) -> pa.Table:
    each = unit.solutions // (unit.stop - unit.first)
    rows = [
        search_columns(unit, "small")
        | {"subtree": subtree, "solution_id": f"{subtree}:{place}", "rewards": [0.5]}
        for subtree in range(unit.first, unit.stop)
        for place in range(each)
    ]
    return pa.Table.from_pylist(rows, SOLUTIONS)


async def judge(problem: Problem, solutions: pa.Table) -> pa.Table:
    return solutions


def routed(route: Route, budget: Budget | None = None, probe: int = 4) -> RoutedSearch:
    budget = budget or Budget(16)
    return RoutedSearch(SETTINGS, budget, Script(route, probe), BASE, 8, judge)


def searched(search: RoutedSearch, run: ScriptedRun, problem: Problem = PROBLEM) -> pa.Table:
    async def whole() -> pa.Table:
        return await search.finish(problem, await run(search.first_units(problem)), run)

    return asyncio.run(whole())


def graded(found: pa.Table, classes: Sequence[int], scores: Sequence[float] = ()) -> pa.Table:
    """The solutions with these answers, in order; class 0 is right."""
    rows = found.to_pylist()
    for place, (row, answer) in enumerate(zip(rows, classes, strict=True)):
        row["answer_class"], row["answer"] = answer, "" if answer == NONE else str(answer)
        row["verdict"] = "correct" if answer == RIGHT else "incorrect"
        row["rewards"] = [scores[place]] if scores else [0.5]
    return pa.Table.from_pylist(rows, SOLUTIONS)


# What is run


def test_a_probe_is_the_first_samples_of_a_plain_best_of_n() -> None:
    [unit] = routed(BEAM).first_units(PROBLEM)
    [plain, _] = partition(PROBLEM, SearchConfig("best_of_n", 8, 1, 8, Reduction.LAST, 3), 4)
    assert (unit.first, unit.stop, unit.solutions) == (0, 4, 4)
    assert (plain.first, plain.stop) == (0, 4)
    seeded = ("strategy", "run_seed", "limits", "sampling", "thinking", "compat")
    for name in seeded:
        assert getattr(unit.config, name) == getattr(plain.config, name)


def test_a_route_of_samples_writes_only_those_that_are_missing() -> None:
    search, run = routed(SAMPLES), ScriptedRun()
    found = searched(search, run)
    assert [(unit.first, unit.stop) for unit in run.ran] == [(0, 4), (4, 12), (12, 16)]
    assert found["subtree"].to_pylist() == list(range(16))
    # One search in the tables, whatever N it came to.
    assert {(unit.config.strategy, unit.config.n) for unit in run.ran} == {("best_of_n", 4)}
    taken = search.taken("p")
    assert taken is not None
    assert (taken.probe.solutions, taken.rest.solutions, taken.complete) == (4, 12, True)
    assert (taken.probe.tokens, taken.rest.tokens) == (40, 120)
    assert (taken.probe.flops, taken.rest.flops) == (4000.0, 12000.0)
    assert search.taken("p") is None


def test_another_route_is_run_beside_the_probe_with_all_its_settings() -> None:
    search, run = routed(DVTS), ScriptedRun()
    found = searched(search, run)
    rest = [unit.config for unit in run.ran[1:]]
    assert [(unit.first, unit.stop) for unit in run.ran[1:]] == [(0, 2), (2, 3)]
    assert {(c.strategy, c.n, c.branching, c.keep, c.lookahead) for c in rest} == {
        ("dvts", 12, 4, 1, 2)
    }
    assert {c.variant for c in rest} == {"lookahead=2 routed=r,16solutions"}
    assert found.num_rows == 4 + 12


def test_a_beam_keeps_by_the_reduction_of_its_route() -> None:
    run = ScriptedRun()
    searched(routed(BEAM), run)
    config = run.ran[-1].config
    assert (config.reduction, config.n, config.keep) == (Reduction.MIN, 8, 2)


def test_units_are_not_named_as_those_of_any_other_search() -> None:
    other = replace(routed(SAMPLES), base=replace(BASE, spending="routed=r,64solutions"))
    names: list[str] = []
    for search in (routed(SAMPLES), other):
        run = ScriptedRun()
        searched(search, run)
        names += [unit.unit_id for unit in run.ran]
    plain = [SearchConfig("best_of_n", n, 1, n, Reduction.LAST, 3) for n in (4, 16)]
    names += [unit.unit_id for config in plain for unit in partition(PROBLEM, config, 8)]
    assert len(set(names)) == len(names)


def test_a_smaller_vote_than_the_probe_costs_nothing_more() -> None:
    search, run = routed(replace(SAMPLES, n=2)), ScriptedRun()
    found = searched(search, run)
    taken = search.taken("p")
    assert taken is not None
    assert (len(run.ran), found.num_rows, taken.rest.solutions) == (1, 4, 0)


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        (Budget(16), 12),
        (Budget(100, Measure.TOKENS), 60),
        (Budget(3e3, Measure.FLOPS), -1000),
    ],
)
def test_what_the_probe_really_cost_is_paid_first(budget: Budget, left: float) -> None:
    search = routed(SAMPLES, budget)
    searched(search, ScriptedRun())
    assert isinstance(search.chooser, Script)
    assert search.chooser.left == [left]


def test_a_failed_probe_is_not_routed() -> None:
    search, run = routed(SAMPLES), ScriptedRun(failing="/0-4")
    assert searched(search, run).num_rows == 0
    assert len(run.ran) == 1
    assert search.taken("p") is None


def test_without_a_probe_the_whole_budget_goes_to_the_route() -> None:
    search, run = routed(BEAM, probe=0), ScriptedRun()
    found = searched(search, run)
    taken = search.taken("p")
    assert taken is not None
    assert [unit.config.strategy for unit in run.ran] == ["beam"]
    assert (found.num_rows, taken.probe.solutions, taken.rest.solutions) == (8, 0, 8)
    assert (taken.probe.tokens, taken.rest.tokens) == (0, 80)


def test_a_run_is_told_how_many_solutions_to_make_room_for() -> None:
    assert most_solutions(Script(SAMPLES), Budget(16)) == 4 + 16
    assert most_solutions(Script(BEAM, probe=0), Budget(16)) == 8


# Variants


@given(
    st.sampled_from([None, *System]),
    st.sets(st.sampled_from(list(CompatOption))),
    st.integers(0, 9),
    st.integers(1, 9),
    st.floats(0.01, 3.0),
)
def test_a_variant_is_read_as_it_was_written(
    compat: System | None, options: set[CompatOption], ahead: int, every: int, width: float
) -> None:
    chosen = tuple(sorted(options))
    name = variant_of(compat, chosen, ahead, every, width, "")
    config = replace(BASE, spending="", **variant_settings(name))
    assert config.variant == name
    found = (config.compat, config.compat_options, config.lookahead, config.score_every)
    assert found == (compat, chosen, ahead, every)
    assert config.width_temperature == width


def test_what_is_no_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="no setting 'stop'"):
        variant_settings("lookahead=2 stop=posterior")


def test_routed_rows_are_told_by_their_variant() -> None:
    assert is_routed("lookahead=2 routed=r,16solutions")
    assert is_uneven("routed=r,16solutions")
    assert not is_routed("lookahead=2 stop=posterior")


# The table


def row_of(search: RoutedSearch, solutions: pa.Table) -> dict[str, Any]:
    [row] = routes_rows([search], "small", PROBLEM, solutions).to_pylist()
    return row


def test_a_row_says_what_was_chosen_paid_and_answered() -> None:
    search = routed(BEAM)
    found = searched(search, ScriptedRun())
    # The probe says right; only the beam's eight vote: 0.9 + 0.9 for 1, 4 x 0.3 for 2.
    classes = [RIGHT] * 4 + [1, 1, 2, 2, 2, 2, NONE, NONE]
    scores = [1.0] * 4 + [0.9, 0.9, 0.3, 0.3, 0.3, 0.3, 1.0, 1.0]
    row = row_of(search, graded(found, classes, scores))
    assert row == {
        "problem_id": "p",
        "policy": "small",
        "strategy": "compute_optimal",
        "n": 16,
        "branching": 0,
        "keep": 0,
        "variant": "routes=r",
        "searched_as": "routed=r,16solutions",
        "routes": "r.yaml",
        "measure": "solutions",
        "budget": 16.0,
        "pass_at_1": 0.25,
        "difficulty": "medium",
        "route_strategy": "beam",
        "route_n": 8,
        "route_branching": 4,
        "route_reduction": "min",
        "route_vote": "weighted",
        "route_vote_reduction": "last",
        "route_variant": "",
        "probe_solutions": 4,
        "probe_tokens": 40,
        "probe_flops": 4000.0,
        "rest_solutions": 8,
        "rest_tokens": 80,
        "rest_flops": 8000.0,
        "overspent": False,
        "answer": "1",
        "answer_class": 1,
        "expected_correct": 0.0,
    }


@pytest.mark.parametrize(
    ("classes", "answer", "expected"),
    [
        ([0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0], "1", 0.0),
        ([0, 1] * 8, "0", 0.5),  # a tie is split evenly
        ([NONE] * 16, "", 0.0),
        ([NONE] * 15 + [0], "0", 1.0),
    ],
)
def test_all_samples_vote_where_the_route_goes_on(
    classes: list[int], answer: str, expected: float
) -> None:
    search = routed(SAMPLES)
    found = searched(search, ScriptedRun())
    row = row_of(search, graded(found, classes))
    assert (row["answer"], row["expected_correct"]) == (answer, expected)
    assert (row["rest_solutions"], row["route_vote_reduction"]) == (12, None)


def test_only_the_first_samples_vote_in_a_smaller_route() -> None:
    search = routed(replace(SAMPLES, n=2))
    found = searched(search, ScriptedRun())
    row = row_of(search, graded(found, [RIGHT, RIGHT, WRONG, WRONG]))
    assert (row["answer_class"], row["expected_correct"]) == (RIGHT, 1.0)


def test_solutions_of_other_searches_have_no_vote() -> None:
    search = routed(SAMPLES)
    found = graded(searched(search, ScriptedRun()), [RIGHT] * 16)
    plain = found.set_column(
        found.schema.get_field_index("variant"),
        SOLUTIONS.field("variant"),
        pa.array([""] * 16, pa.string()),
    )
    wrong = graded(plain, [WRONG] * 16)
    row = row_of(search, pa.concat_tables([wrong, wrong, found]))
    assert row["expected_correct"] == 1.0


def test_a_route_that_lost_units_has_no_answer() -> None:
    search = routed(SAMPLES)
    found = searched(search, ScriptedRun(failing="/12-16"))
    row = row_of(search, graded(found, [RIGHT] * 12))
    assert (row["answer"], row["answer_class"], row["expected_correct"]) == (None, None, None)
    assert len(routed_answers(pa.Table.from_pylist([row], ROUTES))) == 0


def test_overspending_is_told() -> None:
    search = routed(SAMPLES, Budget(100, Measure.TOKENS))
    found = searched(search, ScriptedRun())
    row = row_of(search, graded(found, [RIGHT] * 16))
    assert (row["overspent"], row["n"], row["measure"]) == (True, 0, "tokens")
    assert row["variant"] == "routes=r budget=100tokens"
    # A budget in tokens has no N: the point stands at the solutions that were spent.
    answers = routed_answers(pa.Table.from_pylist([row], ROUTES)).to_pylist()
    assert {(a["n"], a["searched_n"], a["vote"]) for a in answers} == {(16, 16, "route")}


# Accuracy


def routes_of(values: dict[str, float | None], **changes: Any) -> pa.Table:
    search = routed(SAMPLES)
    row = row_of(search, graded(searched(search, ScriptedRun()), [RIGHT] * 16)) | changes
    rows = [row | {"problem_id": p, "expected_correct": v} for p, v in values.items()]
    return pa.Table.from_pylist(rows, ROUTES)


def test_answers_are_a_row_a_problem_and_their_mean() -> None:
    table = routed_answers(routes_of({"b": 1.0, "a": 0.5, "c": 0.0, "d": None}))
    assert table.schema.equals(ANSWERS)
    rows = table.to_pylist()
    assert [(r["problem_id"], r["expected_correct"]) for r in rows] == [
        ("a", 0.5),
        ("b", 1.0),
        ("c", 0.0),
        (None, 0.5),
    ]
    import numpy as np

    _, low, high = accuracy_interval(np.array([0.5, 1.0, 0.0]))
    assert (rows[-1]["ci_low"], rows[-1]["ci_high"]) == (pytest.approx(low), pytest.approx(high))
    assert {(r["strategy"], r["n"], r["variant"], r["reduction"]) for r in rows} == {
        ("compute_optimal", 16, "routes=r", "none")
    }


def test_two_budgets_in_solutions_are_two_points_of_one_line() -> None:
    parts = [routes_of({"a": 1.0}, n=n, budget=float(n)) for n in (16, 64)]
    rows = routed_answers(pa.concat_tables(parts)).to_pylist()
    assert [(r["n"], r["variant"], r["problem_id"]) for r in rows] == [
        (16, "routes=r", "a"),
        (16, "routes=r", None),
        (64, "routes=r", "a"),
        (64, "routes=r", None),
    ]


# Beside other searches


def routed_and_plain() -> pa.Table:
    """A plain best_of_n, all wrong, and the rows of a routed one, all right."""
    run = ScriptedRun()
    ours = graded(searched(routed(SAMPLES), run), [RIGHT] * 16)
    config = SearchConfig("best_of_n", 4, 1, 4, Reduction.LAST, 3)
    [unit] = partition(PROBLEM, config, 8)
    return pa.concat_tables([ours, graded(solutions_of(unit), [WRONG] * 4)])


def test_curves_and_samples_of_other_searches_are_undisturbed(tmp_path: Path) -> None:
    solutions = routed_and_plain()
    filled = ("policy_tokens", "prm_tokens")
    rows = [
        row | dict.fromkeys(filled, 1) | {"stop_reason": "eos"} for row in solutions.to_pylist()
    ]
    solutions = pa.Table.from_pylist(rows, SOLUTIONS)
    alone = solutions.filter(pc.equal(solutions["variant"], ""))
    assert len(alone) == 4
    assert answers_table(solutions, None, 1).equals(answers_table(alone, None, 1))
    samples = samples_of_parts([solutions], None, 1.0)
    assert samples.equals(samples_of_parts([alone], None, 1.0))
    assert measured(solutions)["small", "p"].samples == 4


def test_leaves_leave_probes_and_routes_out(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(routed_and_plain(), tmp_path / "solutions.parquet")
    for name in ("nodes", "problems"):
        pq.write_table(TABLES[name].empty_table(), tmp_path / f"{name}.parquet")
    [coverage] = leaf_coverage(tmp_path)
    assert (coverage.search.variant, coverage.search.n) == ("", 4)
    assert coverage.at(4) == {"p": 0.0}


def test_units_are_shown_under_the_name_of_their_search() -> None:
    search, run = routed(BEAM), ScriptedRun()
    found = graded(searched(search, run), [RIGHT] * 12)
    routes = routes_rows([search], "small", PROBLEM, found)
    named = named_units(run.units, routes)
    assert named.schema.equals(UNITS)
    names = ("strategy", "n", "branching", "keep", "variant")
    assert {tuple(row[name] for name in names) for row in named.to_pylist()} == {
        ("compute_optimal", 16, 0, 0, "routes=r")
    }
    assert named["solutions"].to_pylist() == [4, 8]


def test_a_run_from_before_the_table_has_no_rows_of_it(tmp_path: Path) -> None:
    assert load_table(tmp_path, "routes").equals(ROUTES.empty_table())
