"""Leaves that are no solutions, what selection loses, and both by hand and by brute force."""

import asyncio
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_results import PROBLEM_SET, RECIPE, synthetic_run

from jobs.curves import answers_table
from jobs.intervals import accuracy_interval
from jobs.leaves import LeafCoverage, leaf_coverage, left_out
from jobs.recipe import parse_recipe
from jobs.report import write_report
from jobs.reported_run import Choice, correct_by_problem, read_run
from jobs.results import load_table
from jobs.selection import Selection, at_full_n, selections
from search.answers import boxed_answer
from search.config import SearchConfig
from search.partition import partition, run_unit
from search.problem import Problem
from search.rewards import Reduction
from search.schemas import NODES, PROBLEMS, SOLUTIONS, TABLES, UNITS
from search.scripted import SeededPolicy, SeededPRM
from search.votes import Vote

pytestmark = pytest.mark.unit

Row = dict[str, Any]
CHOICE = Choice(Reduction.LAST, Vote.MAX)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def coverages(folder: Path) -> list[LeafCoverage]:
    return leaf_coverage(folder)


# Against trees that are grown again


def right_leaves(problem: Problem, config: SearchConfig) -> tuple[list[bool], int]:
    """For each subtree whether a finished node is right; and how many are no solutions."""
    [unit] = partition(problem, config, config.n)
    tree = asyncio.run(run_unit(unit, SeededPolicy(), SeededPRM())).tree
    ended = [node for node in range(len(tree)) if tree.ends_solution(node)]
    right = {tree.subtrees[node] for node in ended if boxed_answer(tree.text(node)) == "42"}
    counted = {solution.node for solution in tree.solutions}
    return [place in right for place in sorted(set(tree.subtrees))], len(set(ended) - counted)


def test_leaf_coverage_is_that_of_the_trees(coverages: list[LeafCoverage]) -> None:
    dropped = 0
    for config in parse_recipe(RECIPE).search_configs():
        [found] = [
            coverage
            for coverage in coverages
            if (coverage.search.strategy, coverage.search.n) == (config.strategy, config.n)
        ]
        leaves = [right_leaves(problem, config) for problem in PROBLEM_SET]
        assert found.left_out == sum(count for _, count in leaves)
        assert found.ungraded == 0
        dropped += found.left_out
        for problem, (right, _) in zip(PROBLEM_SET, leaves, strict=True):
            for k, n in zip(found.search.ks, found.search.ns, strict=True):
                expected = np.mean([any(some) for some in combinations(right, k)])
                assert found.at(n)[problem.problem_id] == pytest.approx(expected)
    assert dropped > 0


def test_leaves_cover_at_least_what_solutions_do(
    folder: Path, coverages: list[LeafCoverage]
) -> None:
    rows = load_table(folder, "answers")
    rows = rows.filter(pc.and_(pc.equal(rows["vote"], "pass"), pc.is_valid(rows["problem_id"])))
    for row in rows.to_pylist():
        [coverage] = [
            each
            for each in coverages
            if (each.search.strategy, each.search.n) == (row["strategy"], row["searched_n"])
        ]
        leaves = coverage.at(row["n"])[row["problem_id"]]
        assert leaves >= row["expected_correct"] - 1e-12
        if row["strategy"] in ("majority", "best_of_n"):
            assert leaves == pytest.approx(row["expected_correct"])


# By hand


def node(place: str, parent: str, text: str, stop: str, **columns: Any) -> Row:
    return {
        "problem_id": "p",
        "policy": "small",
        "strategy": "beam",
        "n": 4,
        "branching": 2,
        "keep": 2,
        "variant": "",
        "unit_id": "p/beam",
        "subtree": 0,
        "node_id": place,
        "parent_id": parent,
        "text": text,
        "stop_reason": stop,
    } | columns


TREE = [
    node("0:0", "0:", "a", "delimiter"),
    node("0:1", "0:", "b \\boxed{8}", "eos"),
    node("0:2", "0:", "c \\boxed{1/2}", "eos"),
    node("0:3", "0:", "d \\boxed{\\sqrt", "delimiter"),
    node("0:0.0", "0:0", "e \\boxed{8}", "eos"),
    node("0:0.1", "0:0", "f", "max_steps"),
    node("0:3.0", "0:3", "2}", "eos"),
]


