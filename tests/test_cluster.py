"""Real Ray: a cluster of three nodes and a single one, the same recipe, the same tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from jobs.driver import RunOutcome, run_recipe
from jobs.recipe import parse_recipe
from jobs.results import Run, load_run
from search.schemas import SOLUTIONS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(600),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

KEYS = ["problem_id", "policy", "strategy", "n", "subtree", "solution_id"]
EMBEDDED = Path(__file__).parent.parent / "embedded" / "models"


@pytest.fixture(scope="module")
def three_nodes(no_ray_token: None) -> Iterator[str]:
    """The address of a cluster of three nodes, as the driver would be given it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    fake = {"model": "fake", "engine": "fake"}
    return {
        "name": "test",
        "seed": 3,
        "data": {"source": "reasoning_gym:chain_sum", "size": 3, "seed": 11},
        "policies": [{**fake, "name": "fake", "options": {"p": 0.8}}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "dvts", "n": 64, "branching": 4}],
        "limits": {"max_steps": 8, "max_step_tokens": 60, "max_solution_tokens": 400},
        "work": {"solutions_per_unit": 16, "units_in_flight": 6},
        "runs_folder": str(folder),
    } | changes


def run(document: dict[str, Any], address: str | None) -> tuple[RunOutcome, Run]:
    outcome = run_recipe(parse_recipe(document), address, Console(quiet=True))
    return outcome, load_run(outcome.folder)


def rows_as_bytes(table: pa.Table) -> bytes:
    """A table's rows in the order of their keys, as Arrow's own bytes."""
    ordered = table.sort_by([(key, "ascending") for key in KEYS]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ordered.schema) as stream:
        stream.write_table(ordered)
    return bytes(sink.getvalue())


def test_dvts_on_three_nodes_equals_one_node(three_nodes: str, tmp_path: Path) -> None:
    slow = recipe(tmp_path / "many")
    # Long enough that a machine's first worker is there before the others have done its work.
    slow["policies"][0]["options"] |= {"iteration_s": 0.05}
    many, on_many = run(slow, three_nodes)
    one, on_one = run(
        recipe(tmp_path / "one", work={"solutions_per_unit": 64, "units_in_flight": 2}), None
    )
    assert many.failed_units == one.failed_units == 0
    assert len(set(on_many.units["ray_node_id"].to_pylist())) == 3
    assert len(set(on_one.units["ray_node_id"].to_pylist())) == 1
    assert on_many.units.num_rows == 3 * 4
    assert on_many.solutions.num_rows >= 3 * 64
    without_units = [name for name in on_many.solutions.column_names if name != "unit_id"]
    assert rows_as_bytes(on_many.solutions.select(without_units)) == rows_as_bytes(
        on_one.solutions.select(without_units)
    )


def test_every_strategy_runs_and_replicas_change_nothing(three_nodes: str, tmp_path: Path) -> None:
    searches = [
        {"strategy": "majority", "n": 8},
        {"strategy": "best_of_n", "n": 8},
        {"strategy": "beam", "n": [4, 8]},
        {"strategy": "dvts", "n": 8},
    ]
    document = recipe(tmp_path / "a", searches=searches)
    _, one_replica = run(document, three_nodes)
    # Eight solutions are more than a replica holds, so a search is spread over both.
    policies = [{**document["policies"][0], "replicas": 2, "max_batch": 4}]
    changed = recipe(tmp_path / "b", searches=searches, policies=policies)
    _, two_replicas = run(changed, three_nodes)
    assert len(set(two_replicas.units["policy_replica"].to_pylist())) == 2
    assert rows_as_bytes(one_replica.solutions) == rows_as_bytes(two_replicas.solutions)
    assert set(one_replica.units["strategy"].to_pylist()) == {s["strategy"] for s in searches}


def test_the_last_beams_write_ahead_and_their_solutions_stay(
    three_nodes: str, tmp_path: Path
) -> None:
    document = recipe(tmp_path / "ahead", searches=[{"strategy": "beam", "n": 16}])
    document["policies"][0]["options"] |= {"iteration_s": 0.005}
    _, ahead = run(document, three_nodes)
    plain_work = document["work"] | {"speculation": False}
    changed = document | {"work": plain_work, "runs_folder": str(tmp_path / "plain")}
    _, plain = run(changed, three_nodes)
    assert sum(ahead.units["speculated_policy_tokens"].to_pylist()) > 0
    assert sum(plain.units["speculated_policy_tokens"].to_pylist()) == 0
    assert rows_as_bytes(ahead.solutions) == rows_as_bytes(plain.solutions)


