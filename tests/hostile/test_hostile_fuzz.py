"""Fuzzing of the borders that read what others wrote. What it finds is kept as a case.

Derandomised: a run of the tests is the same every time.
"""

import asyncio
import copy
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_cases import assert_one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_recipes import GOOD
from test_results import synthetic_run
from test_routes import document
from written_steps import StepByStep

from actors.engines.cutting import Pieces, WrittenSolution
from actors.wire import ExpandItem
from jobs.data import BadProblem, DataSource, load_problems
from jobs.recipe import load_recipe, parse_recipe
from jobs.results import load_record, load_run, load_table, table_parts
from jobs.routes import load_artifact
from jobs.yaml_files import parse_yaml
from search.answers import boxed_answer
from search.config import Limits
from search.errors import RecipeError, StorageError
from search.problem import Problem
from search.protocols import Expansion, Sampling, StopReason
from search.schemas import TABLES
from search.thinking import Thinking
from search.whole_solutions import SolutionRequest, step_by_step

pytestmark = pytest.mark.unit

FUZZ = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | st.binary(max_size=6)
    | st.sampled_from(["beam", "fake", "vllm", "a/b", "../x", "~x/y", "\x1b[2J", "x.jsonl", "\0"])
)
KEYS = st.text(max_size=8) | st.sampled_from([*GOOD, "n", "model", "options", "limits", "work"])
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
YAML_PIECES = st.sampled_from(
    [
        "a",
        ": ",
        "- ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!bool ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "!!omap ",
        "'",
        '"',
        "|",
        ">",
        "?",
        "#",
        "%",
        "@",
        "1",
        "1e9",
        "0x",
        ":59",
        "2026-01-01",
        "---\n",
        "...\n",
        "\t",
        "\ufeff",
        "null",
        "~",
        ",",
    ]
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    if not isinstance(value, dict | list):
        return [path]
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(found for key, part in parts for found in paths_of(part, (*path, key)))]


def mutated(base: Any, draw: st.DrawFn) -> Any:
    """A good document with some of its places replaced, removed or renamed."""
    found = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([path for path in paths_of(found) if path]))
        node = found
        for key in place[:-1]:
            node = node[key]
        if isinstance(node, dict) and draw(st.booleans()):
            node[draw(KEYS)] = node.pop(place[-1])
        else:
            node[place[-1]] = draw(DOCUMENTS)
    return found


@st.composite
def mutated_recipes(draw: st.DrawFn) -> Any:
    return mutated(GOOD, draw)


@st.composite
def mutated_artifacts(draw: st.DrawFn) -> Any:
    return mutated(document(), draw)


def assert_recipe_or_one_line(read: Any) -> None:
    try:
        recipe = read()
    except RecipeError as error:
        assert_one_line(str(error), "")
    else:
        assert recipe.search_configs()


@FUZZ
@given(DOCUMENTS | mutated_recipes())
def test_any_document_is_a_recipe_or_one_line(found: Any) -> None:
    assert_recipe_or_one_line(lambda: parse_recipe(found))


@FUZZ
@given(found=mutated_recipes())
def test_any_recipe_file_is_a_recipe_or_one_line(found: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(found), encoding="utf-8")
    assert_recipe_or_one_line(lambda: load_recipe(path))


