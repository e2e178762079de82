"""Problems from reasoning_gym, JSONL, Parquet and the Hugging Face hub.

Invariant: every row of a source becomes exactly one problem or one `BadProblem`, in the source's
order, and no two of them share an id. A source that cannot be read at all is a RecipeError.
Libraries that are slow to import are imported by the one reader that needs them.
"""

import dataclasses
import difflib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator

from actors.garbage import uncollected
from cluster.repository import REPOSITORY
from jobs.json_rows import Row, parse_line
from search.answers import boxed_answer
from search.errors import RecipeError, one_line
from search.problem import Problem

REASONING_GYM = "reasoning_gym:"
TEXT_FIELDS = ("problem", "question", "text")
REFERENCE_FIELDS = ("answer", "reference_answer", "final_answer", "solution")
ID_FIELDS = ("id", "unique_id", "problem_id")
_GSM8K_MARK = "####"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
_UNREADABLE = (".csv", ".json", ".tsv", ".txt")

# The tables count in int32.
MOST = 2**31 - 1


def _countable(value: int) -> int:
    if value > MOST:
        raise ValueError(f"{value} is more than the tables can count: use {MOST} or less")
    return value


PositiveInt = Annotated[int, Field(gt=0), AfterValidator(_countable)]


class SourceKind(StrEnum):
    """Where problems come from."""

    REASONING_GYM = "reasoning_gym"
    JSONL = "jsonl"
    PARQUET = "parquet"
    HUB = "hub"


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def optional(description: str) -> Any:
    """A key that may be left out or null."""
    return Field(default=None, description=description)


class DataSource(Section):
    """One place that problems come from."""

    source: str = Field(
        description="reasoning_gym:TASK, a .jsonl or .parquet file, or a Hugging Face data set id"
    )
    size: PositiveInt | None = optional("At most so many problems; reasoning_gym: exactly")
    seed: int | None = optional("Seed of a reasoning_gym task (0 if not given)")
    split: str | None = optional("Split of a Hugging Face data set (test if not given)")
    text_field: str | None = optional(f"Column with the text ({', '.join(TEXT_FIELDS)})")
    reference_field: str | None = optional(
        f"Column with the right answer ({', '.join(REFERENCE_FIELDS)})"
    )
    id_field: str | None = optional(f"Column that names a problem ({', '.join(ID_FIELDS)})")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="Options of the reasoning_gym task or of load_dataset"
    )

    @field_validator("source")
    @classmethod
    def _known_kind(cls, source: str) -> str:
        try:
            source_kind(source)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return source


@dataclass(frozen=True, slots=True)
class BadProblem:
    """A row that cannot be searched: data to be reported, not a failure.

    The first four fields hold what the row had (empty where it had nothing); `error` says in
    one line what is wrong with it.
    """

    problem_id: str
    text: str
    reference_answer: str
    metadata: str
    error: str


LoadedProblem = Problem | BadProblem


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"


def find_path(value: str) -> Path | None:
    """An existing path: looked up from the current folder, then from the repository root."""
    try:
        path = Path(value).expanduser()
        places = (path, REPOSITORY / path)
        return next((place.absolute() for place in places if place.exists()), None)
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, or no path at all
        return None


def is_hub_id(value: str) -> bool:
    """Whether a name has the form `org/name` of the Hugging Face hub."""
    return _HUB_ID.fullmatch(value) is not None


def source_kind(source: str) -> SourceKind:
    """What a data source's name stands for; raises RecipeError."""
    if source.startswith(REASONING_GYM):
        return SourceKind.REASONING_GYM
    suffix = Path(source).suffix
    if suffix in (".jsonl", ".parquet"):
        return SourceKind(suffix[1:])
    if suffix in _UNREADABLE or not is_hub_id(source):
        raise RecipeError(
            f"cannot read {source!r}: give a .jsonl or .parquet file, reasoning_gym:TASK, "
            "or a Hugging Face data set as org/name"
        )
    return SourceKind.HUB


def load_problems(sources: Sequence[DataSource]) -> list[LoadedProblem]:
    """All rows of all sources, in order; raises RecipeError if a source cannot be read.

    Relative paths are looked up from the current folder, then from the repository root.
    """
    problems: list[LoadedProblem] = []
    for place, source in enumerate(sources):
        try:
            problems += _READERS[source_kind(source.source)](source)
        except RecipeError as error:
            raise RecipeError(f"data.{place}: {one_line(error)}") from None
    return _with_unique_ids(problems)


def _read_reasoning_gym(source: DataSource) -> list[LoadedProblem]:
    """Item i of a task with seed s is drawn from seed s + i; metadata keeps task and options."""
    task, seed = source.source.removeprefix(REASONING_GYM), source.seed or 0
    drawn = {"options": source.options, "seed": seed}
    return [
        _task_problem(f"{task}-{seed}-{number:04d}", entry, entry["metadata"] | drawn)
        for number, entry in enumerate(_draw_entries(task, seed, source))
    ]


