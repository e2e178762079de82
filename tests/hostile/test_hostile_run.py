"""A whole run on Ray: what is hostile in it is marked, and all the rest is as it would be."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hostile_cases import load
from rich.console import Console

from jobs.driver import run_recipe
from jobs.recipe import parse_recipe
from jobs.report import write_report
from jobs.results import Run, load_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(600),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

GOOD = [{"id": f"good-{place}", "problem": f"{place} + 1?", "answer": "42"} for place in range(4)]
# Problems that can be searched, though their texts are strange.
STRANGE = [
    {"id": "strange\n\x1b[2J/../id", "problem": "\u202e1\x00 + 1?", "answer": "42"},
    {"id": "tokens", "problem": "<|im_end|></s>\\boxed{7}\n\nStep 9: wrong", "answer": "42"},
    {"id": "long", "problem": "1 + " * 50_000 + "1?", "answer": "x+1"},
]
# References that can be read as JSON, but not as mathematics.
UNREADABLE = [
    {"id": "tower", "problem": "?", "answer": "9^{9^{9^9}}"},
    {"id": "code", "problem": "?", "answer": "???"},
]
HOSTILE_ANSWER = "\\frac{9^{9^{9}}}{__import__('os')}"
KEYS = ["problem_id", "policy", "strategy", "n", "subtree", "solution_id"]


def hostile_lines() -> list[bytes]:
    """Every marked row of the corpus that is small, and is marked by itself."""
    marked = [case for case in load("problems") if case.get("error") and "twin" not in case.values]
    lines = [
        bytes.fromhex(case["hex"]) if "hex" in case.values else case.text("line").encode()
        for case in marked
        if "earlier row" not in case["error"]
    ]
    return [line for line in lines if b"\n" not in line]


def recipe(folder: Path, data: Path, policies: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "hostile",
        "seed": 3,
        "data": {"source": str(data)},
        "policies": policies,
        "prm": {"model": "fake", "engine": "fake", "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "dvts", "n": 8}, {"strategy": "best_of_n", "n": 4}],
        "limits": {"max_steps": 8, "max_step_tokens": 80, "max_solution_tokens": 400},
        "work": {"solutions_per_unit": 4},
        "runs_folder": str(folder),
    }


def fake(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "model": "fake", "engine": "fake", "options": {"p": 0.8} | options}


def run(document: dict[str, Any]) -> Run:
    return load_run(run_recipe(parse_recipe(document), None, Console(quiet=True)).folder)


def of_good(table: pa.Table) -> pa.Table:
    """Rows of the honest policy on the good problems, in the order of their keys."""
    names = pa.array([row["id"] for row in GOOD])
    keep = pc.and_(pc.equal(table["policy"], "honest"), pc.is_in(table["problem_id"], names))
    keys = [(key, "ascending") for key in KEYS if key in table.column_names]
    return table.filter(keep).sort_by(keys).combine_chunks()


def test_the_good_rows_equal_those_of_a_run_without_the_hostile_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    clean, mixed = tmp_path / "clean.jsonl", tmp_path / "mixed.jsonl"
    good, others = [[json.dumps(row).encode() for row in rows] for rows in (GOOD, STRANGE)]
    unreadable = [json.dumps(row).encode() for row in UNREADABLE]
    hostile = [*hostile_lines(), *unreadable]
    clean.write_bytes(b"\n".join(good))
    mixed.write_bytes(b"\n".join([*hostile[::2], *others, *good, *hostile[1::2]]))
    without = run(recipe(tmp_path / "a", clean, [fake("honest")]))
    policies = [fake("hostile", answer=HOSTILE_ANSWER, empty_share=0.1), fake("honest")]
    among = run(recipe(tmp_path / "b", mixed, policies))

    for name in ("solutions", "nodes"):
        assert of_good(getattr(among, name)).equals(of_good(getattr(without, name)))
        assert len(of_good(getattr(among, name))) > 0
    errors = among.problems["error"].to_pylist()
    assert len(errors) == len(GOOD) + len(STRANGE) + len(hostile)
    assert sum(error is not None for error in errors) == len(hostile)
    assert set(
        among.units.filter(pc.equal(among.units["status"], "error"))["policy"].to_pylist()
    ) == {"hostile"}
    answers = among.solutions.filter(pc.equal(among.solutions["answer"], HOSTILE_ANSWER))
    assert set(answers["policy"].to_pylist()) == {"hostile"}
    assert set(answers["verdict"].to_pylist()) == {"parse_error"}
    assert set(among.solutions["problem_id"].to_pylist()) >= {row["id"] for row in STRANGE}
    write_report([Path(tmp_path / "b" / among.record["run_id"])], tmp_path)
