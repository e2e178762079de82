"""How much of each problem stands in a text corpus, by overlap of word n-grams.

Words are the runs of letters and digits of a text in Unicode's normal form NFKC and lower case:
punctuation, mathematical marks and white space separate them and are dropped. An n-gram is n
words in a row of one document. Invariant: memory is bounded by the problems, whose n-grams are
the index; the corpus streams past it. Each n-gram of a problem counts once, wherever and however
often it is found, so a corpus that holds a text twice is the same as one that holds it once.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import pyarrow as pa

from jobs.corpus import Corpus, Piece
from jobs.data import DataSource, LoadedProblem, load_problems, source_kind
from search.errors import RecipeError, StorageError
from search.schemas import CONTAMINATION

WORDS = 10
_WORD = re.compile(r"[^\W_]+")
_RECIPES = (".yaml", ".yml")
_WRITABLE = (".parquet", ".csv")


class Finding(StrEnum):
    """What is said of a problem. `TOO_SHORT`: it has fewer words than an n-gram, so nothing."""

    CLEAN = "clean"
    OVERLAP = "overlap"
    CONTAMINATED = "contaminated"
    TOO_SHORT = "too_short"


@dataclass(frozen=True, slots=True)
class Overlap:
    """One problem against the corpus; `ngrams` and `shared` count distinct n-grams.

    overlap: shared / ngrams, None if the problem is too short. file, line: where the first of
    its n-grams begins that was found; a row in Parquet counts as a line.
    """

    problem_id: str
    words: int
    ngrams: int
    shared: int
    overlap: float | None
    finding: Finding
    file: str | None
    line: int | None


def words_of(text: str) -> list[str]:
    """A text as normalised words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def ngrams_of(words: Sequence[str], n: int) -> set[str]:
    """The distinct n-grams of a list of words; words are joined by spaces, which none holds."""
    return {" ".join(words[start : start + n]) for start in range(len(words) - n + 1)}


class NgramIndex:
    """The n-grams of problems that have not been found yet, and what was found."""

    def __init__(self, texts: Sequence[str], n: int) -> None:
        self._n = n
        self._words = [words_of(text) for text in texts]
        self._totals: list[int] = []
        self._holders: dict[str, list[int]] = {}
        for place, words in enumerate(self._words):
            ngrams = ngrams_of(words, n)
            self._totals.append(len(ngrams))
            for ngram in ngrams:
                self._holders.setdefault(ngram, []).append(place)
        self._vocabulary = {word for ngram in self._holders for word in ngram.split(" ")}
        self._run: deque[tuple[str, int]] = deque(maxlen=n)
        self._shared = [0] * len(texts)
        self._first: dict[int, tuple[str, int]] = {}

    def read(self, piece: Piece) -> None:
        """Looks up every n-gram that ends in a piece; pieces of a document come in order."""
        run, vocabulary = self._run, self._vocabulary
        if piece.begins_document:
            run.clear()
        for word in words_of(piece.text):
            if word not in vocabulary:
                run.clear()
                continue
            run.append((word, piece.line))
            if len(run) == self._n:
                self._look_up(" ".join(each for each, _ in run), piece.file, run[0][1])

    def _look_up(self, ngram: str, file: str, line: int) -> None:
        for place in self._holders.pop(ngram, ()):
            self._shared[place] += 1
            self._first.setdefault(place, (file, line))

    def overlap(self, place: int, problem_id: str, threshold: float) -> Overlap:
        """What was found of one problem."""
        total, shared = self._totals[place], self._shared[place]
        file, line = self._first.get(place, (None, None))
        share = shared / total if total else None
        finding = _finding(share, threshold)
        words = len(self._words[place])
        return Overlap(problem_id, words, total, shared, share, finding, file, line)


def _finding(overlap: float | None, threshold: float) -> Finding:
    if overlap is None:
        return Finding.TOO_SHORT
    if overlap > threshold:
        return Finding.CONTAMINATED
    return Finding.OVERLAP if overlap else Finding.CLEAN


def check_contamination(
    problems: Sequence[LoadedProblem], corpus: Corpus, n: int = WORDS, threshold: float = 0.0
) -> list[Overlap]:
    """One row a problem, in order; raises StorageError if a file of the corpus cannot be read.

    n: words of an n-gram. threshold: the share of a problem's n-grams above which it counts as
    contaminated, in [0, 1).
    """
    index = NgramIndex([problem.text for problem in problems], n)
    for file in corpus.files():
        for piece in corpus.pieces(file):
            index.read(piece)
    ids = [problem.problem_id for problem in problems]
    return [index.overlap(place, name, threshold) for place, name in enumerate(ids)]


def problems_of(source: str) -> list[LoadedProblem]:
    """The problems of a recipe, or of a data source named as in a recipe; raises RecipeError."""
    if Path(source).suffix in _RECIPES:
        from jobs.recipe import load_recipe

        return load_problems(load_recipe(Path(source)).data)
    source_kind(source)
    return load_problems([DataSource(source=source)])


def check_target(path: Path) -> None:
    """Raises RecipeError for a file that overlaps cannot be written to."""
    if path.suffix not in _WRITABLE:
        raise RecipeError(f"--to {path}: end it in {' or '.join(_WRITABLE)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--to {path}: there is no folder {str(path.parent)!r}")


def write_overlaps(overlaps: Sequence[Overlap], path: Path) -> None:
    """Writes `CONTAMINATION` as Parquet or CSV, by the suffix; raises StorageError."""
    from pyarrow import csv
    from pyarrow import parquet as pq

    table = pa.Table.from_pylist([asdict(overlap) for overlap in overlaps], CONTAMINATION)
    try:
        if path.suffix == ".csv":
            csv.write_csv(table, path)
        else:
            pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {' '.join(str(error).split())}") from error
