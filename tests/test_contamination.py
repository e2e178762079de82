"""Contamination: what counts as overlap, where it is found, and corpora that mean no good."""

import gzip
import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import branchwise
from test_docs import documented_columns_of

from jobs import corpus as corpus_module
from jobs.contamination import (
    Finding,
    NgramIndex,
    Overlap,
    check_contamination,
    ngrams_of,
    words_of,
)
from jobs.corpus import PIECE_BYTES, Corpus, Piece
from search.errors import StorageError
from search.problem import Problem
from search.schemas import CONTAMINATION

pytestmark = pytest.mark.unit

WORDS = [f"w{place}" for place in range(14)]
LONG = " ".join(WORDS)  # five 10-grams
SHORT = "what is two plus two"


def check(
    files: Sequence[Path], *texts: str, field: str | None = None, **options: Any
) -> list[Overlap]:
    problems = [Problem(f"p{place}", text, "4") for place, text in enumerate(texts)]
    return check_contamination(problems, Corpus(files, field), **options)


def counts(overlaps: Sequence[Overlap]) -> list[tuple[int, int, str]]:
    return [(o.shared, o.ngrams, str(o.finding)) for o in overlaps]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(folder: Path, *rows: Any, name: str = "corpus.jsonl") -> Path:
    return written(folder, name, "".join(json.dumps(row) + "\n" for row in rows))


def refused(files: Sequence[Path], field: str | None = None) -> str:
    with pytest.raises(StorageError) as caught:
        check(files, LONG, field=field)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- words and n-grams


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Find $x^{2}$, isn't", ["find", "x", "2", "isn", "t"]),
        ("a_b-c\n\td\u00a0e", ["a", "b", "c", "d", "e"]),
        (
            "\uff21\uff22 \ufb01ne x\u00b2",
            ["ab", "fine", "x2"],
        ),  # NFKC
        ("Ünï Ёж 数学", ["ünï", "ёж", "数学"]),
        ("?!\u2026\ufffd", []),
    ],
)
def test_a_text_as_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_ngrams_are_distinct_and_whole() -> None:
    assert ngrams_of(["a", "b", "a", "b"], 2) == {"a b", "b a"}
    assert ngrams_of(["a"], 2) == set()


# ---- overlap


def test_a_corpus_with_part_of_a_problem(tmp_path: Path) -> None:
    path = written(tmp_path, "c.txt", "Other words.\nW1, w2 w3 w4 w5 w6\nw7 w8 w9 w10 w11 then\n")
    [found] = check([path], LONG)
    assert (found.words, found.ngrams, found.shared, found.overlap) == (14, 5, 2, 0.4)
    assert (found.finding, found.file, found.line) == (Finding.CONTAMINATED, str(path), 2)


@pytest.mark.parametrize(
    ("threshold", "finding"), [(0.0, "contaminated"), (0.39, "contaminated"), (0.4, "overlap")]
)
def test_a_threshold_is_exceeded_not_reached(
    tmp_path: Path, threshold: float, finding: str
) -> None:
    path = written(tmp_path, "c.txt", " ".join(WORDS[1:12]))
    assert counts(check([path], LONG, threshold=threshold)) == [(2, 5, finding)]


def test_a_text_that_comes_twice_counts_once(tmp_path: Path) -> None:
    once = jsonl(tmp_path, {"text": LONG}, name="once.jsonl")
    twice = jsonl(tmp_path, {"text": LONG.upper()}, {"text": LONG + "!"}, name="twice.jsonl")
    assert (
        counts(check([once], LONG))
        == counts(check([twice, once], LONG))
        == [(5, 5, "contaminated")]
    )


def test_short_problems_are_too_short_and_not_clean(tmp_path: Path) -> None:
    path = written(tmp_path, "c.txt", SHORT)
    nine, ten = " ".join(WORDS[:9]), " ".join(WORDS[:10])
    found = counts(check([path], SHORT, nine, ten, ""))
    assert found == [(0, 0, "too_short"), (0, 0, "too_short"), (0, 1, "clean"), (0, 0, "too_short")]
    assert counts(check([path], SHORT, n=5)) == [(1, 1, "contaminated")]


