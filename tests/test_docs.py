"""The pages of docs/ say what the code does: columns, keys, defaults, messages, examples."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from test_results import RUN_ID, synthetic_run

from jobs.curves import NO_REDUCTION, PASS
from jobs.data import BadProblem, DataSource, load_problems
from jobs.grading import Verdict
from jobs.headline_settings import HeadlineSettings, RegressionSettings
from jobs.recipe import load_recipe, parse_recipe
from jobs.results import RunRecord
from jobs.routed_settings import RoutedSettings
from jobs.settings import (
    AllocationSettings,
    AutoscalingSettings,
    ClusterSettings,
    DifficultySettings,
    LimitSettings,
    ModelSettings,
    PolicySettings,
    PRMSettings,
    Recipe,
    SamplingSettings,
    SearchSettings,
    StopSettings,
    ThinkingSettings,
    TimingSettings,
    WorkSettings,
)
from search.errors import RecipeError
from search.protocols import StopReason
from search.rewards import Reduction
from search.schemas import TABLES
from search.strategies import STRATEGIES
from search.votes import Vote

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
NAMED_RUN = "demo-20260101-120000"
WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
}
LIMITS = {"exclusiveMinimum": "> {}", "minimum": "from {}", "maximum": "up to {}"}
SECTIONS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    # Heading: the section, and a section whose keys it has too and the page lists elsewhere.
    "The recipe": (Recipe, BaseModel),
    "`data`": (DataSource, BaseModel),
    "Keys of every model": (ModelSettings, BaseModel),
    "`autoscaling`": (AutoscalingSettings, BaseModel),
    "`timing`": (TimingSettings, BaseModel),
    "`policies`": (PolicySettings, ModelSettings),
    "`thinking`": (ThinkingSettings, BaseModel),
    "`prm`": (PRMSettings, ModelSettings),
    "`searches`": (SearchSettings, BaseModel),
    "`stop`": (StopSettings, BaseModel),
    "`allocation`": (AllocationSettings, BaseModel),
    "`difficulty`": (DifficultySettings, BaseModel),
    "`compute_optimal`": (RoutedSettings, BaseModel),
    "`headline`": (HeadlineSettings, BaseModel),
    "`regression`": (RegressionSettings, BaseModel),
    "`limits`": (LimitSettings, BaseModel),
    "`sampling`": (SamplingSettings, BaseModel),
    "`work`": (WorkSettings, BaseModel),
    "`cluster`": (ClusterSettings, BaseModel),
}


def chapter(page: str, heading: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(
        rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", (DOCS / page).read_text(), re.M | re.S
    )
    assert found, f"{page} has no chapter {heading}"
    return found[1]


def table_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def fenced(page: str, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


# docs/tables.md


def documented_columns(heading: str) -> list[tuple[str, str]]:
    """(name, type) of each column in a chapter of tables.md."""
    return documented_columns_of("tables.md", heading)


def documented_columns_of(page: str, heading: str) -> list[tuple[str, str]]:
    """(name, type) of each column in a chapter, as the page gives them."""
    rows = table_rows(chapter(page, heading))
    assert all(len(row) == 4 and all(row) for row in rows), f"a cell is empty under {heading}"
    return [(row[0].strip("`"), row[1]) for row in rows]


@pytest.mark.parametrize("name", list(TABLES))
def test_every_column_is_documented_in_order(name: str) -> None:
    has_search = name not in ("problems", "runs")
    shared = documented_columns("The columns of a search") if has_search else []
    real = [(field.name, re.sub(r"<\w+: ", "<", str(field.type))) for field in TABLES[name]]
    assert shared + documented_columns(f"`{name}`") == real


def test_every_key_of_the_record_is_documented() -> None:
    keys = [row[0].strip("`") for row in table_rows(chapter("tables.md", "`run.json`"))]
    assert set(keys) == {field.name for field in fields(RunRecord)}


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("`nodes`", set(StopReason) - {StopReason.UNFINISHED}),
        ("`solutions`", set(StopReason) - {StopReason.DELIMITER, StopReason.LENGTH}),
        ("`solutions`", set(Verdict)),
        ("`answers`", {*Reduction, *Vote, PASS, NO_REDUCTION}),
        ("`units`", {"done", "error"}),
        ("The columns of a search", set(STRATEGIES)),
    ],
)
def test_every_value_of_a_column_is_documented(heading: str, values: set[str]) -> None:
    text = chapter("tables.md", heading)
    assert [str(value) for value in values if f"`{value}`" not in text] == []


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples find the run they name."""
    folder = tmp_path_factory.mktemp("examples")
    synthetic_run(folder / "runs")
    (folder / "runs" / RUN_ID).rename(folder / "runs" / NAMED_RUN)
    return folder


