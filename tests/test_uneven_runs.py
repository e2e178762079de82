"""Real Ray: runs that stop early or divide their budget, beside a full run of the same searches."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.cli import app
from jobs.driver import run_recipe
from jobs.recipe import parse_recipe
from jobs.report import write_report
from jobs.results import Run, load_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(600),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

PROBLEMS, N = 12, 32
STOP = {"rule": "vote_margin", "threshold": 0.4, "at_least": 8, "every": 8, "audit": 0.5}
SEARCHES: dict[str, dict[str, Any]] = {
    "full": {"strategy": "best_of_n", "n": N},
    "stopped": {"strategy": "best_of_n", "n": N, "stop": STOP | {"audit": 0.0}},
    "audited": {"strategy": "best_of_n", "n": N, "stop": STOP},
    "extra": {"strategy": "best_of_n", "n": N, "stop": STOP | {"audit": 0, "most_extra": 16}},
    "divided": {"strategy": "best_of_n", "n": N, "allocation": {"probe": 8, "strength": 3.0}},
    "divided dvts": {"strategy": "dvts", "n": N, "allocation": {"probe": 8, "success": "graded"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, no_ray_token: None) -> Path:
    """One run of all searches, over problems of which the policy solves about half."""
    folder = tmp_path_factory.mktemp("uneven")
    rows = ({"id": f"p{i}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(PROBLEMS))
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake = {"model": "fake", "engine": "fake"}
    recipe = {
        "name": "uneven",
        "data": {"source": str(folder / "problems.jsonl")},
        "policies": [{**fake, "name": "fake", "options": {"p": 0.8, "wrong_answers": 3}}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": list(SEARCHES.values()),
        "limits": {"max_steps": 9, "max_step_tokens": 60, "max_solution_tokens": 400},
        "work": {"solutions_per_unit": 8},
        "runs_folder": str(folder / "runs"),
    }
    return run_recipe(parse_recipe(recipe), None, Console(quiet=True)).folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Run]:
    return load_run(folder)


def rows_of(table: pa.Table, search: str) -> pa.Table:
    """The rows of one of the searches."""
    document = {"name": "x", "data": {"source": "reasoning_gym:chain_sum", "size": 1}}
    fake = {"model": "fake", "engine": "fake"}
    parts = {"policies": [fake], "prm": {**fake, "family": "qwen2.5-math-prm"}}
    recipe = parse_recipe(document | parts | {"searches": [SEARCHES[search]]})
    [config] = recipe.search_configs()
    same = pc.and_(
        pc.equal(table["variant"], config.variant), pc.equal(table["strategy"], config.strategy)
    )
    return table.filter(same)


def by_problem(run: Run, search: str) -> dict[str, list[str]]:
    """Texts of solutions by problem, in the order of their subtrees."""
    rows = rows_of(run.solutions, search).sort_by("subtree").to_pylist()
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["problem_id"], []).append(row["text"])
    return found


def test_a_stopped_problem_has_the_first_solutions_of_a_full_one(run: Run) -> None:
    full, stopped = by_problem(run, "full"), by_problem(run, "stopped")
    assert set(full) == set(stopped)
    assert all(len(texts) == N for texts in full.values())
    assert all(texts == full[name][: len(texts)] for name, texts in stopped.items())
    lengths = {len(texts) for texts in stopped.values()}
    assert min(lengths) < N
    assert all(length % 8 == 0 for length in lengths)
    stops = {row["problem_id"]: row for row in rows_of(run.stops, "stopped").to_pylist()}
    for name, texts in stopped.items():
        assert stops[name]["solutions"] == len(texts) == (stops[name]["decided_at"] or N)


def test_audited_problems_run_to_the_end_and_note_where_they_had_settled(run: Run) -> None:
    stopped = {row["problem_id"]: row for row in rows_of(run.stops, "stopped").to_pylist()}
    audited = rows_of(run.stops, "audited").to_pylist()
    assert 0 < sum(row["audited"] for row in audited) < PROBLEMS
    for row in audited:
        assert row["decided_at"] == stopped[row["problem_id"]]["decided_at"]
        assert row["solutions"] == (N if row["audited"] else row["decided_at"] or N)


def test_what_settled_problems_saved_goes_to_undecided_ones_in_order(run: Run) -> None:
    stopped = {row["problem_id"]: row for row in rows_of(run.stops, "stopped").to_pylist()}
    extra, pool = by_problem(run, "extra"), 0
    for place in range(PROBLEMS):
        name = f"p{place}"
        if stopped[name]["decided_at"] is not None:
            pool += N - stopped[name]["decided_at"]
        else:
            granted = min(16, pool)
            pool -= granted
            assert N <= len(extra[name]) <= N + granted
    assert any(len(texts) > N for texts in extra.values())


@pytest.mark.parametrize(("search", "group"), [("divided", 1), ("divided dvts", 4)])
def test_a_divided_budget_is_spent_to_the_end(run: Run, search: str, group: int) -> None:
    counts = Counter({name: len(texts) for name, texts in by_problem(run, search).items()})
    assert counts.total() == N * PROBLEMS
    assert min(counts.values()) >= 8
    assert all(count % group == 0 for count in counts.values())
    assert len(set(counts.values())) > 1


def test_each_search_has_its_accuracy(run: Run) -> None:
    for search in SEARCHES:
        rows = rows_of(run.answers, search)
        means = rows.filter(pc.is_null(rows["problem_id"])).to_pylist()
        ns = {row["n"] for row in means}
        assert ns == ({N} if search != "full" else {1, 2, 4, 8, 16, 32})
        at_n = [row for row in means if row["n"] == N and row["vote"] == "weighted"]
        assert all(0 < row["expected_correct"] <= 1 for row in at_n)


def test_the_report_says_what_stopping_saved_and_changed(folder: Path, tmp_path: Path) -> None:
    text = write_report([folder], tmp_path).markdown.read_text()
    assert "### Stopping early" in text
    assert "vote_margin" in text.partition("### Stopping early")[2]


def test_the_rule_can_be_replayed_on_the_full_search(folder: Path, run: Run) -> None:
    options = ["--rule", "vote_margin", "--threshold", "0.4", "--at-least", "8", "--every", "8"]
    shown = CliRunner().invoke(app, ["stopping", str(folder), *options], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    stops = rows_of(run.stops, "stopped")["solutions"].to_pylist()
    saved = 1 - sum(stops) / (N * PROBLEMS)
    line = next(line for line in shown.output.splitlines() if "best_of_n N=32" in line)
    assert f"{saved:.1%}" in line
