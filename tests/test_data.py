"""Loaders: every row becomes one problem or one marked row, and bad sources get one line."""

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data import (
    BadProblem,
    DataSource,
    LoadedProblem,
    load_problems,
    reference_answer,
)
from search.errors import RecipeError
from search.problem import Problem

pytestmark = pytest.mark.unit

_DEFAULT_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
REAL_DATA = Path(os.environ.get("BRANCHWISE_DATA", _DEFAULT_DATA))


def write_lines(folder: Path, *rows: Any) -> str:
    """A JSONL file; rows that are text are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "problems.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def load(source: str, **options: Any) -> list[LoadedProblem]:
    return load_problems([DataSource(source=source, **options)])


def refusal(source: str, **options: Any) -> str:
    """The one line with which a source is refused."""
    with pytest.raises(RecipeError) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def errors(problems: list[LoadedProblem]) -> list[str]:
    """The error of each row, empty for a good one."""
    return [problem.error if isinstance(problem, BadProblem) else "" for problem in problems]


ROW = {"id": "a", "problem": "1 + 1?", "answer": "2"}


# Rows


def test_a_row_becomes_a_problem(tmp_path: Path) -> None:
    row = ROW | {"level": 3, "subject": "sums"}
    [problem] = load(write_lines(tmp_path, row))
    metadata = json.dumps({"level": 3, "subject": "sums"})
    assert problem == Problem("a", "1 + 1?", "2", metadata)


def test_usual_columns_are_found(tmp_path: Path) -> None:
    rows = [
        {"unique_id": "u", "question": "q1", "solution": "so \\boxed{\\frac{1}{2}}"},
        {"problem_id": 7, "text": "q2", "reference_answer": 3},
    ]
    first, second = load(write_lines(tmp_path, *rows))
    assert (first.problem_id, first.text, first.reference_answer) == ("u", "q1", "\\frac{1}{2}")
    assert json.loads(first.metadata) == {"worked_solution": "so \\boxed{\\frac{1}{2}}"}
    assert (second.problem_id, second.text, second.reference_answer) == ("7", "q2", "3")


def test_named_columns_are_used(tmp_path: Path) -> None:
    row = ROW | {"prompt": "2 + 2?", "gold": 4, "key": "k"}
    named = {"text_field": "prompt", "reference_field": "gold", "id_field": "key"}
    [problem] = load(write_lines(tmp_path, row), **named)
    assert (problem.problem_id, problem.text, problem.reference_answer) == ("k", "2 + 2?", "4")
    assert json.loads(problem.metadata) == ROW


def test_rows_without_an_id_are_named_by_file_and_row(tmp_path: Path) -> None:
    rows = [{"problem": "a", "answer": 1}, {"id": "", "problem": "b", "answer": 2}]
    problems = load(write_lines(tmp_path, *rows))
    assert [problem.problem_id for problem in problems] == ["problems-0000", "problems-0001"]


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (5, "5"),
        (2.5, "2.5"),
        (True, "True"),
        (Decimal("1.20"), "1.20"),
        (" 7 ", "7"),
        ("so \\boxed{1} or \\boxed{x^{2}}", "x^{2}"),
        ("6 * 3 = <<6*3=18>>18\n#### 18", "18"),
        ("a #### 1\n#### 1,234\n", "1,234"),
        (None, ""),
        ([1], ""),
        ("####", ""),
    ],
)
def test_reference_answers(value: Any, answer: str) -> None:
    assert reference_answer(value) == answer


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"id": "b", "answer": "2"}, "the row has no text"),
        ({"id": "b", "problem": " \n", "answer": "2"}, "the row has no text"),
        ({"id": "b", "problem": None, "answer": "2"}, "the row has no text"),
        ({"id": "b", "problem": 3, "answer": "2"}, "the text is a int, not text"),
        ({"id": "b", "problem": "?"}, "the row has no reference answer"),
        ({"id": "b", "problem": "?", "answer": "  "}, "the row has no reference answer"),
        ({"id": "b", "problem": "?", "answer": [1]}, "the reference answer is a list"),
        ({"id": "b", "problem": "\ud800", "answer": "2"}, "the text holds half a Unicode"),
        ({"id": "b", "problem": "?", "answer": "\ud800"}, "the reference answer holds half"),
        ("{'id': 'b'}", "line 2 is not valid JSON"),
        ('{"id": NaN}', "line 2 is not valid JSON: NaN is no JSON number"),
        ("[1, 2]", "line 2 is not a JSON object"),
        ("[" * 100_000, "line 2 is not valid JSON"),
        (ROW, "the id 'a' is that of an earlier row"),
    ],
)
def test_a_bad_row_is_marked_and_the_others_are_unharmed(
    tmp_path: Path, row: Any, error: str
) -> None:
    good = ROW | {"id": "c"}
    before, bad, after = load(write_lines(tmp_path, ROW, row, good))
    assert isinstance(before, Problem)
    assert isinstance(after, Problem)
    assert isinstance(bad, BadProblem)
    assert bad.error.startswith(error)
    assert "\n" not in bad.error
    json.dumps([bad.text, bad.problem_id], ensure_ascii=False).encode()


def test_a_line_that_is_not_utf8_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"problem": "\xff"}\n')
    assert errors(load(str(path)))[1].startswith("line 2 is not valid JSON")


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    problems = load(write_lines(tmp_path, ROW, "", "{", ""))
    assert [bool(error) for error in errors(problems)] == [False, True]
    assert errors(problems)[1].startswith("line 3 ")
    assert problems[1].problem_id == "problems-0001"


def test_duplicates_get_ids_that_no_row_has(tmp_path: Path) -> None:
    ids = ["a", "a", "a#2", "a", "a#2"]
    problems = load(write_lines(tmp_path, *(ROW | {"id": name} for name in ids)))
    names = [problem.problem_id for problem in problems]
    assert names == ["a", "a#3", "a#2", "a#4", "a#2#2"]
    assert [bool(error) for error in errors(problems)] == [False, True, False, True, True]


def test_a_duplicate_keeps_its_other_error(tmp_path: Path) -> None:
    problems = load(write_lines(tmp_path, ROW, ROW | {"problem": ""}))
    expected = "the row has no text; the id 'a' is that of an earlier row"
    assert errors(problems)[1] == expected


def test_ids_are_unique_across_sources(tmp_path: Path) -> None:
    source = DataSource(source=write_lines(tmp_path, ROW))
    problems = load_problems([source, source])
    assert [problem.problem_id for problem in problems] == ["a", "a#2"]


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "b#2#2"]), min_size=1))
def test_every_row_is_there_once_under_an_id_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    problems = load(write_lines(folder, *(ROW | {"id": name} for name in ids)))
    names = [problem.problem_id for problem in problems]
    assert len(set(names)) == len(names) == len(ids)
    good = [problem.problem_id for problem in problems if isinstance(problem, Problem)]
    assert good == list(dict.fromkeys(ids))


# Files


def test_size_limits_a_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path, *(ROW | {"id": number} for number in range(5)))
    assert [problem.problem_id for problem in load(path, size=2)] == ["0", "1"]
    assert len(load(path, size=9)) == 5


def test_paths_are_looked_up_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path, ROW)
    monkeypatch.chdir(tmp_path)
    assert len(load("problems.jsonl")) == 1


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    path.write_text(json.dumps(ROW), encoding="utf-8-sig")
    assert errors(load(str(path))) == [""]


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    rows = [ROW | {"score": float("nan")}, {"id": "b", "problem": None, "answer": "2"}]
    path = tmp_path / "problems.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = load(str(path))
    assert first == Problem("a", "1 + 1?", "2", '{"score": null}')
    assert isinstance(second, BadProblem)
    assert len(load(str(path), size=1)) == 1


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "."])
def test_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    source = str(folder if name == "." else tmp_path / name)
    assert refusal(source).startswith(f"data.0: there is no file {source!r}")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"no parquet at all")
    assert refusal(str(path)).startswith("data.0: cannot read")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(write_lines(tmp_path)).endswith("holds no problems")


def test_a_file_without_one_readable_row_is_refused(tmp_path: Path) -> None:
    message = refusal(write_lines(tmp_path, "[", "{", "]"))
    assert "holds no row that can be read: line 1 is not valid JSON" in message


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"text_field": "prompt"}, "has prompt: set text_field to one of answer, id, problem"),
        ({"reference_field": "gold"}, "has gold: set reference_field to one of"),
        ({"id_field": "key"}, "has key: set id_field to one of"),
    ],
)
def test_a_field_that_no_row_has_is_refused(
    tmp_path: Path, fields: dict[str, str], line: str
) -> None:
    assert line in refusal(write_lines(tmp_path, ROW), **fields)


def test_default_fields_that_no_row_has_are_refused(tmp_path: Path) -> None:
    message = refusal(write_lines(tmp_path, {"id": "a", "task": "?", "answer": "2"}))
    assert "has problem or question or text: set text_field to one of answer, id, task" in message


# reasoning_gym

CHAIN = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def test_task_problems_carry_what_the_scorer_needs() -> None:
    import reasoning_gym

    problems = load("reasoning_gym:chain_sum", size=3, seed=7, options=CHAIN)
    drawn = reasoning_gym.create_dataset("chain_sum", size=3, seed=7, **CHAIN)
    assert [p.problem_id for p in problems] == [f"chain_sum-7-000{place}" for place in range(3)]
    assert [(p.text, p.reference_answer) for p in problems] == [
        (entry["question"], entry["answer"]) for entry in drawn
    ]
    metadata = json.loads(problems[1].metadata)
    assert (metadata["source_dataset"], metadata["source_index"]) == ("chain_sum", 1)
    assert (metadata["options"], metadata["seed"]) == (CHAIN, 7)
    entry = {"answer": problems[1].reference_answer, "metadata": metadata}
    assert drawn.score_answer(problems[1].reference_answer, entry) == 1.0


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        ("chain_sun", {}, "data.0: unknown task 'chain_sun': did you mean 'chain_sum'?"),
        ("chain_sum", {"min_term": 3}, "unknown option 'min_term': did you mean 'min_terms'?"),
        ("chain_sum", {"min_terms": 5, "max_terms": 3}, "max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "five"}, "options of chain_sum do not work"),
        ("chain_sum", {"size": 3}, "size belongs beside options, not inside"),
    ],
)
def test_wrong_tasks_and_options_are_refused(task: str, options: dict[str, Any], line: str) -> None:
    assert line in refusal(f"reasoning_gym:{task}", size=2, options=options)


# The hub


def test_the_hub_is_asked_for_set_split_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((args, options))
        return [ROW, ROW | {"id": None}, ROW | {"id": "c"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = load("org/set", split="train", options={"name": "main"}, size=2)
    assert asked == [(("org/set",), {"name": "main", "split": "train"})]
    assert [problem.problem_id for problem in problems] == ["a", "set-0001"]


def test_any_failure_of_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **options: Any) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    line = "data.0: cannot load 'org/set' (ConnectionError: no network): check its id"
    assert refusal("org/set").startswith(line)


# Real data sets


@pytest.mark.parametrize(
    ("name", "count"), [("math500", 500), ("aime24", 30), ("amc23", 40), ("gsm8k_test", 1319)]
)
def test_real_sets_load_without_a_bad_row(name: str, count: int) -> None:
    path = REAL_DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent: set BRANCHWISE_DATA to the folder with the data sets")
    problems = load(str(path))
    assert len(problems) == count
    assert errors(problems) == [""] * count
