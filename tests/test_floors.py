"""The floors hold: `search/` runs without Ray and without a model library."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys
import search
names = [module.name for module in pkgutil.walk_packages(search.__path__, "search.")]
assert "search.strategies.dvts" in names and "search.scripted" in names, names
for name in names:
    importlib.import_module(name)
"""

RUN_DVTS = """
import asyncio
from search.config import SearchConfig
from search.partition import partition, run_unit
from search.problem import Problem
from search.rewards import Reduction
from search.rows import solution_table
from search.scripted import SeededPolicy, SeededPRM
config = SearchConfig("dvts", 8, 2, 1, Reduction.LAST, 0)
[unit] = partition(Problem("p", "What is 6 x 7?", "42"), config, 8)
growth = asyncio.run(run_unit(unit, SeededPolicy(), SeededPRM()))
assert solution_table(unit, "fake", growth).num_rows == 8
"""

LOADED = """
heavy = {"ray", "torch", "vllm", "transformers"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
"""


def run_python(*arguments: str) -> str:
    """What an interpreter of its own writes, run at the repository root; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.unit
def test_search_imports_no_cluster_and_no_model_library() -> None:
    run_python("-W", "error", "-c", IMPORT_ALL + LOADED)


@pytest.mark.unit
def test_a_search_runs_without_them() -> None:
    run_python("-W", "error", "-c", IMPORT_ALL + RUN_DVTS + LOADED)


LINT_IMPORTS = """
from importlinter.cli import lint_imports_command
lint_imports_command(["--no-cache"])
"""


@pytest.mark.unit
def test_the_import_contracts_are_kept() -> None:
    # Through the interpreter, so that no script folder need be on PATH.
    assert "0 broken" in run_python("-c", LINT_IMPORTS)