def test_a_unit_stays_on_one_replica(three_nodes: str, tmp_path: Path) -> None:
    document = recipe(tmp_path)
    document["policies"] = [{**document["policies"][0], "replicas": 2}]
    _, loaded = run(document, three_nodes)
    assert all(loaded.units["policy_replica"].to_pylist())
    assert all(loaded.units["prm_replica"].to_pylist())


@pytest.mark.parametrize(
    ("section", "options", "words"),
    [
        ("prm", {"nan_share": 0.02}, "PRMError: the PRM returned the reward nan"),
        ("policies", {"empty_share": 0.02}, "PolicyError: the policy returned 0 steps"),
    ],
)
def test_a_faulty_model_spoils_only_its_units(
    three_nodes: str, tmp_path: Path, section: str, options: dict[str, float], words: str
) -> None:
    sound = recipe(tmp_path / "sound", work={"solutions_per_unit": 4, "unit_attempts": 1})
    faulty = recipe(tmp_path / "faulty", work={"solutions_per_unit": 4, "unit_attempts": 1})
    if section == "prm":
        faulty["prm"] = {**faulty["prm"], "options": options}
    else:
        faulty["policies"] = [{**faulty["policies"][0], "options": {"p": 0.8, **options}}]
    _, expected = run(sound, three_nodes)
    outcome, found = run(faulty, three_nodes)
    errors = found.units.filter(pa.compute.equal(found.units["status"], "error")).to_pylist()
    assert 0 < outcome.failed_units == len(errors) < found.units.num_rows
    assert all(row["error"].startswith(words) for row in errors)
    spoiled = pa.array([row["unit_id"] for row in errors])
    untouched = pa.compute.invert(
        pa.compute.is_in(expected.solutions["unit_id"], value_set=spoiled)
    )
    # Fewer answers make fewer classes, so their numbers shift; all else stays.
    kept = [name for name in SOLUTIONS.names if name != "answer_class"]
    assert rows_as_bytes(found.solutions.select(kept)) == rows_as_bytes(
        expected.solutions.filter(untouched).select(kept)
    )


def test_bad_problems_are_rows_and_the_rest_runs(three_nodes: str, tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text(
        '{"id": "good", "problem": "1 + 1?", "answer": "2"}\n'
        '{"id": "no-text", "answer": "2"}\n'
        '{"id": "good", "problem": "again", "answer": "3"}\n'
        '{"id": "unreadable", "problem": "1 + 1?", "answer": "))(("}\n'
        "this is not JSON\n"
    )
    outcome, loaded = run(recipe(tmp_path, data={"source": str(data)}), three_nodes)
    problems = {row["problem_id"]: row["error"] for row in loaded.problems.to_pylist()}
    assert outcome.bad_problems == 4
    assert len(problems) == 5
    assert [name for name, error in problems.items() if error is None] == ["good"]
    assert "cannot be read" in problems["unreadable"]
    assert set(loaded.solutions["problem_id"].to_pylist()) == {"good"}


@pytest.mark.parametrize("replicas", [1, 2])
def test_transformers_engine_end_to_end(three_nodes: str, tmp_path: Path, replicas: int) -> None:
    """Byte-equal with one replica and two, one unit and many: promise 3, with real models."""
    policy = {"name": "small", "model": str(EMBEDDED / "policy-0.1m")}
    prm = {"model": str(EMBEDDED / "prm-2m"), "family": "qwen2.5-math-prm"}
    document = recipe(
        tmp_path / "one",
        policies=[policy],
        prm=prm,
        searches=[{"strategy": "dvts", "n": 16}, {"strategy": "beam", "n": 8}],
        limits={"max_steps": 6, "max_step_tokens": 32, "max_solution_tokens": 120},
    )
    outcome, expected = run(document, three_nodes)
    assert outcome.failed_units == 0
    split = {"solutions_per_unit": 4 * replicas, "units_in_flight": 3}
    changed = document | {"policies": [{**policy, "replicas": replicas}], "work": split}
    _, found = run(changed | {"runs_folder": str(tmp_path / "split")}, three_nodes)
    without_units = [name for name in found.solutions.column_names if name != "unit_id"]
    assert rows_as_bytes(found.solutions.select(without_units)) == rows_as_bytes(
        expected.solutions.select(without_units)
    )
