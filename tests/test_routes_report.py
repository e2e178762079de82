"""The section of a report on compute-optimal searches, on a run written by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_report import write_run

from jobs.budgets import Budget, Measure
from jobs.curves import Search, accuracy_at, solutions_by_problem
from jobs.report import write_report
from jobs.reported_run import Choice, read_run
from jobs.results import load_table
from jobs.routes_report import RoutedReport, routed_reports
from jobs.routes_table import routed_answers
from search.rewards import Reduction
from search.schemas import ROUTES, UNITS
from search.votes import Vote

pytestmark = pytest.mark.unit

CHOICE = Choice(Reduction.LAST, Vote.WEIGHTED)
PROBLEMS, N = 20, 16
HARD = {"difficulty": "hard", "pass_at_1": 0.05, "rest_solutions": 12, "rest_tokens": 900}
EASY = {"difficulty": "easy", "pass_at_1": 0.85, "rest_solutions": 0, "rest_tokens": 0}


def row(place: int, **changes: Any) -> dict[str, Any]:
    """Even problems are easy and right with the probe alone, odd ones hard and half right."""
    easy = place % 2 == 0
    named = {
        "branching": 0,
        "keep": 0,
        "variant": "routes=r",
        "searched_as": "routed=r,16solutions",
    }
    route = {
        "route_strategy": "best_of_n",
        "route_n": 4 if easy else 16,
        "route_branching": 1,
        "route_reduction": "last",
        "route_vote": "majority" if easy else "weighted",
        "route_vote_reduction": None if easy else "min",
        "route_variant": "",
    }
    return (
        {"problem_id": f"p{place:03}", "policy": "tiny", "strategy": "compute_optimal", "n": 16}
        | named
        | {"routes": "r.yaml", "measure": "solutions", "budget": 16.0}
        | {"probe_solutions": 4, "probe_tokens": 300, "probe_flops": 0.0, "rest_flops": 0.0}
        | route
        | (EASY if easy else HARD)
        | {"answer": "0", "answer_class": 0, "expected_correct": 1.0 if easy else 0.5}
        | {"overspent": False}
        | changes
    )


def run_with(folder: Path, rows: list[dict[str, Any]], n: int = N) -> Path:
    """A run with a plain best_of_n and these rows of `routes`."""
    run = write_run(folder, {"tiny": 0.4}, [("best_of_n", n, 1)], PROBLEMS)
    routes = pa.Table.from_pylist(rows, ROUTES)
    pq.write_table(routes, run / "routes.parquet")
    answers = pa.concat_tables([load_table(run, "answers"), routed_answers(routes)])
    pq.write_table(answers, run / "answers.parquet")
    units = load_table(run, "units").to_pylist()
    ours = units[0] | {"variant": "routed=r,16solutions", "n": 4, "unit_id": "p000/routed"}
    pq.write_table(pa.Table.from_pylist([*units, ours], UNITS), run / "units.parquet")
    return run


def report_of(run: Path) -> RoutedReport:
    [report] = routed_reports(read_run(run), CHOICE)
    return report


def plain_accuracy(run: Path, n: int) -> np.ndarray[Any, Any]:
    """What n of best_of_n's samples are worth, problem by problem."""
    search = Search("tiny", "best_of_n", N, 1, N)
    place = search.cells.index(("last", "weighted"))
    return np.array(
        [
            accuracy_at(search, problem, rows, 1, [n])[0, place]
            for _, problem, rows in solutions_by_problem(load_table(run, "solutions"))
        ]
    )


def test_costs_and_accuracy_are_means_over_problems(tmp_path: Path) -> None:
    report = report_of(run_with(tmp_path / "run", [row(i) for i in range(PROBLEMS)]))
    assert (report.policy, report.name, report.budget) == ("tiny", "routes=r", Budget(16))
    assert (report.problems, report.probe, report.cost) == (PROBLEMS, 4.0, 10.0)
    assert report.accuracy[0] == pytest.approx(0.75)
    assert report.accuracy[1] < 0.75 < report.accuracy[2]
    assert report.overspent == 0.0
    assert {place: len(rows) for place, rows in report.routes.items()} == {
        ("easy", "best_of_n N=4, majority"): 10,
        ("hard", "best_of_n N=16, min weighted"): 10,
    }