def tree_run(folder: Path, reference: str, verdicts: dict[str, str]) -> Path:
    """A beam whose solutions are its last two leaves but one, graded as told."""
    folder.mkdir()
    solutions = [
        {name: value for name, value in leaf.items() if name in SOLUTIONS.names}
        | {"solution_id": leaf["node_id"], "answer": answer, "verdict": verdicts[answer]}
        | {"answer_class": 0 if verdicts[answer] == "correct" else 1, "rewards": [0.5]}
        for leaf, answer in zip(TREE[4:6], ("8", ""), strict=True)
    ]
    problem = {"problem_id": "p", "text": "?", "reference_answer": reference, "metadata": "{}"}
    tables = {
        "nodes": pa.Table.from_pylist(TREE, NODES),
        "solutions": pa.Table.from_pylist(solutions, SOLUTIONS),
        "problems": pa.Table.from_pylist([problem], PROBLEMS),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


WRONG = {"8": "incorrect", "": "no_answer"}


def test_dropped_leaves_are_found_with_the_answer_of_their_path(tmp_path: Path) -> None:
    run = tree_run(tmp_path / "run", "5", WRONG)
    found = left_out(run, load_table(run, "solutions")).sort_by("node_id")
    assert found["node_id"].to_pylist() == ["0:1", "0:2", "0:3.0"]
    assert found["answer"].to_pylist() == ["8", "1/2", "\\sqrt2"]


@pytest.mark.parametrize(
    ("reference", "eight", "covered", "ungraded"),
    [
        # 0.5 is seen to be 1/2; whether it is the root of 2 nobody says.
        ("0.5", "incorrect", 1.0, 1),
        # The 8 among the solutions says what the dropped 8 is.
        ("2^3", "correct", 1.0, 2),
        # The dropped answers differ from 5 as numbers, but for the root.
        ("5", "incorrect", 0.0, 1),
        ("\\sqrt2", "incorrect", 1.0, 1),
    ],
)
def test_leaves_are_graded_by_what_is_known(
    tmp_path: Path, reference: str, eight: str, covered: float, ungraded: int
) -> None:
    run = tree_run(tmp_path / "run", reference, WRONG | {"8": eight})
    [found] = leaf_coverage(run)
    assert (found.left_out, found.ungraded) == (3, ungraded)
    assert found.at(4) == {"p": covered}


def test_a_run_without_solutions_has_no_coverage(tmp_path: Path) -> None:
    run = tree_run(tmp_path / "run", "5", WRONG)
    pq.write_table(SOLUTIONS.empty_table(), run / "solutions.parquet")
    assert leaf_coverage(run) == []


# What selection loses


@pytest.fixture(scope="module")
def found(folder: Path, coverages: list[LeafCoverage]) -> list[Selection]:
    return selections(read_run(folder), CHOICE, coverages)


def test_every_point_stands_between_its_baselines_and_ceilings(found: list[Selection]) -> None:
    assert {(each.point.strategy, each.point.n) for each in found} == {
        *(("majority", n) for n in (1, 2, 4, 8)),
        *(("best_of_n", n) for n in (1, 2, 4, 8)),
        *(("beam", n) for n in (4, 8)),
        *(("dvts", n) for n in (4, 8)),
    }
    for each in found:
        assert each.point.expected_correct <= each.coverage.expected_correct + 1e-12
        assert each.coverage.expected_correct <= each.leaves + 1e-12
        assert (each.majority.vote, each.coverage.vote) == ("majority", "pass")
        assert {each.majority.n, each.coverage.n} == {each.point.n}
        assert (each.single.n, each.single.policy) == (1, each.point.policy)
        assert each.gap == pytest.approx(each.leaves - each.point.expected_correct)
        assert 0 <= each.low <= each.gap + 1e-12 <= each.high + 1e-9 <= 1 + 1e-9


def test_gaps_are_paired_by_problem(
    folder: Path, coverages: list[LeafCoverage], found: list[Selection]
) -> None:
    run = read_run(folder)
    for each in at_full_n(found):
        point = each.point
        correct = correct_by_problem(run.answers, point)
        [leaves] = [
            coverage.at(point.n)
            for coverage in coverages
            if (coverage.search.strategy, coverage.search.n) == (point.strategy, point.n)
        ]
        gaps = np.array([leaves[problem] - correct[problem] for problem in sorted(correct)])
        expected = accuracy_interval(gaps)
        assert (each.gap, each.low, each.high) == pytest.approx(expected)


def test_at_full_n_is_one_a_search(found: list[Selection]) -> None:
    full = at_full_n(found)
    assert sorted((each.point.strategy, each.point.n) for each in full) == [
        ("beam", 8),
        ("best_of_n", 8),
        ("dvts", 8),
        ("majority", 8),
    ]


def test_the_report_shows_what_selection_loses(folder: Path, tmp_path: Path) -> None:
    files = write_report([folder], tmp_path, CHOICE.reduction, CHOICE.vote)
    text = files.markdown.read_text()
    assert "![What is lost in selection, a panel for each search](selection.png)" in text
    [table] = [part for part in text.split("### ") if part.startswith("What is lost in selection")]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| scripted")]
    assert [line[2].strip() for line in lines] == ["beam", "best_of_n", "dvts", "majority"]
    for line in lines:
        selected, covered, leaves, lost = (float(line[place]) for place in (6, 7, 8, 9))
        assert selected <= covered <= leaves
        assert lost == pytest.approx(leaves - selected, abs=0.11)
    assert "nobody graded" not in text
    svg = files.selection_svg.read_text()
    assert svg.count("scripted: ") >= 4
    assert files.selection_png.stat().st_size > 10_000


def test_leaves_that_nobody_graded_are_told(tmp_path: Path) -> None:
    run = tree_run(tmp_path / "run", "5", WRONG)
    solutions = load_table(run, "solutions")
    pq.write_table(answers_table(solutions, None, 1), run / "answers.parquet")
    pq.write_table(units_of_one_search(), run / "units.parquet")
    for name in ("samples", "stops"):
        pq.write_table(TABLES[name].empty_table(), run / f"{name}.parquet")
    (run / "run.json").write_text(RECORD)
    text = write_report([run], tmp_path / "report").markdown.read_text()
    assert "Of the dropped leaves 1 have an answer that no solution of the run has" in text


RECORD = """{"run_id": "run", "recipe": {"policies": [{"name": "small"}]}, "recipe_digest": "d",
"versions": {}, "git_revision": "", "started_at": "", "finished_at": "", "seeds": {"run": 1}}"""


def units_of_one_search() -> pa.Table:

    row = {name: TREE[0][name] for name in UNITS.names if name in TREE[0]}
    numbers = [field.name for field in UNITS if pa.types.is_integer(field.type)]
    counts = {name: 0 for name in numbers if name not in row}
    row |= counts | {"status": "done", "solutions": 2, "seconds": 1.0, "flops": 0.0}
    return pa.Table.from_pylist([row], UNITS)