def test_an_ngram_that_two_problems_share_counts_for_both(tmp_path: Path) -> None:
    path = written(tmp_path, "c.txt", " ".join(WORDS[:10]))
    first, second = counts(check([path], LONG, "x " + LONG))
    assert (first, second) == ((1, 5, "contaminated"), (1, 6, "contaminated"))


def test_ngrams_do_not_reach_over_documents(tmp_path: Path) -> None:
    halves = [" ".join(WORDS[:7]), " ".join(WORDS[7:])]
    rows = jsonl(tmp_path, *({"text": half} for half in halves))
    files = [written(tmp_path, f"{place}.txt", half) for place, half in enumerate(halves)]
    assert counts(check([rows, *files], LONG)) == [(0, 5, "clean")]
    lines = written(tmp_path, "whole.txt", "\n".join(halves))
    assert counts(check([lines], LONG)) == [(5, 5, "contaminated")]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=12),
    st.lists(st.lists(st.sampled_from("abcx"), max_size=20), max_size=4),
    st.integers(1, 4),
)
def test_overlap_is_that_of_comparing_all_ngrams(
    problem: list[str], documents: list[list[str]], n: int
) -> None:
    index = NgramIndex([" ".join(problem)], n)
    for document in documents:
        for place, word in enumerate(document):
            index.read(Piece(f" {word} ", "f", place + 1, place == 0))
    held = {ngram for document in documents for ngram in ngrams_of(document, n)}
    found = index.overlap(0, "p", 0.0)
    assert found.ngrams == len(ngrams_of(problem, n))
    assert found.shared == len(ngrams_of(problem, n) & held)


# ---- where texts come from


def parquet(folder: Path, name: str = "c.parquet", **columns: list[Any]) -> Path:
    path = folder / name
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_rows_of_parquet_count_from_1(tmp_path: Path) -> None:
    path = parquet(tmp_path, text=["a", "b", None, LONG], other=[1, 2, 3, 4])
    corpus = Corpus([path])
    [found] = check_contamination([Problem("p", LONG, "4")], corpus)
    assert (found.shared, found.line) == (5, 4)
    assert corpus.notes == [f"{path}: 1 rows were not read; row 3 has nothing in 'text'"]


def test_a_field_may_be_named(tmp_path: Path) -> None:
    rows = jsonl(tmp_path, {"text": "no", "body": LONG})
    table = parquet(tmp_path, text=["no"], body=[LONG])
    assert counts(check([rows, table], LONG)) == [(0, 5, "clean")]
    for path in (rows, table):
        assert counts(check([path], LONG, field="body")) == [(5, 5, "contaminated")]


def test_folders_are_read_with_all_below_them(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    packed = tmp_path / "a" / "b" / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({"text": LONG}).encode()))
    written(tmp_path, "a/picture.png", b"\x89PNG")
    with pa.output_stream(str(tmp_path / "a" / "y.txt.zst"), compression="zstd") as stream:
        stream.write(SHORT.encode())
    corpus = Corpus([tmp_path])
    problems = [Problem("p", LONG, "4"), Problem("q", SHORT, "4")]
    first, second = check_contamination(problems, corpus, n=5)
    assert (first.file, first.line, first.overlap) == (str(packed), 1, 1.0)
    assert second.file == str(tmp_path / "a" / "y.txt.zst")
    assert corpus.notes == [f"{tmp_path}: 1 files of other kinds are left out"]


def test_a_named_file_of_another_kind_is_text(tmp_path: Path) -> None:
    path = written(tmp_path, "notes.rst", LONG)
    assert counts(check([path], LONG)) == [(5, 5, "contaminated")]


# ---- hostile corpora


