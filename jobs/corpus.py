"""A text corpus, read piece by piece: plain text, JSONL and Parquet, in files and folders.

Invariant: memory holds one piece of text, one JSON line or one batch of rows, never a file. What
cannot be read is counted and named, so that nobody takes it for clean; a file of which nothing
can be read is a StorageError. Bytes that are not UTF-8 stand for no letter and stop nothing.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from search.errors import StorageError

# Where a row's text is looked for if no field is named; the first that holds text counts.
TEXT_FIELDS = ("text", "content", "problem", "question")
PIECE_BYTES = 1 << 20
LONGEST_JSON_LINE_BYTES = 256 << 20
ROWS_A_BATCH = 1024
_PLAIN = (".txt", ".text", ".md", ".tex")
_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".bz2", ".zst", ".lz4")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document. `line` counts from 1: a line of a file, or a row in Parquet."""

    text: str
    file: str
    line: int
    begins_document: bool


@dataclass(slots=True)
class Corpus:
    """Files and folders, in order; `notes` says what could not be read, once all is read."""

    paths: Sequence[Path]
    text_field: str | None = None
    notes: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        """Every file to be read; raises StorageError for a path that is not there."""
        found = [file for path in self.paths for file in self._files_of(path)]
        if not found:
            raise StorageError("the corpus holds no file to read: give text, JSONL or Parquet")
        return found

    def pieces(self, file: Path) -> Iterator[Piece]:
        """One file's text; raises StorageError, in one line, if it cannot be read."""
        try:
            yield from self._read(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StorageError(f"cannot read {file}: {' '.join(str(error).split())}") from None

    def _files_of(self, path: Path) -> Iterator[Path]:
        if not path.exists():
            raise StorageError(f"there is no corpus file {str(path)!r}: correct the path")
        if not path.is_dir():
            yield path
            return
        left_out = 0
        for folder, folders, names in os.walk(path):
            folders.sort()
            files = [Path(folder, name) for name in sorted(names)]
            known = [file for file in files if _kind(file) in (*_PLAIN, *_LINES, ".parquet")]
            left_out += len(files) - len(known)
            yield from known
        if left_out:
            self.notes.append(f"{path}: {left_out} files of other kinds are left out")

    def _read(self, file: Path) -> Iterator[Piece]:
        kind = _kind(file)
        if kind == ".parquet":
            yield from self._rows(file)
        elif kind == ".json":
            raise StorageError(f"{file} is one JSON document: give JSONL, a document a line")
        else:
            with _opened(file) as stream:
                start = stream.peek(2)[:2]
                if start in _UTF_16:
                    raise StorageError(f"{file} is UTF-16: convert it to UTF-8")
                if not start:
                    self.notes.append(f"{file} is empty")
                    return
                yield from self._lines(file, stream) if kind in _LINES else _text(file, stream)

    def _lines(self, file: Path, stream: io.BufferedReader) -> Iterator[Piece]:
        """A document for each JSON line that has text in the field."""
        tally = _Tally(str(file), self.text_field)
        for number, line in enumerate(_bounded_lines(stream), 1):
            if line is None:
                tally.skip(number, f"is longer than {LONGEST_JSON_LINE_BYTES >> 20} MiB")
            elif line.strip():
                text = tally.text_of(number, line)
                if text is not None:
                    yield Piece(text, str(file), number, True)
        self.notes += tally.notes("line")

    def _rows(self, file: Path) -> Iterator[Piece]:
        """A document for each row of a Parquet file that has text in the column."""
        import pyarrow.parquet as pq

        tally = _Tally(str(file), self.text_field)
        with pq.ParquetFile(file) as table:
            column = _text_column(file, table.schema_arrow, self.text_field)
            batches = table.iter_batches(ROWS_A_BATCH, columns=[column])
            texts = (text for batch in batches for text in batch.column(0).to_pylist())
            for number, text in enumerate(texts, 1):
                if text is None:
                    tally.skip(number, f"has nothing in {column!r}")
                else:
                    tally.read += 1
                    yield Piece(text, str(file), number, True)
        self.notes += tally.notes("row")


@dataclass(slots=True)
class _Tally:
    """What of a file was read, and what was not and why."""

    file: str
    text_field: str | None
    read: int = 0
    skipped: int = 0
    first: str = ""
    keys: set[str] = field(default_factory=set)

    def text_of(self, number: int, line: bytes) -> str | None:
        """The text of a JSON line; None if it has none."""
        try:
            text = self._text(line)
        except ValueError as fault:
            self.skip(number, str(fault))
            return None
        self.read += 1
        return text

    def _text(self, line: bytes) -> str:
        try:
            row = json.loads(line.decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError):
            raise ValueError("is not valid JSON") from None
        if not isinstance(row, dict):
            raise ValueError("is not a JSON object")
        names = (self.text_field,) if self.text_field else TEXT_FIELDS
        for name in names:
            if isinstance(row.get(name), str):
                return str(row[name])
        self.keys |= row.keys()
        raise ValueError(f"has no text in {' or '.join(names)}")

    def skip(self, number: int, reason: str) -> None:
        self.skipped += 1
        self.first = self.first or f"{number} {reason}"

    def notes(self, unit: str) -> list[str]:
        """One line, if any; raises StorageError if nothing at all could be read."""
        if not self.skipped:
            return [] if self.read else [f"{self.file} is empty"]
        if not self.read:
            hint = f": set --field to one of {', '.join(sorted(self.keys))}" if self.keys else ""
            raise StorageError(f"nothing of {self.file} can be read: {unit} {self.first}{hint}")
        return [f"{self.file}: {self.skipped} {unit}s were not read; {unit} {self.first}"]


def _kind(file: Path) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _opened(file: Path) -> AbstractContextManager[io.BufferedReader]:
    """A file's bytes, unpacked."""
    if file.suffix.lower() not in _PACKED:
        return file.open("rb")
    return io.BufferedReader(pa.input_stream(str(file), compression="detect"))


def _text(file: Path, stream: BinaryIO) -> Iterator[Piece]:
    """A file as one document: a piece a line, several for a line that is longer than a piece."""
    held, line, begins = b"", 1, True
    while block := stream.readline(PIECE_BYTES):
        whole = block.endswith(b"\n")
        piece, held = (held + block, b"") if whole else _cut_at_space(held + block)
        yield Piece(piece.decode("utf-8", "replace"), str(file), line, begins)
        line, begins = line + whole, False
    if held:
        yield Piece(held.decode("utf-8", "replace"), str(file), line, begins)


def _cut_at_space(block: bytes) -> tuple[bytes, bytes]:
    """All but the last word, which may go on; a megabyte without a space is cut where it ends."""
    head, space, tail = block.rpartition(b" ")
    return (head, tail) if space else (block, b"")


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long to be held."""
    while line := stream.readline(LONGEST_JSON_LINE_BYTES):
        if line.endswith(b"\n") or len(line) < LONGEST_JSON_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(PIECE_BYTES)
        yield None


def _text_column(file: Path, schema: pa.Schema, wanted: str | None) -> str:
    """The column of a Parquet file that holds text; raises StorageError."""
    columns = {each.name: each.type for each in schema}
    names = [name for name in ([wanted] if wanted else TEXT_FIELDS) if name in columns]
    if not names:
        missing = wanted or " or ".join(TEXT_FIELDS)
        raise StorageError(
            f"{file} has no column {missing}: set --field to one of {', '.join(sorted(columns))}"
        )
    kind = columns[names[0]]
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise StorageError(f"{file}: the column {names[0]} is {kind}, not text: set --field")
    return names[0]