@FUZZ
@given(
    st.lists(YAML_PIECES, max_size=25).map("".join)
    | st.text(max_size=40)
    | st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
def test_any_text_is_yaml_or_one_line(text: str) -> None:
    try:
        parse_yaml(text)
    except ValueError as error:
        assert_one_line(str(error), "")


@FUZZ
@given(override=st.text(max_size=20) | st.lists(YAML_PIECES | KEYS, max_size=8).map("=".join))
def test_any_override_is_taken_or_one_line(override: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert_recipe_or_one_line(lambda: load_recipe(path, [override]))


@FUZZ
@given(found=mutated_artifacts() | DOCUMENTS)
def test_any_routes_file_is_one_or_one_line(found: Any, tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(yaml.safe_dump(found), encoding="utf-8")
    try:
        artifact = load_artifact(path)
    except RecipeError as error:
        assert_one_line(str(error), "")
    else:
        assert artifact.policies


# Problem rows

JSON_PIECES = st.sampled_from(
    [
        '{"id": "b", ',
        '"problem": ',
        '"answer": ',
        '"?"',
        ", ",
        "}",
        "[",
        "]",
        "1",
        "1e999",
        "NaN",
        '"\\ud800"',
        "null",
        "true",
        '"\\u0000"',
        "\\",
        "\ufeff",
        '"####"',
        '"\\\\boxed{}"',
        "-",
        " ",
    ]
)
LINES = st.binary(max_size=40) | st.lists(JSON_PIECES, max_size=12).map(
    lambda x: "".join(x).encode()
)


@FUZZ
@given(lines=st.lists(LINES.map(lambda line: line.replace(b"\n", b" ")), min_size=1, max_size=5))
def test_any_line_is_a_problem_or_a_marked_row(lines: list[bytes], tmp_path: Path) -> None:
    good = b'{"id": "good", "problem": "1 + 1?", "answer": "2"}'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, *lines]))
    first, *rows = load_problems([DataSource(source=str(path))])
    assert first == Problem("good", "1 + 1?", "2", "{}")
    assert len(rows) == sum(bool(line.strip()) for line in lines)
    assert len({row.problem_id for row in [first, *rows]}) == 1 + len(rows)
    for row in rows:
        json.loads(row.metadata)
        if isinstance(row, BadProblem):
            assert_one_line(row.error, "")


# Steps

VOCABULARY = [
    b"a",
    b"\n",
    b"\n\n",
    b".\n",
    b"\nab cd",
    b"\n\n\n",
    b"\xe2",
    b"\x82",
    b"\xac",
    b"\xf0\x9f",
    b"",
    b"\\boxed{",
    b"1}",
    b"{",
    b"}",
    b"<end>\n",
    b" ",
]
END = len(VOCABULARY)


def text_of(ids: Sequence[int]) -> str:
    return b"".join(VOCABULARY[each] for each in ids if each != END).decode(errors="replace")


async def nothing(item: ExpandItem) -> Expansion:
    raise AssertionError(f"asked for more after {item.path}")


def written(ids: Sequence[int], pieces: Pieces) -> WrittenSolution:
    return WrittenSolution(ids, [-1.0] * len(ids), ids[-1] == END, 0, 0, pieces, nothing)


@settings(FUZZ, max_examples=800)
@given(
    st.lists(st.integers(0, END - 1), max_size=90),
    st.integers(1, 5),
    st.integers(1, 60),
    st.sampled_from(["\n\n", "\n", "\n\n\n", "\u20ac", "a\n", ".\n\nab", "\U0001f600"]),
    st.booleans(),
)
def test_steps_are_cut_where_they_would_have_ended(
    text: list[int], steps: int, step_tokens: int, delimiter: str, boxed: bool
) -> None:
    limits = Limits(steps, step_tokens, 80, boxed)
    sampling = Sampling(delimiter=delimiter)
    asked = SolutionRequest("1", "p", "best_of_n", 3, 0, sampling, limits)
    ids = [*text, END]
    whole = written(ids[: asked.most_tokens], Pieces(text_of))
    found = asyncio.run(step_by_step(whole, asked))
    assert found == asyncio.run(step_by_step(StepByStep(ids, text_of, END), asked))