def _draw_entries(task: str, seed: int, source: DataSource) -> list[dict[str, Any]]:
    with uncollected():
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise RecipeError(f"unknown task {task!r}: {did_you_mean(task, sorted(DATASETS))}")
    _check_task_options(source.options, DATASETS[task][1])
    sized = {} if source.size is None else {"size": source.size}
    try:
        return list(reasoning_gym.create_dataset(task, seed=seed, **sized, **source.options))
    except Exception as error:  # tasks check their options in ways of their own
        raise RecipeError(f"options of {task} do not work: {one_line(error)}") from None


def _check_task_options(options: dict[str, JsonValue], config: type) -> None:
    known = [field.name for field in dataclasses.fields(config)]
    for option in options:
        if option in ("seed", "size"):
            raise RecipeError(f"{option} belongs beside options, not inside")
        if option not in known:
            raise RecipeError(f"unknown option {option!r}: {did_you_mean(option, known)}")


def _task_problem(
    problem_id: str, entry: dict[str, Any], metadata: dict[str, Any]
) -> LoadedProblem:
    # The task's own scorer compares with the answer as the task wrote it, blanks included.
    text, answer = entry["question"], entry["answer"]
    written = answer if isinstance(answer, str) else reference_answer(answer)
    faults = (_text_fault(text), _reference_fault(answer, written))
    return _judged(problem_id, text, written, metadata, faults)


def _read_jsonl(source: DataSource) -> list[LoadedProblem]:
    try:
        with _existing_file(source.source).open("rb") as lines:
            written = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            limited = islice(written, source.size)
            rows = [parse_line(row, *numbered) for row, numbered in enumerate(limited)]
    except OSError as error:
        raise RecipeError(f"cannot read {source.source!r}: {error.strerror}") from None
    return _problems(source, rows, Path(source.source).stem)


def _read_parquet(source: DataSource) -> list[LoadedProblem]:
    import pyarrow.parquet as pq

    path = _existing_file(source.source)
    try:
        with pq.ParquetFile(path) as file:
            _check_twins(file.schema_arrow.names)
            batches = (batch.to_pylist() for batch in file.iter_batches())
            rows = _numbered((row for batch in batches for row in batch), source.size)
    except Exception as error:  # a damaged file fails in too many ways to name them
        raise RecipeError(f"cannot read {source.source!r}: {one_line(error)}") from None
    return _problems(source, rows, path.stem)


def _check_twins(names: list[str]) -> None:
    if twins := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the column {twins[0]!r} is there twice")


def _read_hub(source: DataSource) -> list[LoadedProblem]:
    split = {"split": source.split} if source.split else {}
    try:
        import datasets

        rows = _numbered(
            datasets.load_dataset(source.source, **source.options, **split), source.size
        )
    except Exception as error:  # the hub fails in too many ways to name them
        raise RecipeError(
            f"cannot load {source.source!r} ({type(error).__name__}: {one_line(error)}): check "
            "its id, its split and the network"
        ) from None
    return _problems(source, rows, source.source.rpartition("/")[2])


_READERS = {
    SourceKind.REASONING_GYM: _read_reasoning_gym,
    SourceKind.JSONL: _read_jsonl,
    SourceKind.PARQUET: _read_parquet,
    SourceKind.HUB: _read_hub,
}


def _existing_file(name: str) -> Path:
    path = find_path(name)
    if path is None or not path.is_file():
        raise RecipeError(f"there is no file {name!r}: correct the path")
    return path


def _numbered(rows: Iterable[dict[str, Any]], size: int | None) -> list[Row]:
    return [Row(number, row) for number, row in enumerate(islice(rows, size))]


def _problems(source: DataSource, rows: list[Row], label: str) -> list[LoadedProblem]:
    if not rows:
        raise RecipeError(f"{source.source!r} holds no problems")
    readable = [row for row in rows if not row.error]
    if not readable:
        raise RecipeError(f"{source.source!r} holds no row that can be read: {rows[0].error}")
    fields = _Fields.of(source)
    fields.check(source.source, {column for row in readable for column in row.columns})
    return [fields.problem(row, f"{label}-{row.number:04d}") for row in rows]