def test_bytes_that_are_not_utf_8_stop_nothing(tmp_path: Path) -> None:
    bad = b"\xff\xfe\xfa \x00 caf\xe9 \xc3" + b"\n" + LONG.encode() + b"\xf0\x9f"
    text = written(tmp_path, "c.txt", b"x" + bad)
    line = b'{"text": "caf\xe9 ' + LONG.encode() + b'"}\n'
    rows = written(tmp_path, "c.jsonl", b"\xef\xbb\xbf" + line)
    for path in (text, rows):
        assert counts(check([path], LONG)) == [(5, 5, "contaminated")]


def test_utf_16_is_not_taken_for_clean(tmp_path: Path) -> None:
    path = written(tmp_path, "c.txt", LONG.encode("utf-16"))
    assert refused([path]) == f"{path} is UTF-16: convert it to UTF-8"


def test_empty_files_are_noted(tmp_path: Path) -> None:
    files = [written(tmp_path, name, "") for name in ("a.txt", "b.jsonl")]
    corpus = Corpus([*files, jsonl(tmp_path, {"text": LONG})])
    [found] = check_contamination([Problem("p", LONG, "4")], corpus)
    assert found.finding is Finding.CONTAMINATED
    assert corpus.notes == [f"{path} is empty" for path in files]