@pytest.mark.parametrize("token", [b"\n", b"\x82", b"\nab cd", b""])
def test_cutting_reads_a_long_step_a_bounded_number_of_times(token: bytes) -> None:
    """A text full of halves of the delimiter; each token was decoded with all before it."""
    decoded = 0

    def counting(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return text_of(ids)

    ids = [0, VOCABULARY.index(token)] * 4000 + [END]
    asked = SolutionRequest("1", "p", "best_of_n", 3, 0, Sampling(), Limits(1, 9000, 9000))
    [step] = asyncio.run(step_by_step(written(ids, Pieces(counting)), asked))
    assert step.completions[0].stop_reason is StopReason.EOS
    assert decoded <= 100 * len(ids)


# Answers

ANSWER_PIECES = st.sampled_from(
    [
        "\\boxed{",
        "\\boxed",
        "{",
        "}",
        "\\",
        "\\\\",
        "\\{",
        "\\}",
        "1",
        " ",
        "\n\n",
        "\x00",
        "�",
        "<think>",
        "</think>",
        "\\fbox{",
        "$",
        "�",
        "\u202e",
    ]
)
TEXTS = st.text(max_size=40) | st.lists(ANSWER_PIECES, max_size=40).map("".join)


@FUZZ
@given(TEXTS)
def test_reading_an_answer_never_fails(text: str) -> None:
    for read in (text, Thinking().spoken(text)):
        answer = boxed_answer(read)
        assert answer in read
        assert boxed_answer(f"{read} \\boxed{{7}}") == "7"


@FUZZ
@given(st.lists(TEXTS, max_size=6))
def test_what_is_spoken_does_not_depend_on_how_a_text_is_cut(steps: list[str]) -> None:
    thinking = Thinking()
    assert "".join(thinking.spoken_steps(steps)) == thinking.spoken("".join(steps))


class CountedText(str):
    """Counts the characters that are copied out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> str:
        part = super().__getitem__(key)
        CountedText.copied += len(part)
        return part


@FUZZ
@given(st.lists(ANSWER_PIECES, min_size=1, max_size=6).map("".join), st.integers(100, 400))
def test_reading_an_answer_copies_no_more_than_the_text(piece: str, times: int) -> None:
    """Time by construction: one pass over the tokens, and what is cut out is cut out once."""
    CountedText.copied = 0
    text = CountedText(piece * times)
    boxed_answer(text)
    assert CountedText.copied <= len(text)


# Tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", list(TABLES))
def test_a_changed_table_is_refused_or_reads_as_it_was(
    name: str, finished: Path, tmp_path: Path
) -> None:
    """Bytes changed, cut, added or repeated at random: an error of storage, or the same rows."""
    draw, path = random.Random(name), tmp_path / f"{name}.parquet"
    content, good = (finished / path.name).read_bytes(), load_table(finished, name)
    refused = 0
    for _ in range(150):
        path.write_bytes(spoilt(content, draw))
        try:
            found = load_table(tmp_path, name)
            parts = list(table_parts(tmp_path, name, TABLES[name].names))
        except StorageError as error:
            assert_one_line(str(error), path.name)
            refused += 1
        else:
            assert found.equals(good)
            assert sum(map(len, parts)) == len(good)
    assert refused > 75


def spoilt(content: bytes, draw: random.Random) -> bytes:
    changed, at = bytearray(content), draw.randrange(len(content))
    match draw.randrange(5):
        case 0:
            del changed[at:]
        case 1:
            changed[at] ^= 1 << draw.randrange(8)
        case 2:
            changed[at : at + 8] = draw.randbytes(8)
        case 3:
            del changed[at : at + draw.randrange(1, 64)]
        case _:
            changed[at:at] = changed[: draw.randrange(1, 64)]
    return bytes(changed)


@FUZZ
@given(draw=st.randoms(use_true_random=False))
def test_a_changed_record_is_refused_or_read(
    draw: random.Random, finished: Path, tmp_path: Path
) -> None:
    content = (finished / "run.json").read_bytes()
    (tmp_path / "run.json").write_bytes(spoilt(content, draw))
    try:
        record = load_record(tmp_path)
    except StorageError as error:
        assert_one_line(str(error), str(tmp_path))
    else:
        assert isinstance(record, dict)


@FUZZ
@given(found=DOCUMENTS.filter(lambda each: not isinstance(each, dict)))
def test_no_other_document_is_a_run(found: Any, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if not folder.exists():
        shutil.copytree(finished, folder)
    (folder / "run.json").write_text(json.dumps(found, default=str))
    with pytest.raises(StorageError, match="is not a run folder"):
        load_run(folder)