@dataclass(frozen=True, slots=True)
class _Fields:
    """The columns to look in for each part of a problem; the first that is filled counts."""

    text: tuple[str, ...]
    reference: tuple[str, ...]
    identity: tuple[str, ...]
    identity_required: bool

    @classmethod
    def of(cls, source: DataSource) -> "_Fields":
        return cls(
            text=(source.text_field,) if source.text_field else TEXT_FIELDS,
            reference=(source.reference_field,) if source.reference_field else REFERENCE_FIELDS,
            identity=(source.id_field,) if source.id_field else ID_FIELDS,
            identity_required=source.id_field is not None,
        )

    def check(self, source: str, columns: set[str]) -> None:
        """Raises RecipeError for a field that no row has."""
        wanted = {"text_field": self.text, "reference_field": self.reference}
        if self.identity_required:
            wanted["id_field"] = self.identity
        for key, names in wanted.items():
            if columns.isdisjoint(names):
                raise RecipeError(
                    f"no row of {source!r} has {' or '.join(names)}: set {key} to one of "
                    f"{', '.join(sorted(columns))}"
                )

    def problem(self, row: Row, default_id: str) -> LoadedProblem:
        columns = dict(row.columns)
        problem_id, text, reference = (
            _take(columns, names) for names in (self.identity, self.text, self.reference)
        )
        answer = reference_answer(reference)
        if isinstance(reference, str) and answer != reference.strip():
            columns = {"worked_solution": reference} | columns
        name = default_id if problem_id is None else str(problem_id)
        faults = (row.error, _text_fault(text), _reference_fault(reference, answer))
        return _judged(name, text, answer, columns, faults)


def _take(columns: dict[str, Any], names: Sequence[str]) -> Any:
    """The first filled column among `names`, taken out of the row; None if there is none."""
    filled = (name for name in names if columns.get(name) not in (None, ""))
    name = next(filled, None)
    return None if name is None else columns.pop(name)


def _judged(
    problem_id: str, text: Any, answer: str, metadata: dict[str, Any], faults: Iterable[str]
) -> LoadedProblem:
    """A problem, or a bad one with the first of its faults."""
    written = text if isinstance(text, str) else "" if text is None else str(text)
    parts = (_valid(problem_id), _valid(written), _valid(answer), _as_json(metadata))
    error = next(filter(None, faults), "")
    return BadProblem(*parts, error=error) if error else Problem(*parts)


def _text_fault(text: Any) -> str:
    if text is None or (isinstance(text, str) and not text.strip()):
        return "the row has no text"
    if not isinstance(text, str):
        return f"the text is a {type(text).__name__}, not text"
    if _valid(text) != text:
        return "the text holds half a Unicode character pair"
    seen = any(letter.isprintable() and not letter.isspace() for letter in text)
    return "" if seen else "the row has no text that can be seen"


def _reference_fault(reference: Any, answer: str) -> str:
    if answer.strip():
        whole = _valid(answer) == answer
        return "" if whole else "the reference answer holds half a Unicode character pair"
    if reference is None or isinstance(reference, str):
        return "the row has no reference answer"
    if isinstance(reference, float | Decimal):
        return f"the reference answer is {reference}: give a finite number"
    return f"the reference answer is a {type(reference).__name__}, not text or a number"


def reference_answer(value: Any) -> str:
    """A reference answer as text; empty if the value holds none.

    Of a worked solution it is the content of the last box, or what follows the last `####`
    (GSM8K).
    """
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return ""
    if isinstance(value, bool | int | float | Decimal):
        return str(value)
    if not isinstance(value, str):
        return ""
    return boxed_answer(value) or value.rpartition(_GSM8K_MARK)[2].strip()


def _valid(text: str) -> str:
    """The text without lone surrogates, which no table can store."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _as_json(metadata: dict[str, Any]) -> str:
    """Strict JSON: what JSON has no word for becomes text, NaN and infinities become null."""
    text = json.dumps(metadata, default=str)
    return json.dumps(json.loads(text, parse_constant=lambda _: None))


def _with_unique_ids(problems: Sequence[LoadedProblem]) -> list[LoadedProblem]:
    taken, seen = {problem.problem_id for problem in problems}, set[str]()
    return list(_marked(problems, taken, seen))


def _marked(
    problems: Sequence[LoadedProblem], taken: set[str], seen: set[str]
) -> Iterator[LoadedProblem]:
    """Keeps the first of each id; a later one gets an id that no row has, and an error."""
    counts: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    for problem in problems:
        if problem.problem_id in seen:
            problem = _duplicate(problem, taken, counts[problem.problem_id])
        seen.add(problem.problem_id)
        yield problem


def _duplicate(problem: LoadedProblem, taken: set[str], numbers: Iterator[int]) -> BadProblem:
    fault = f"the id {problem.problem_id!r} is that of an earlier row"
    if isinstance(problem, BadProblem):
        fault = f"{problem.error}; {fault}"
    names = (f"{problem.problem_id}#{number}" for number in numbers)
    problem_id = next(name for name in names if name not in taken)
    taken.add(problem_id)
    parts = (problem.text, problem.reference_answer, problem.metadata)
    return BadProblem(problem_id, *parts, error=fault)
