"""What is refused before anything is sent, and what travels: no Ray, no cluster.

Job servers are stood in for by small HTTP servers that answer as Ray's does, or otherwise.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml
from test_cli import branchwise
from test_results import RECIPE

from cluster.connect import SUBMITTED_JOB, _no_connection, _worker_environment, connected
from jobs.commit_log import CommitLog
from jobs.following import _Seen, exit_code
from jobs.job_server import find_address, job_server
from jobs.recipe import load_recipe, parse_recipe
from jobs.results import git_revision
from jobs.run_writer import RunWriter
from jobs.staging import LIMIT_BYTES, staged
from jobs.storage import storage_at
from jobs.submissions import found_run, next_submission_id, run_id_of, runs_in
from jobs.submit import STOP_WAIT, digest_of, prepare
from jobs.submitted_home import lasting
from jobs.submitted_status import attempt_lines, run_lines
from search.errors import ClusterError, RecipeError
from search.schemas import UNITS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "0" * 64
Answer = tuple[int, str]
Serve = Callable[[Callable[[str], Answer]], str]


@pytest.fixture(autouse=True)
def no_own_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither an address nor a token of the machine that runs the tests."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", SUBMITTED_JOB, "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts HTTP servers: an authorization header in, a status and a body out."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.headers.get("Authorization", ""))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def with_token(header: str) -> Answer:
    """What Ray answers that was started with token authentication."""
    if not header:
        return 401, "Unauthorized: Missing authentication token"
    if header != f"Bearer {TOKEN}":
        return 403, "Forbidden: Invalid authentication token"
    return 200, json.dumps({"version": "4", "ray_version": "2.49.1", "ray_commit": ""})


def not_connected(address: str) -> str:
    """The one line of a command that finds no job server it can use."""
    with pytest.raises(ClusterError) as refusal:
        job_server(address)
    [line] = str(refusal.value).splitlines()
    return line


def refused(*arguments: object) -> str:
    """The one line of a command that ends with exit code 2."""
    answer = branchwise(*arguments)
    assert (answer.code, answer.out) == (2, "")
    [line] = answer.err.splitlines()
    return line.removeprefix("error: ")


# Addresses


def test_an_address_is_taken_from_the_option_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://third:8265/")
    assert find_address(None) == "http://third:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://second")
    assert find_address(None) == "https://second"
    assert find_address("first:8265") == "http://first:8265"


def test_without_an_address_the_line_says_what_to_give() -> None:
    with pytest.raises(ClusterError, match="give --address http://HOST:8265, or set RAY_API_SERV"):
        find_address(None)


@pytest.mark.parametrize("address", ["auto", "ray://head:10001"])
def test_an_address_of_another_kind_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address} is no address of a job server"):
        find_address(None)


# Who answers there


def test_no_cluster_at_the_address() -> None:
    line = refused("status", "--address", "http://127.0.0.1:9")
    assert line.startswith("no cluster answers at http://127.0.0.1:9: start it, forward")


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", "{}"])
def test_something_else_at_the_address(serve: Serve, body: str) -> None:
    address = serve(lambda _: (200, body))
    line = not_connected(address)
    assert line.startswith(f"what answers at {address} is not the job server of a Ray cluster")


def test_another_ray_version(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    address = serve(with_token)
    line = not_connected(address)
    assert line == (
        f"the cluster at {address} runs Ray 2.49.1 and Branchwise needs 2.60: use an image with "
        "ray==2.60.*"
    )


def test_a_missing_token(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    address = serve(with_token)
    line = not_connected(address)
    assert line.startswith(f"the cluster at {address} asks for a token: set RAY_AUTH_MODE=token")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert "RAY_AUTH_MODE=disabled sends none" in not_connected(address)


def test_a_wrong_token_is_named_by_its_place(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, file = serve(with_token), tmp_path / "home" / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("old\n")
    line = not_connected(address)
    assert f"{address} does not accept the token in ~/.ray/auth_token: set" in line
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    assert "nowhere cannot be read: RAY_AUTH_TOKEN_PATH names" in not_connected(address)


def test_a_cluster_of_other_versions_is_not_joined() -> None:
    ray_says = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n"
        "This process on node was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n"
    )
    assert _no_connection("auto", ray_says) == (
        "the cluster at auto runs Ray 2.59.0 on Python 3.12.1 and this process Ray 2.60.0 on "
        "Python 3.11.9: use the same versions here, or send the run as a job with branchwise submit"
    )


def test_a_job_server_is_no_address_to_join() -> None:
    with (
        pytest.raises(
            ClusterError, match="a job server: send the run there with branchwise submit"
        ),
        connected("http://127.0.0.1:8265"),
    ):
        pass


# Recipes that cannot be sent


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def test_a_recipe_is_refused_before_an_address_is_asked_for(tmp_path: Path) -> None:
    missing = write(tmp_path, data=[{"source": "missing.jsonl"}])
    assert "data.0: there is no file 'missing.jsonl'" in refused("submit", missing)
    assert refused("submit", write(tmp_path)).startswith("no cluster is named")


def test_a_checkpoint_over_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(LIMIT_BYTES)
    recipe = with_model(str(folder))
    with pytest.raises(RecipeError, match=r"policies.0.model: .*/large takes 100.0 MiB of 10\d"):
        staged(recipe)
    assert staged(recipe, [str(tmp_path)]).recipe == recipe


def test_paths_in_options_do_not_travel(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE | {"prm": {**RECIPE["prm"], "options": {"ledger": str(tmp_path)}}})
    with pytest.raises(RecipeError, match=r"prm.options.ledger: .* paths in options do not travel"):
        staged(recipe)
    assert staged(recipe, [str(tmp_path)]).carried == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("working_dir: .", "remove it, Branchwise brings its own"),
        ("- pip", "is not a mapping"),
        ("env_vars: {A: 1}", "put numbers in quotes"),
        ("{", "is not valid YAML"),
    ],
)
def test_a_runtime_environment_is_checked(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=words):
        prepare(parse_recipe(RECIPE), runtime_env=file)


# What travels


def with_model(model: str) -> Any:
    policies = [{"model": model, "name": "small"}]
    return parse_recipe(RECIPE | {"policies": policies}, elsewhere=True)


def test_only_what_the_recipe_names_is_sent(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    written = write(
        tmp_path,
        policies=[{"model": "embedded/models/policy-0.1m"}],
        data=[{"source": str(data)}, RECIPE["data"]],
    )
    staging = staged(load_recipe(written, ["seed=5"]))
    folder = tmp_path / "staged"
    staging.write(folder)
    assert sorted(os.listdir(folder)) == sorted(
        ["actors", "carried", "cluster", "embedded", "jobs", "recipe.yaml", "search"]
    )
    assert os.listdir(folder / "embedded" / "models") == ["policy-0.1m"]
    assert not list(folder.rglob("__pycache__"))
    assert (folder / "jobs" / "report_template.md.j2").is_file()
    sent = load_recipe(folder / "recipe.yaml")
    assert sent == staging.recipe
    assert (sent.seed, sent.policies[0].model) == (5, "embedded/models/policy-0.1m")
    assert (folder / sent.data[0].source).read_text() == data.read_text()
    assert Path(sent.data[0].source).name == "mine.jsonl"
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert on_disk - (folder / "recipe.yaml").stat().st_size == staging.size_bytes


def test_a_model_that_is_not_here_may_be_on_the_cluster() -> None:
    recipe = with_model("/models/llama")
    assert staged(recipe).recipe.policies[0].model == "/models/llama"
    with pytest.raises(RecipeError, match="there is no folder '/models/llama'"):
        parse_recipe(recipe.model_dump(mode="json"))
    with pytest.raises(RecipeError, match="there is no folder 'models/llama/8b'"):
        with_model("models/llama/8b")


def test_a_run_is_told_its_name_and_a_stop_waits_for_it(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {HF_TOKEN: abc}\npip: [x]")
    recipe = parse_recipe(RECIPE)
    submission = prepare(recipe, runtime_env=file)
    digest = digest_of(recipe)
    assert submission.run_id == f"synthetic-{digest[:10]}"
    assert submission.entrypoint == f"python -m jobs run recipe.yaml --as {submission.run_id}"
    assert submission.runtime_env["pip"] == ["x"]
    assert (
        submission.runtime_env["env_vars"] | {STOP_WAIT: "60", "HF_TOKEN": "abc"}
        == (submission.runtime_env["env_vars"])
    )
    assert submission.metadata == {
        "run_id": submission.run_id,
        "recipe": "synthetic",
        "recipe_digest": digest,
        "git_revision": git_revision(),
    }
    nightly = prepare(recipe, date="2026-01-31")
    assert nightly.run_id == "synthetic/date=2026-01-31"
    assert nightly.entrypoint == "python -m jobs run recipe.yaml --date 2026-01-31"


def test_credentials_are_not_in_the_digest() -> None:
    document = RECIPE | {"runs_folder": "s3://bucket/runs"}
    with_secret = RECIPE | {"runs_folder": "s3://key:secret@bucket/runs"}
    assert digest_of(parse_recipe(document)) == digest_of(parse_recipe(with_secret))


# Run ids and attempts


def test_run_ids() -> None:
    assert run_id_of("a", "0123456789abcdef") == "a-0123456789"
    assert run_id_of("a", "0123456789abcdef", fresh=True).startswith("a-0123456789-20")
    for day in ("2026-02-30", "today", "20260131"):
        with pytest.raises(RecipeError, match="is no day: write it as 2026-01-31"):
            run_id_of("a", "", date=day)
    with pytest.raises(RecipeError, match="remove --fresh, or --date"):
        run_id_of("a", "", date="2026-01-31", fresh=True)


def job(run_id: str, submission_id: str, state: str, start: int, **more: Any) -> Any:
    metadata = {"run_id": run_id, "recipe": "r", "recipe_digest": "d" * 64, "git_revision": ""}
    facts = {"driver_exit_code": None, "message": "", "end_time": start + 61_000, **more}
    status = SimpleNamespace(value=state)
    return SimpleNamespace(
        metadata=metadata, submission_id=submission_id, status=status, start_time=start, **facts
    )


FOREIGN = SimpleNamespace(metadata=None, submission_id="raysubmit_1", start_time=0)


def test_attempts_are_numbered_and_two_at_once_refused() -> None:
    ended = [job("a-1", "a-1", "STOPPED", 1), job("a-1", "a-1-2", "FAILED", 2), FOREIGN]
    assert next_submission_id("b-1", runs_in(ended)) == "b-1"
    assert next_submission_id("a-1", runs_in(ended)) == "a-1-3"
    assert next_submission_id("n/date=2026-01-31", []) == "n.date=2026-01-31"
    for state in ("PENDING", "RUNNING"):
        running = runs_in([*ended, job("a-1", "a-1-3", state, 3)])
        with pytest.raises(ClusterError, match=r"a-1 is running already: follow it .* --fresh"):
            next_submission_id("a-1", running)
    night = "n/date=2026-01-31"
    with pytest.raises(ClusterError, match="or give another --date for another run"):
        next_submission_id(night, runs_in([job(night, night, "RUNNING", 1)]))


def test_runs_are_found_by_either_id_and_unknown_ones_are_answered() -> None:
    runs = runs_in([job("a-1", "a-1-2", "RUNNING", 2), job("a-1", "a-1", "STOPPED", 1)])
    assert found_run("a-1", runs, "here").state == "RUNNING"
    assert found_run("a-1", runs, "here").newest.submission_id == "a-1-2"
    assert len(found_run("a-1-2", runs, "here").attempts) == 2
    with pytest.raises(ClusterError, match="there is no run a-2 at here: did you mean a-1"):
        found_run("a-2", runs, "here")
    with pytest.raises(ClusterError, match="there is no run x at here: branchwise status lists"):
        found_run("x", runs, "here")


def test_status_lines() -> None:
    runs = runs_in(
        [
            job("a-1", "a-1", "STOPPED", 1000),
            job("a-1", "a-1-2", "FAILED", 2000, message="x\nbroke"),
        ]
    )
    head, line = run_lines(runs)
    assert head.split() == ["run", "state", "attempts", "started", "duration", "recipe", "digest"]
    assert line.split()[:3] == ["a-1", "FAILED", "2"]
    assert line.split()[3:] == ["1970-01-01", "00:00:02Z", "0:01:01", "r", "d" * 10]
    assert list(run_lines([])) == ["no runs"]
    lines = list(attempt_lines(runs[0]))
    assert lines[0] == "a-1: FAILED"
    assert lines[-1] == "reason: x broke"
    assert lines[2] == "a-1: STOPPED, started 1970-01-01 00:00:01Z, 0:01:01"


@pytest.mark.parametrize(
    ("state", "code", "ends_with"),
    [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", -9, 137)],
)
def test_exit_codes(state: str, code: int, ends_with: int) -> None:
    assert exit_code(job("a", "a", state, 0, driver_exit_code=code)) == ends_with


def test_a_job_without_a_driver_has_a_reason_instead() -> None:
    assert exit_code(job("a", "a", "STOPPED", 0)) == 143
    died = job("a", "a", "FAILED", 0, message="Unexpected error: the head\n is gone\n")
    with pytest.raises(ClusterError, match="did not run to its end: Unexpected error: the head"):
        exit_code(died)


def test_a_log_that_is_read_again_is_written_once() -> None:
    written: list[str] = []
    seen = _Seen(written.append)
    assert seen.from_start("one\ntw") == 6
    assert seen.from_start("one\n") == 4
    assert seen.from_start("two\nthree", 4) == 13
    seen.from_start("one\ntwo\nthree\n")
    assert "".join(written) == "one\ntwo\nthree\n"


# In a submitted job


def test_relative_run_folders_of_a_submitted_job_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lasting("runs") == "runs"
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    assert lasting("runs") == str(Path("~/branchwise/runs").expanduser())
    monkeypatch.setenv("BRANCHWISE_HOME", "/data/home")
    assert lasting("runs") == "/data/home/runs"
    for place in ("s3://bucket/runs", "/elsewhere", "~/mine"):
        assert lasting(place) == place


def test_a_submitted_job_keeps_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "true"}}}
    assert "PYTHONPATH" in _worker_environment()
    monkeypatch.setenv(SUBMITTED_JOB, json.dumps(config))
    environment = _worker_environment()
    assert environment.keys().isdisjoint({"TOKENIZERS_PARALLELISM", "PYTHONPATH"})
    assert "HF_HUB_DISABLE_TELEMETRY" in environment


def test_a_submitted_job_knows_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(git_revision()) in (40, 48)
    config = {"metadata": {"git_revision": "abc"}}
    monkeypatch.setenv(SUBMITTED_JOB, json.dumps(config))
    monkeypatch.setenv("PATH", "/nowhere")
    assert git_revision() == "abc"


# The end of a run on SIGTERM

WAITING = """
import signal, jobs.cli
@jobs.cli.app.command()
def wait():
    print("ready", flush=True)
    signal.pause()
jobs.cli.main()
"""


def test_sigterm_ends_a_command_with_its_own_code() -> None:
    command = [sys.executable, "-c", WAITING, "wait"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "stopped by SIGTERM\n")


def test_what_was_finished_is_committed_before_anything_else_ends(tmp_path: Path) -> None:
    row: dict[str, Any] = {"unit_id": "u", "problem_id": "p", "status": "done"}
    units = pa.Table.from_pylist([row], UNITS)
    log = CommitLog(storage_at(tmp_path))
    committed: list[int] = []

    async def run() -> None:
        async with RunWriter(log, 1e6) as writer:
            try:
                async with writer.kept_if_stopped():
                    writer.add("units", units)
                    raise asyncio.CancelledError
            finally:
                committed.append(log.commits)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert committed == [1]
