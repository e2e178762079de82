"""The vote table of a run: its cells by hand, by brute force, and how it is written."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from test_results import synthetic_run

from jobs.compat_columns import in_tree_order, voters
from jobs.curves import Search, answers_table
from jobs.intervals import accuracy_interval
from jobs.results import load_table
from jobs.vote_columns import vote_columns
from jobs.vote_table import COVERAGE, MAJORITY, ROWS, SCORED_ROWS, Column
from jobs.vote_table_text import print_votes
from search.compat_votes import VoteRule
from search.errors import RecipeError, StorageError
from search.schemas import SOLUTIONS

pytestmark = pytest.mark.unit

Row = dict[str, Any]
SAL, COTTS = VoteRule.SEARCH_AND_LEARN, VoteRule.COMPUTE_OPTIMAL_TTS


def solution(place: int, answer: str, rewards: list[float], **columns: Any) -> Row:
    """A sample of best of N; "1/2" and "0.5" are right, and mean the same."""
    right = answer in ("1/2", "0.5")
    verdict = "correct" if right else "incorrect" if answer else "no_answer"
    return {
        "problem_id": "p",
        "policy": "small",
        "strategy": "best_of_n",
        "n": 8,
        "branching": 1,
        "keep": 8,
        "variant": "",
        "subtree": place,
        "solution_id": f"{place}:0",
        "answer": answer,
        "answer_class": 0 if right else int(answer or -1),
        "verdict": verdict,
        "rewards": rewards,
    } | columns


EIGHT = [
    solution(0, "3", [0.9, 0.5]),
    solution(1, "1/2", [0.2, 0.4]),
    solution(2, "", [0.9, 0.9]),
    solution(3, "0.5", [0.3, 0.4]),
    solution(4, "3", [0.1, 0.2]),
    solution(5, "", [0.1, 0.1]),
    solution(6, "", [0.1, 0.1]),
    solution(7, "4", [0.6, 0.6]),
]


def write_run(folder: Path, rows: list[Row], strategies: tuple[str, ...] = ()) -> Path:
    """A run folder with these solutions alone."""
    folder.mkdir()
    table = pa.Table.from_pylist(rows, SOLUTIONS)
    pq.write_table(table, folder / "solutions.parquet")
    pq.write_table(answers_table(table, None, 1), folder / "answers.parquet")
    record = {"run_id": folder.name, "recipe": {"prm": {"model": "models/prm-7b"}}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def accuracies(column: Column) -> dict[str, float]:
    return {name: cell.accuracy for name, cell in column.cells.items()}


def at(columns: list[Column], n: int) -> dict[str, float]:
    [found] = [column for column in columns if column.n == n]
    return accuracies(found)


# By hand


def test_equivalent_answers_vote_together(tmp_path: Path) -> None:
    found = at(vote_columns(write_run(tmp_path / "run", EIGHT), None), 8)
    assert set(found) == set(ROWS)
    # Two classes of two ("3", one half) are tied; "4" has the best last and mean reward.
    assert found[MAJORITY] == 0.5
    assert (found["PRM-Last-Max"], found["PRM-Avg-Max"], found["PRM-Min-Max"]) == (0, 0, 0)
    assert found["PRM-Last-Vote"] == 1.0
    # Of the lowest rewards: 0.5 + 0.1 for "3", 0.2 + 0.3 for one half, 0.6 for "4".
    assert found["PRM-Min-Vote"] == 0.0
    assert found[COVERAGE] == 1.0


def test_equal_strings_vote_together_in_compute_optimal_tts(tmp_path: Path) -> None:
    columns = vote_columns(write_run(tmp_path / "run", EIGHT), COTTS)
    assert [column.n for column in columns] == [1, 2, 4, 8]
    full, two = at(columns, 8), at(columns, 2)
    assert set(full) == set(ROWS)
    # "3" has two votes and every other string one; its last rewards sum to 0.7.
    assert (full[MAJORITY], full["PRM-Last-Vote"], full["PRM-Last-Max"]) == (0, 0, 0)
    # Of the first two, "3" comes first and has the best last reward.
    assert (two[MAJORITY], two["PRM-Last-Max"], two["PRM-Min-Max"]) == (0, 0, 0)
    assert two[COVERAGE] == 1.0


def test_an_empty_answer_may_win_in_search_and_learn(tmp_path: Path) -> None:
    columns = vote_columns(write_run(tmp_path / "run", EIGHT), SAL)
    assert [column.n for column in columns] == [1, 2, 4, 8]
    full, four = at(columns, 8), at(columns, 4)
    assert list(full) == [MAJORITY, "PRM-Last-Max", "PRM-Last-Vote", COVERAGE]
    # Three empty answers: most frequent, best reward (0.9), largest sum (1.1 to 0.8).
    assert (full[MAJORITY], full["PRM-Last-Max"], full["PRM-Last-Vote"]) == (0, 0, 0)
    # Of the first four, one half has two; the empty one has 0.9, one half 0.8.
    assert (four[MAJORITY], four["PRM-Last-Max"], four["PRM-Last-Vote"]) == (1, 0, 0)


def test_first_means_the_order_of_the_tree_not_of_the_text() -> None:
    shared = {"strategy": "beam", "n": 16, "branching": 4, "keep": 4, "subtree": 0}
    rows = [
        solution(0, answer, [0.5], **shared, solution_id=name)
        for name, answer in (("0:10.1", "3"), ("0:2.3", "4"), ("0:2.12", "5"), ("0:2", "6"))
    ]
    ordered = in_tree_order(pa.Table.from_pylist(rows, SOLUTIONS))
    assert ordered.answers == ["6", "4", "5", "3"]


def test_who_votes_at_each_n() -> None:
    subtrees = [0, 0, 1, 1, 2, 2, 3, 3]
    rows = [
        solution(tree, "3", [0.5], solution_id=f"{tree}:{place}")
        for place, tree in enumerate(subtrees)
    ]
    eight = in_tree_order(pa.Table.from_pylist(rows, SOLUTIONS))
    dvts, beam = Search("small", "dvts", 8, 2, 1), Search("small", "beam", 8, 2, 4)
    assert voters(COTTS, dvts, eight) == {2: 2, 4: 4, 8: 8}
    assert voters(COTTS, dvts, eight.first(6)) == {2: 2, 4: 4}
    assert voters(COTTS, beam, eight.first(6)) == {8: 6}
    assert voters(SAL, dvts, eight) == {1: 1, 2: 2, 4: 4, 8: 8}
    assert voters(SAL, dvts, eight.first(6)) == {1: 1, 2: 2, 4: 4}
    assert voters(SAL, beam, eight.first(3)) == {1: 1, 2: 2, 4: 3, 8: 3}


def test_a_problem_that_lost_units_is_left_out_where_they_are_needed(tmp_path: Path) -> None:
    rows = EIGHT + [row | {"problem_id": "q"} for row in EIGHT[:5]]
    for rule in (SAL, COTTS, None):
        columns = vote_columns(write_run(tmp_path / str(rule), rows), rule)
        counts = {column.n: column.cells[COVERAGE].problems for column in columns}
        assert counts == {1: 2, 2: 2, 4: 2, 8: 1}


def test_intervals_are_those_over_problems(tmp_path: Path) -> None:
    right = [row | {"problem_id": f"r{place}"} for place in range(3) for row in EIGHT[1:2]]
    wrong = [row | {"problem_id": f"w{place}"} for place in range(5) for row in EIGHT[:1]]
    rows = [row | {"n": 1, "keep": 1} for row in right + wrong]
    for rule in (SAL, COTTS, None):
        [column] = vote_columns(write_run(tmp_path / str(rule), rows), rule)
        cell = column.cells["PRM-Last-Max"]
        values = np.repeat([1.0, 0.0], [3, 5])
        assert (cell.accuracy, cell.low, cell.high) == pytest.approx(accuracy_interval(values))
        assert (cell.problems, column.prm) == (8, "prm-7b")


# A whole run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


def test_the_table_repeats_the_answers_of_the_run(folder: Path) -> None:
    answers = load_table(folder, "answers")
    means = answers.filter(pc.is_null(answers["problem_id"])).to_pylist()
    kinds = {(str(r), str(v)): name for name, (r, v) in SCORED_ROWS.items()}
    columns = vote_columns(folder, None)
    places = {(column.strategy, column.n): column for column in columns}
    assert len(places) == len(columns)
    assert {s for s, _ in places} == {"majority", "best_of_n", "beam", "dvts"}
    for row in means:
        name = COVERAGE if row["vote"] == "pass" else kinds.get((row["reduction"], row["vote"]))
        cell = places[row["strategy"], row["n"]].cells[name or MAJORITY]
        assert cell.accuracy == row["expected_correct"]
        assert (cell.low, cell.high, cell.problems) == (row["ci_low"], row["ci_high"], 4)


@pytest.mark.parametrize("rule", list(VoteRule))
def test_a_published_vote_never_beats_coverage(folder: Path, rule: VoteRule) -> None:
    columns = vote_columns(folder, rule)
    assert {column.strategy for column in columns} == {"majority", "best_of_n", "beam", "dvts"}
    for column in columns:
        ceiling = column.cells[COVERAGE].accuracy
        assert all(cell.accuracy <= ceiling for cell in column.cells.values())
        assert column.cells[COVERAGE].problems == 4
    assert len({(column.strategy, column.n) for column in columns}) == len(columns)


# What is written


def shown(run: Path, *, compat: str | None = None, by_n: bool = False) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    print_votes([run], compat, by_n, None, console)
    return console.export_text()


def test_the_terminal_shows_a_row_a_vote_and_a_column_a_search(folder: Path) -> None:
    text = shown(folder)
    assert all(row in text for row in ROWS)
    heads = ("majority", "best_of_n", "beam", "dvts")
    assert all(text.count(head) == 1 for head in heads)
    assert "N = 4" not in text
    by_n = shown(folder, by_n=True)
    assert all(by_n.count(f"N = {n} ") >= 2 for n in (1, 2, 4, 8))
    assert "PRM-Min-Max" not in shown(folder, compat="search_and_learn")


def test_markdown_and_csv_hold_the_same_cells(folder: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    print_votes([folder], None, False, tmp_path / "new" / "votes.md", console)
    print_votes([folder], None, False, tmp_path / "votes.csv", console)
    lines = (tmp_path / "new" / "votes.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == list(ROWS)
    with (tmp_path / "votes.csv").open() as file:
        rows = list(csv.DictReader(file))
    written = {row["accuracy"] for row in rows}
    cells = [cell for line in table[2:] for cell in line.split("|")[2:-1] if cell.strip()]
    assert len(cells) == len(rows) == 3 * 10 + 2
    assert {cell.split()[0] for cell in cells} == {f"{100 * float(x):.1f}" for x in written}
    assert rows[0]["run"] == folder.name
    assert {row["prm"] for row in rows} == {"scripted"}


def test_several_runs_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", EIGHT)
    print_votes([folder, other], None, False, tmp_path / "votes.md", Console(quiet=True))
    head = (tmp_path / "votes.md").read_text().splitlines()[4]
    assert f"{folder.name} scripted scripted dvts N = 8 M = 4" in head
    assert "other prm-7b small best_of_n N = 8" in head


# What is refused


def refusal(error: type[Exception], runs: list[Path], **options: Any) -> str:
    arguments = {"compat": None, "by_n": False, "to": None} | options
    with pytest.raises(error) as caught:
        print_votes(runs, **arguments, console=Console(quiet=True))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_run_no_rewards_no_solutions(tmp_path: Path) -> None:
    assert "not a run folder" in refusal(StorageError, [tmp_path])
    rows = [row | {"strategy": "majority", "rewards": []} for row in EIGHT]
    majority = write_run(tmp_path / "majority", rows)
    assert "has no PRM rewards" in refusal(StorageError, [majority])
    assert "has no PRM rewards" in refusal(StorageError, [majority], compat="search_and_learn")
    empty = write_run(tmp_path / "empty", [])
    assert "has no solutions to vote on" in refusal(StorageError, [empty])


def test_unknown_rules_and_files(folder: Path, tmp_path: Path) -> None:
    line = refusal(RecipeError, [folder], compat="search_and_lern")
    assert line == "unknown --compat 'search_and_lern': did you mean 'search_and_learn'?"
    assert "end it in .md or .csv" in refusal(RecipeError, [folder], to=tmp_path / "votes.txt")
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "votes.md"
    assert "cannot write the vote table" in refusal(StorageError, [folder], to=blocked)
