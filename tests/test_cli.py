"""The command line: quick to answer, one line for a mistake, and no Ray before a recipe is good.

Each command runs in an interpreter of its own, as `python -m jobs` does.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from routed_world import World, write_world
from test_results import RECIPE, synthetic_run

import jobs.cli
from jobs.catalogue import embedded_models
from jobs.fit_report import fit_report
from jobs.grading import GradingError
from jobs.routes import load_artifact
from search.errors import BranchwiseError, ClusterError, RecipeError, StorageError
from search.strategies import STRATEGIES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
MODEL_LIBRARIES = {"ray", "torch", "transformers", "vllm", "datasets", "reasoning_gym"}
COMMANDS = ("run", "plan", "report", "fit", "votes", "models", "strategies")
HEAVY = MODEL_LIBRARIES | {
    "math_verify",
    "matplotlib",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "sympy",
    "tokenizers",
}
# Runs the command as `python -m jobs`, then writes what it has imported as the last line.
MAIN = """
import runpy, sys
try:
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
finally:
    print("\\n" + " ".join({name.partition(".")[0] for name in sys.modules}))
"""


@dataclass(frozen=True)
class Answer:
    """What a command left behind; `loaded`: top-level modules it has imported."""

    code: int
    out: str
    err: str
    loaded: set[str]


def branchwise(*arguments: object) -> Answer:
    """Runs one command of `branchwise` from the repository root."""
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    out, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    return Answer(done.returncode, out.strip(), done.stderr, set(modules.split()))


def write_recipe(folder: Path, **changes: Any) -> Path:
    """The fake recipe of the synthetic run, with its runs under the same folder."""
    path = folder / "recipe.yaml"
    recipe = RECIPE | {"runs_folder": str(folder / "runs")} | changes
    path.write_text(yaml.safe_dump(recipe))
    return path


def refused_line(answer: Answer) -> str:
    """The one line on stderr of a command that was refused before Ray was imported."""
    assert answer.code == 2
    [line] = answer.err.splitlines()
    assert answer.loaded & MODEL_LIBRARIES == set()
    assert answer.out == ""
    assert line.startswith("error: ")
    return line


# Help and lists

COMMANDS = (
    *("run", "plan", "report", "contamination", "models", "strategies"),
    *("compare", "history"),
)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["votes", "--help"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    answer = branchwise(*arguments)
    assert "Usage" in answer.out + answer.err
    assert "typer" in answer.loaded
    assert answer.loaded & HEAVY == set()
    assert answer.code == (0 if arguments else 2)


def test_help_names_every_command() -> None:
    out = branchwise("--help").out
    assert all(f" {name} " in out for name in COMMANDS)


def test_models_are_listed_without_loading_one() -> None:
    answer = branchwise("models")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == list(embedded_models())
    assert answer.loaded & MODEL_LIBRARIES == set()


def test_strategies_are_listed() -> None:
    answer = branchwise("strategies")
    assert (answer.code, answer.err) == (0, "")
    lines = [line.split(maxsplit=1) for line in answer.out.splitlines()]
    assert lines[:-1] == [[name, strategy.summary] for name, strategy in STRATEGIES.items()]
    assert lines[-1][0] == "compute_optimal"
    assert answer.loaded & MODEL_LIBRARIES == set()


# Plans


def test_a_plan_is_printed_without_a_model_library() -> None:
    answer = branchwise("plan", "jobs/recipes/math500-llama1b-dvts512.yaml", "data.size=20")
    assert (answer.code, answer.err) == (0, "")
    assert "Llama-3.2-1B-Instruct" in answer.out
    assert "2.3 GiB a GPU" in answer.out
    assert answer.loaded & HEAVY == set()


def test_a_plan_that_cannot_fit_is_refused_by_plan_and_run() -> None:
    recipe = "jobs/recipes/math500-llama1b-dvts512.yaml"
    planned = branchwise("plan", recipe, "cluster.gpu_memory_gib=12")
    [line] = planned.err.splitlines()
    assert planned.code == 2
    assert "left for KV cache" in planned.out
    assert line == refused_line(branchwise("run", recipe, "cluster.gpu_memory_gib=12"))


# Reports


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("runs"))


def test_a_report_is_written_beside_the_tables(run_folder: Path) -> None:
    answer = branchwise("report", run_folder)
    drawn = ("accuracy", "selection", "budgets", "difficulty")
    figures = [f"{name}.{kind}" for name in drawn for kind in ("png", "svg")]
    names = ["report.md", *figures]
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [str(run_folder / name) for name in names]
    assert all((run_folder / name).stat().st_size for name in names)
    assert answer.loaded & MODEL_LIBRARIES == set()


def test_a_report_goes_where_it_is_told(run_folder: Path, tmp_path: Path) -> None:
    answer = branchwise("report", run_folder, "--to", tmp_path / "new" / "folder")
    assert answer.code == 0
    assert run_folder.name in (tmp_path / "new" / "folder" / "report.md").read_text()


def test_a_report_on_no_run_is_refused(tmp_path: Path) -> None:
    line = refused_line(branchwise("report", tmp_path))
    assert line == f"error: {tmp_path} is not a run folder: no readable run.json there"


def test_a_report_on_half_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert "run_id is missing" in refused_line(branchwise("report", tmp_path))
    texts = ("run_id", "recipe_digest", "git_revision", "started_at", "finished_at")
    record = dict.fromkeys(texts, "") | {"recipe": {}, "seeds": {}, "versions": {}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "units.parquet" in refused_line(branchwise("report", tmp_path))


# Fitting


def test_a_fit_writes_a_file_and_prints_its_worth(tmp_path: Path) -> None:
    folder, path = write_world(tmp_path / "run", World(problems=8)), tmp_path / "routes.yaml"
    answer = branchwise("fit", folder, "--to", path, "--budget", "16", "--standard-errors", 0)
    assert (answer.code, answer.err) == (0, "")
    assert answer.loaded & MODEL_LIBRARIES == set()
    learned = load_artifact(path)
    assert fit_report(learned) in answer.out + "\n"
    assert answer.out.splitlines()[-1] == str(path)
    [policy] = learned.policies
    assert [row.budget for row in policy.validation] == [4, 16]
    assert learned.standard_errors == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--budget", "many"], "cannot read the budget 'many'"),
        (["--easy", "0.1"], "thresholds easy=0.1, hard=0.1: choose 0 < hard < easy <= 1"),
        (["--probe", "0"], "a probe of 0 samples tells nothing"),
        ([], "is not a run folder: no readable run.json there"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(tmp_path: Path, arguments: list[str], line: str) -> None:
    path = tmp_path / "routes.yaml"
    assert line in refused_line(branchwise("fit", tmp_path, "--to", path, *arguments))
    assert not path.exists()


# Votes


def test_votes_are_printed_and_written(run_folder: Path, tmp_path: Path) -> None:
    answer = branchwise("votes", run_folder)
    assert (answer.code, answer.err) == (0, "")
    assert "PRM-Last-Vote" in answer.out
    assert answer.loaded & MODEL_LIBRARIES == set()
    file = tmp_path / "votes.csv"
    written = branchwise("votes", run_folder, "--compat", "search_and_learn", "--to", file)
    assert (written.code, written.out) == (0, str(file))
    assert file.read_text().startswith("run,prm,policy,strategy,n,branching,row,")


def test_votes_on_no_run_or_by_no_rule_are_refused(run_folder: Path, tmp_path: Path) -> None:
    line = refused_line(branchwise("votes", tmp_path))
    assert line == f"error: {tmp_path} is not a run folder: no readable run.json there"
    unknown = refused_line(branchwise("votes", run_folder, "--compat", "none"))
    assert "choose from search_and_learn, compute_optimal_tts" in unknown


# Recipes that are refused


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("limits.max_stepz=3", "unknown key 'limits.max_stepz': did you mean 'max_steps'?"),
        ("searches.2.strategy=bean", "unknown strategy 'bean': did you mean 'beam'?"),
        ("searches.2.n=10", "searches.2.n=10 is not a multiple of branching=4: use 8 or 12"),
        ("nothing", "the override 'nothing' needs the form key.path=value"),
    ],
)
def test_a_refused_recipe_is_one_line(tmp_path: Path, override: str, line: str) -> None:
    path = write_recipe(tmp_path)
    refused = refused_line(branchwise("run", path, override))
    assert refused.startswith(f"error: {path}: ")
    assert line in refused
    assert not (tmp_path / "runs").exists()


def test_a_missing_model_folder_is_one_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, policies=[{"model": str(tmp_path / "none")}])
    line = refused_line(branchwise("run", path))
    assert f"policies.0.model: there is no folder '{tmp_path / 'none'}'" in line


def test_a_missing_recipe_is_one_line(tmp_path: Path) -> None:
    line = refused_line(branchwise("run", tmp_path / "none.yaml"))
    assert (
        line == f"error: cannot read the recipe {tmp_path / 'none.yaml'}: No such file or directory"
    )


def test_a_missing_data_file_is_one_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, data={"source": str(tmp_path / "none.jsonl")})
    line = refused_line(branchwise("run", path))
    assert f"data.0: there is no file '{tmp_path / 'none.jsonl'}'" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--as", "a b"], "--as 'a b' names no run: write letters, digits, '_', '-' and '.'"),
        (["--date", "friday"], "--date 'friday' is no day: write today, YYYY-MM-DD, or"),
        (["--date", "today", "--fresh"], "--date and --fresh each name the run: give one of them"),
        (["--catch-up"], "--also-if-running and --catch-up are for runs with --date: give one"),
    ],
)
def test_a_name_that_cannot_be_is_one_line(
    tmp_path: Path, options: list[object], line: str
) -> None:
    assert line in refused_line(branchwise("run", write_recipe(tmp_path), *options))
    assert not (tmp_path / "runs").exists()


def test_a_history_or_comparison_of_nothing_is_refused(run_folder: Path, tmp_path: Path) -> None:
    line = refused_line(branchwise("history", tmp_path))
    assert line.startswith(f"error: {tmp_path} holds no nights: give the folder with date=...")
    line = refused_line(branchwise("compare", run_folder, tmp_path))
    assert line == f"error: {tmp_path} is not a run folder: no readable run.json there"


# Errors on the way out


def outcome(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that raises the error."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(jobs.cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        jobs.cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("kind", [RecipeError, StorageError, ClusterError, GradingError])
def test_a_mistake_of_the_users_is_one_line_even_out_of_a_task_group(
    kind: type[BranchwiseError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grouped = ExceptionGroup("outer", [ExceptionGroup("inner", [kind("change this")])])
    assert outcome(kind("change this"), monkeypatch) == 2
    assert outcome(grouped, monkeypatch) == 2
    assert capsys.readouterr().err == "error: change this\n" * 2


def test_ctrl_c_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == ""


def test_a_fault_of_the_programs_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        outcome(ZeroDivisionError(), monkeypatch)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--gpus", 4], "--gpus needs --gpu-type, such as --gpu-type h100"),
        (["--gpus", 4, "--gpu-type", "h10"], "unknown GPU type 'h10': did you mean 'h100'?"),
        (["--gpu-type", "h100"], "a prediction needs --gpus: say how many"),
    ],
)
def test_a_prediction_is_refused_in_one_line(
    tmp_path: Path, options: list[object], line: str
) -> None:
    answer = branchwise("plan", write_recipe(tmp_path), *options)
    assert refused_line(answer) == f"error: {line}"
