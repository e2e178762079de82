"""Runs as jobs of a real job server, with tokens: sent, followed, stopped, gone on with, refused.

One head serves all tests; what a test waits for is progress of a run, seen in its folder.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import BIN, Head, ray_head

from jobs.results import Run, load_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 240.0
PROBLEMS = 4
UNITS = PROBLEMS * 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def head(home: Path) -> Iterator[Head]:
    with ray_head(home) as started:
        yield started


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone: what git tracks, and nothing that was built or installed."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    fake = {"model": "fake", "engine": "fake"}
    return {
        "name": name,
        "seed": 3,
        "data": [{"source": "reasoning_gym:chain_sum", "size": PROBLEMS, "seed": 11}],
        "policies": [{**fake, "name": "fake", "options": {"p": 0.8}}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "dvts", "n": 16, "branching": 4}],
        "limits": {"max_steps": 8, "max_step_tokens": 60, "max_solution_tokens": 400},
        "work": {"solutions_per_unit": 8, "units_in_flight": 2, "checkpoint_interval_s": 0.2},
    } | changes


def slow(name: str) -> dict[str, Any]:
    """Seconds of work, of which some is committed before the rest is begun."""
    document = recipe(name)
    document["policies"][0]["options"]["iteration_s"] = 0.012
    return document


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / f"{document['name']}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def branchwise(
    head: Head, *arguments: object, cwd: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    """A command of the checkout, told of the head by the environment."""
    environment = head.environment | {"RAY_API_SERVER_ADDRESS": head.address}
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S
    )


def ray_job(head: Head, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [f"{BIN}/ray", "job", *map(str, arguments)]
    environment = head.environment | {"RAY_API_SERVER_ADDRESS": head.address}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def has_commits(home: Path, name: str) -> bool:
    return any(home.glob(f"runs/{name}-*/commits/*-units.parquet"))


def run_of(home: Path, name: str) -> tuple[Path, Run]:
    [folder] = home.glob(f"runs/{name}-*")
    return folder, load_run(folder)


def deployed_on(head: Head) -> list[str]:
    """Serve's applications."""
    return sorted(json.loads(head.get("/api/serve/applications/"))["applications"])


def test_a_run_is_stopped_and_gone_on_with(head: Head, home: Path, tmp_path: Path) -> None:
    data = tmp_path / "one.jsonl"
    data.write_text('{"problem": "1 + 1?", "answer": ""}\n')
    document = slow("stopped")
    document["data"].append({"source": str(data)})
    path = write(tmp_path, document)

    begun = branchwise(head, "submit", path, "--no-wait")
    run_id = begun.stdout.strip()
    assert begun.returncode == 0, begun.stderr
    assert run_id.startswith("stopped-")
    wait_for(lambda: has_commits(home, "stopped"))

    again = branchwise(head, "submit", path)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith(f"error: {run_id} is running already: follow")

    stopped = branchwise(head, "stop", run_id)
    assert stopped.stdout == f"{run_id} is stopped: submit its recipe again to go on with it\n"
    log = branchwise(head, "logs", run_id).stdout
    assert log.splitlines()[-1] == "stopped by SIGTERM"
    assert deployed_on(head) == []
    folder, record = run_of_unfinished(home, "stopped")
    assert record["finished_at"] == ""
    assert not (folder / "writers").exists()

    finished = branchwise(head, "submit", path)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "is continued" in finished.stdout
    assert f"results go to {home}/runs on " in finished.stdout
    assert "1 problems were left out" in " ".join(finished.stdout.split())
    assert "\x1b" not in finished.stdout
    folder, run = run_of(home, "stopped")
    units = run.units["unit_id"].to_pylist()
    assert len(units) == len(set(units)) == UNITS
    assert run.units["status"].to_pylist() == ["done"] * UNITS
    assert run.problems.num_rows == PROBLEMS + 1
    assert str(folder) in finished.stdout
    assert deployed_on(head) == []

    [line] = branchwise(head, "status").stdout.splitlines()[1:]
    assert line.split()[:3] == [run_id, "FAILED", "2"]
    one = branchwise(head, "status", run_id).stdout
    assert f"{run_id}: STOPPED" in one
    assert f"{run_id}-2: FAILED" in one
    assert run.record["recipe_digest"] in one
    assert run.record["git_revision"] in one
    assert branchwise(head, "logs", f"{run_id}-2", "--follow").returncode == 1
    unknown = branchwise(head, "stop", run_id[:-1])
    assert unknown.returncode == 2
    assert f"did you mean {run_id}" in unknown.stderr