def example(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a block of tables.md leaves behind."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(fenced("tables.md", "python")[number], names)
    return names


def test_the_reading_example_runs(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = example(0, runs_folder, monkeypatch)["run"]
    assert run.record["run_id"] == RUN_ID
    assert run.solutions.num_rows > 0


def test_the_version_example_runs(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(example(1, runs_folder, monkeypatch)["schema"].names) == set(TABLES["answers"].names)


def test_the_pandas_example_runs(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = example(2, runs_folder, monkeypatch)["curve"]
    points = set(zip(curve.strategy, curve.n, curve.searched_n, strict=True))
    assert points == {
        *(("best_of_n", n, 8) for n in (1, 2, 4, 8)),
        *(("dvts", n, 8) for n in (4, 8)),
        *(("beam", n, n) for n in (4, 8)),
    }
    assert len(curve) == len(points)
    assert (curve.ci_low <= curve.expected_correct).all()


def test_the_polars_example_runs(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = example(3, runs_folder, monkeypatch)
    run = example(0, runs_folder, monkeypatch)["run"]
    verdicts, spent = run.solutions["verdict"].to_pylist(), run.units["flops"].to_pylist()
    assert names["costs"]["correct"].sum() == verdicts.count("correct")
    assert names["costs"]["flops"].sum() == sum(filter(None, spent))


def test_the_duckdb_example_runs(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = example(4, runs_folder, monkeypatch)
    rows = names["by_level"].fetchall()
    run = example(0, runs_folder, monkeypatch)["run"]
    assert {row[3] for row in rows} == {"1", "2"}
    assert sum(row[5] for row in rows) == run.solutions.num_rows


def test_the_path_example_runs(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = example(5, runs_folder, monkeypatch)
    path, solution = names["path"], names["solution"]
    assert "".join(step["text"] for step in path) == solution["text"]
    assert [step["reward"] for step in path if step["reward"] is not None] == solution["rewards"]


# docs/recipes.md


def key_rows(section: type[BaseModel], elsewhere: type[BaseModel]) -> Iterator[list[str]]:
    """What the page must say of each key of a section: name, type, default, meaning."""
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        if name in elsewhere.model_fields and field.description == described(elsewhere, name):
            continue
        kind = kind_of(schema["properties"][name], schema.get("$defs", {}))
        yield [f"`{name}`", kind, default_of(field), str(field.description)]


def described(section: type[BaseModel], name: str) -> str | None:
    return section.model_fields[name].description


def kind_of(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return kind_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        kinds = [part for part in schema["anyOf"] if part.get("type") != "null"]
        return f"{kind_of(kinds[0], definitions)}, or null"
    if "oneOf" in schema:
        return kind_of(schema["oneOf"][0], definitions)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of: {kind_of(schema['items'], definitions)}"
    if schema["type"] == "object":
        return "section" if "properties" in schema else "keys and values"
    return " ".join([WORDS[schema["type"]], *bounds(schema)])


def bounds(schema: dict[str, Any]) -> list[str]:
    return [word.format(f"{schema[key]:g}") for key, word in LIMITS.items() if key in schema]


def default_of(field: FieldInfo) -> str:
    """A default as it would stand in a recipe."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "see below"
    return f"`{default if isinstance(default, str) and default.isalnum() else json.dumps(default)}`"


@pytest.mark.parametrize("heading", list(SECTIONS))
def test_every_key_of_a_recipe_is_documented(heading: str) -> None:
    expected = [f"| {' | '.join(row)} |" for row in key_rows(*SECTIONS[heading])]
    keys = chapter("recipes.md", heading).partition("| key |")[2].partition("\n\n")[0]
    written = [line for line in keys.splitlines() if line.startswith("| `")]
    assert written == expected, "recipes.md should say:\n" + "\n".join(expected)


def small_recipe(folder: Path) -> Path:
    """The page's first example as a file."""
    path = folder / "small.yaml"
    path.write_text(fenced("recipes.md", "yaml")[0])
    return path


@pytest.mark.parametrize("number", range(len(fenced("recipes.md", "yaml"))))
def test_every_example_is_a_recipe_or_a_part_of_one(number: int) -> None:
    first, part = (yaml.safe_load(fenced("recipes.md", "yaml")[place]) for place in (0, number))
    assert parse_recipe(first | part)


def test_the_overrides_of_the_page_work(tmp_path: Path) -> None:
    [line] = [block for block in fenced("recipes.md", "sh") if "small.yaml seed=" in block]
    overrides = [word.strip("'") for word in re.findall(r"'[^']+'|\S+=\S+", line)]
    recipe = load_recipe(small_recipe(tmp_path), overrides)
    assert len(overrides) == 4
    assert (recipe.seed, recipe.policies[0].replicas) == (2, 4)
    assert (recipe.searches[1].n, recipe.limits.max_steps) == ((4, 16), 12)


def cells(heading: str) -> list[tuple[str, str]]:
    """The two columns of a table of mistakes and messages."""
    pairs = [
        [cell.strip("`") for cell in row] for row in table_rows(chapter("recipes.md", heading))
    ]
    return [(mistake, line) for mistake, line in pairs]


@pytest.mark.parametrize(("override", "line"), cells("What is refused"))
def test_a_mistake_reads_as_the_page_says(tmp_path: Path, override: str, line: str) -> None:
    path = small_recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert str(caught.value) == f"{path}: {line}"


@pytest.mark.parametrize(("row", "line"), cells("Rows that are left out"))
def test_a_bad_row_reads_as_the_page_says(tmp_path: Path, row: str, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}\n' + row + "\n")
    _, bad = load_problems([DataSource(source=str(path))])
    assert isinstance(bad, BadProblem)
    assert bad.error == line


# All pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