def test_best_of_n_stands_beside_it_at_the_same_mean_cost(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", [row(i) for i in range(PROBLEMS)])
    beside = report_of(run).beside
    assert beside is not None
    plain = plain_accuracy(run, 10)
    ours = np.array([row(i)["expected_correct"] for i in range(PROBLEMS)])
    assert (beside.n, beside.cost) == (10, 10.0)
    assert beside.accuracy == pytest.approx(plain.mean())
    assert beside.difference == pytest.approx((ours - plain).mean())
    assert beside.low < beside.difference < beside.high


def test_tokens_are_compared_by_what_a_sample_cost(tmp_path: Path) -> None:
    changes = {"measure": "tokens", "budget": 1000.0, "n": 0}
    rows = [row(i, **changes, overspent=i % 4 == 1) for i in range(PROBLEMS)]
    run = run_with(tmp_path / "run", rows)
    report = report_of(run)
    assert (report.cost, report.probe, report.overspent) == (750.0, 300.0, 0.25)
    assert report.budget == Budget(1000, Measure.TOKENS)
    units = load_table(run, "units").to_pylist()
    plain = [u for u in units if u["status"] == "done" and not u["variant"]]
    names = ("generated_policy_tokens", "computed_prefix_policy_tokens", "computed_prm_tokens")
    each = sum(u[name] for u in plain for name in names) / (N * PROBLEMS)
    assert report.beside is not None
    assert report.beside.n == int(750 / each)
    assert report.beside.cost == pytest.approx(report.beside.n * each)


def test_nothing_stands_beside_it_if_best_of_n_was_not_run_so_far(tmp_path: Path) -> None:
    report = report_of(run_with(tmp_path / "run", [row(i) for i in range(PROBLEMS)], n=8))
    assert report.beside is None


def test_problems_without_an_answer_are_left_out(tmp_path: Path) -> None:
    lost = dict.fromkeys(("answer", "answer_class", "expected_correct"))
    rows = [row(0, **lost), *(row(i) for i in range(1, PROBLEMS))]
    assert report_of(run_with(tmp_path / "run", rows)).problems == PROBLEMS - 1


def test_the_report_names_the_search_once_and_never_its_parts(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", [row(i) for i in range(PROBLEMS)])
    text = write_report([run], tmp_path / "report").markdown.read_text()
    section = text.partition("### Compute-optimal search")[2].partition("\n### ")[0]
    assert "| tiny | routes=r | 16 solutions | 20 | 10 | 4 | 0.0 % | 75.0 (" in section
    assert (
        "| tiny | routes=r | 16 solutions | easy | best_of_n N=4, majority | 10 | 85.0 |" in section
    )
    assert (
        "| tiny | routes=r | 16 solutions | hard | best_of_n N=16, min weighted | 10 |" in section
    )
    assert "routed=" not in text
    assert "None" not in text
    assert "nan" not in text
    chapters = {part.partition("\n")[0]: part for part in text.split("### ")}
    assert "| tiny | compute_optimal routes=r | 0 |" in chapters["Accuracy at each N"]
    assert "compute_optimal" not in chapters["All reductions and votes at full N"]
    assert "compute_optimal" not in chapters["What is lost in selection"]
    assert "| tiny | compute_optimal routes=r | 16 | 0 |" in chapters["Costs"]


def test_a_run_without_one_has_no_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"tiny": 0.4}, [("best_of_n", N, 1)], PROBLEMS)
    text = write_report([run], tmp_path / "report").markdown.read_text()
    assert "Compute-optimal" not in text
    assert len(load_table(run, "routes")) == 0
    assert pc.all(pc.equal(load_table(run, "answers")["strategy"], "best_of_n")).as_py()