def test_a_line_of_megabytes_is_read_in_pieces(tmp_path: Path) -> None:
    filler = "x" * 7 + " "
    text = filler * (3 * PIECE_BYTES // len(filler)) + LONG + " " + filler * 100_000
    path = written(tmp_path, "c.txt", "first\n" + text)
    pieces = list(Corpus([path]).pieces(path))
    assert max(len(piece.text) for piece in pieces) <= 2 * PIECE_BYTES
    assert {piece.line for piece in pieces} == {1, 2}
    assert [piece.begins_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    [found] = check([path], LONG)
    assert (found.shared, found.line) == (5, 2)


@pytest.mark.parametrize("shift", range(0, 40, 3))
def test_a_text_across_pieces_is_found_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", 16)
    path = written(tmp_path, "c.txt", "y" * shift + " é " + LONG + " end")
    assert counts(check([path], LONG)) == [(5, 5, "contaminated")]


def test_a_line_without_a_space_takes_no_more_memory_than_pieces(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    with path.open("wb") as file:
        for _ in range(24):
            file.write(b"z" * PIECE_BYTES)
    tracemalloc.start()
    [found] = check([path], LONG)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.finding is Finding.CLEAN
    assert peak < 12 * PIECE_BYTES


def test_a_json_line_that_is_too_long_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "LONGEST_JSON_LINE_BYTES", 1 << 20)
    path = jsonl(tmp_path, {"text": "a" * (3 << 20)}, {"text": LONG})
    corpus = Corpus([path])
    [found] = check_contamination([Problem("p", LONG, "4")], corpus)
    assert (found.shared, found.line) == (5, 2)
    assert corpus.notes == [f"{path}: 1 lines were not read; line 1 is longer than 1 MiB"]


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    deep = "[" * 100_000
    lines = ["{", "[1]", '{"other": 1}', '{"text": 3}', deep, "", json.dumps({"text": LONG})]
    path = written(tmp_path, "c.jsonl", "\n".join(lines))
    corpus = Corpus([path])
    [found] = check_contamination([Problem("p", LONG, "4")], corpus)
    assert (found.shared, found.line) == (5, 7)
    assert corpus.notes == [f"{path}: 5 lines were not read; line 1 is not valid JSON"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", '{"body": "x", "id": 1}', "line 1 has no text in text or content or"),
        ("c.jsonl", '{"body": "x", "id": 1}', ": set --field to one of body, id"),
        ("c.jsonl", "nothing", "nothing of {path} can be read: line 1 is not valid JSON"),
        ("c.parquet", "", "cannot read {path}"),
        ("c.parquet", "PAR1 not really", "cannot read {path}"),
        ("c.txt.gz", "no gzip", "cannot read {path}"),
        ("c.json", "[]", "{path} is one JSON document: give JSONL"),
    ],
)
def test_a_file_of_which_nothing_can_be_read_ends_the_check(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = written(tmp_path, name, content)
    assert message.format(path=path) in refused([path])


def test_columns_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, text=[1, 2], body=["a", "b"])
    assert refused([path]) == f"{path}: the column text is int64, not text: set --field"
    missing = refused([path], field="words")
    assert missing == f"{path} has no column words: set --field to one of body, text"


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused([tmp_path / "no.txt"]).startswith("there is no corpus file")
    assert refused([tmp_path]).startswith("the corpus holds no file to read")


# ---- the command


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    rows = [("one", LONG), ("two", SHORT), ("three", LONG.replace("w", "v"))]
    lines = [{"id": name, "problem": text, "answer": "4"} for name, text in rows]
    return jsonl(tmp_path, *lines, name="problems.jsonl")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_command_writes_a_row_a_problem_and_exits_with_1(
    tmp_path: Path, problems: Path, suffix: str
) -> None:
    clean, dirty = written(tmp_path, "a.txt", "nothing"), written(tmp_path, "b.txt", LONG)
    target = tmp_path / f"found.{suffix}"
    arguments = ["--corpus", str(clean), str(dirty), "--to", str(target)]
    answer = branchwise("contamination", str(problems), *arguments)
    assert (answer.code, answer.err) == (1, "")
    totals = "3 problems: 1 contaminated (above 0 of their 10-grams), 1 clean, 1 too short"
    assert totals in answer.out
    table = pq.read_table(target) if suffix == "parquet" else pa_csv.read_csv(target)
    assert table.column_names == CONTAMINATION.names
    assert table["finding"].to_pylist() == ["contaminated", "too_short", "clean"]
    assert table["overlap"].to_pylist() == [1.0, None, 0.0]
    assert table["line"].to_pylist() == [1, None, None]


def test_a_clean_corpus_exits_with_0_and_a_recipe_names_problems(
    tmp_path: Path, problems: Path
) -> None:
    clean = written(tmp_path, "a.txt", "nothing")
    recipe = {
        "name": "r",
        "data": {"source": str(problems)},
        "policies": [{"model": "scripted", "engine": "fake"}],
        "searches": [{"strategy": "majority", "n": 2}],
    }
    path = written(tmp_path, "r.yaml", json.dumps(recipe))
    answer = branchwise("contamination", str(path), "--corpus", str(clean))
    assert (answer.code, answer.err) == (0, "")
    assert "3 problems: 0 contaminated" in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jsonl", "--corpus", "{folder}"], "there is no file 'no.jsonl'"),
        (["{problems}", "--corpus", "no.txt"], "there is no corpus file 'no.txt'"),
        (
            ["{problems}", "--corpus", "{problems}", "--to", "x.txt"],
            "--to x.txt: end it in .parquet",
        ),
        (["{problems}", "--corpus", "{problems}", "--to", "no/x.csv"], "there is no folder 'no'"),
        (["{problems}", "--corpus", "{problems}", "--field", "f"], "set --field to one of"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_line(
    tmp_path: Path, problems: Path, arguments: list[str], message: str
) -> None:
    filled = [each.format(folder=tmp_path, problems=problems) for each in arguments]
    answer = branchwise("contamination", *filled)
    [line] = answer.err.splitlines()
    assert answer.code == 2
    assert line.startswith("error: ")
    assert message in line


def test_the_columns_and_findings_are_documented() -> None:
    documented = documented_columns_of("contamination.md", "The table")
    assert documented == [(field.name, str(field.type)) for field in CONTAMINATION]
    page = (Path(__file__).parent.parent / "docs" / "contamination.md").read_text()
    assert all(f"`{finding}`" in page for finding in Finding)
    assert all(re.search(f"`{name}`", page) for name in corpus_module.TEXT_FIELDS)