def run_of_unfinished(home: Path, name: str) -> tuple[Path, dict[str, Any]]:
    [folder] = home.glob(f"runs/{name}-*")
    return folder, json.loads((folder / "run.json").read_text())


def test_a_fresh_clone_is_submitted_with_rays_own_command(
    head: Head, home: Path, clone: Path
) -> None:
    write(clone, slow("plain"))
    command = ["submit", "--working-dir", clone, "--"]
    entrypoint = ["python", "-m", "jobs", "run", "plain.yaml"]
    begun = ray_job(
        head, *command[:1], "--no-wait", "--submission-id", "plain", *command[1:], *entrypoint
    )
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: has_commits(home, "plain"))
    # Three seconds after SIGTERM comes SIGKILL: the last line says that they were enough.
    assert ray_job(head, "stop", "plain").returncode == 0
    assert ray_job(head, "logs", "plain").stdout.splitlines()[-1] == "stopped by SIGTERM"
    assert deployed_on(head) == []

    finished = ray_job(head, *command, *entrypoint)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " done: " in finished.stdout
    assert "policy fake]" in finished.stdout
    _, run = run_of(home, "plain")
    assert run.units["status"].to_pylist() == ["done"] * UNITS


def test_a_run_that_cannot_write_fails_at_once(head: Head, tmp_path: Path) -> None:
    path = write(tmp_path, recipe("unwritable", runs_folder="/proc/branchwise"))
    answer = branchwise(head, "submit", path)
    assert answer.returncode == 2
    last = answer.stdout.splitlines()[-1]
    assert last.startswith("error: ")
    assert "/proc/branchwise" in last


def test_an_image_without_vllm(head: Head, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "vllm.py").write_text("raise ModuleNotFoundError('no vllm here', name='vllm')")
    file = tmp_path / "environment.yaml"
    file.write_text(yaml.safe_dump({"env_vars": {"PYTHONPATH": str(hidden)}}))
    policies = [{"model": "embedded/models/policy-0.1m", "engine": "vllm"}]
    path = write(tmp_path, recipe("without-vllm", policies=policies))
    answer = branchwise(head, "submit", path, "--runtime-env", file)
    last = answer.stdout.splitlines()[-1]
    assert answer.returncode == 2
    assert last.startswith("error: the policy "), answer.stdout
    assert "vLLM is not installed" in last
    assert deployed_on(head) == []


def test_a_run_ends_well(head: Head, home: Path, tmp_path: Path) -> None:
    path = write(tmp_path, recipe("well"))
    answer = branchwise(head, "submit", path, "seed=4", "--address", head.address)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    _, run = run_of(home, "well")
    assert run.record["recipe"]["seed"] == 4
    assert run.problems["error"].to_pylist() == [None] * PROBLEMS


def test_a_token_that_is_missing_or_wrong(head: Head) -> None:
    for token, words in (("", "asks for a token"), ("wrong", "does not accept the token in RAY_")):
        environment = head.environment | {"RAY_AUTH_TOKEN": token, "HOME": "/nowhere"}
        answer = branchwise(Head(head.address, environment), "status")
        assert answer.returncode == 2
        [line] = answer.stderr.splitlines()
        assert words in line
