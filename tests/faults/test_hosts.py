"""A search across three hosts, of which one loses its network in the middle and gets it back late.

The hosts are network namespaces, with Ray's head in the first and a worker machine in each other
one. Packets vanish without an answer, so that nothing but silence tells that a host is gone.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Host, hosts, reason_not_permitted
from test_driver_killed import committed_units, rows

from jobs.results import Run, load_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent
PROBLEMS = 4
PORT = 6379
# A machine that is silent for 5 checks is lost: after 10 to 15 seconds (docs/reliability.md).
DETECTION = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "disabled",
    "RAY_ADDRESS": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    # A machine under load is slow to start, and that is not what is tested.
    "RAY_raylet_start_wait_time_s": "150",
}
# Of the fake engines: so quick that a run is over at once, or so slow that it can be disturbed.
QUICK_S, SLOW_S = 0.0005, 0.01
PATIENCE_S = 200.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A host with Ray on it; all that Ray writes there is in `folder`."""

    host: Host
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "start.log"

    def start_ray(self, *words: str) -> None:
        """Returns when this machine has joined; `words` say what."""
        options = [f"--node-ip-address={self.host.address}", f"--temp-dir={self.folder}"]
        options += ["--num-cpus=4", "--object-store-memory=100000000", "--block"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *options]
        started = self.host.start(ray, self.log, {**ENVIRONMENT, **DETECTION})
        wait_until(lambda: "Ray runtime started" in self.log.read_text(), started, self.log)

    def lost(self) -> bool:
        """Whether the head, which is here, has found a machine lost."""
        logs = self.folder.glob("session_2*/logs/gcs_server.*")
        return any("health check failed" in log.read_text(errors="replace") for log in logs)

    def works(self) -> bool:
        """Whether a work unit runs here now: Ray names a process by what it does."""
        return any("work_units_task" in name for name in map(title, self.host.processes()))

    def replicas(self) -> str:
        """The names of the files that replicas on this machine write to."""
        return " ".join(path.name for path in self.folder.glob("session_2*/logs/serve/replica_*"))


def title(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """A Ray cluster of three hosts; the head is the first."""
    reason = reason_not_permitted()
    if reason:
        pytest.skip(reason)
    # Ray's sockets are in there, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="bw", dir="/tmp"))
    try:
        with hosts(3) as made:
            machines = [Machine(host, folder / host.cable) for host in made]
            for machine in machines:
                machine.folder.mkdir()
            machines[0].start_ray("--head", f"--port={PORT}", "--include-dashboard=false")
            for machine in machines[1:]:
                machine.start_ray(f"--address={made[0].address}:{PORT}")
            yield machines
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = ({"id": f"p{i}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(PROBLEMS))
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake = {"model": "fake", "engine": "fake", "replicas": 3, "cpus_per_replica": 0.5}
    fake |= {"max_batch": 32, "options": {"iteration_s": QUICK_S}}
    document = {
        "name": "hosts",
        "data": {"source": str(tmp_path / "problems.jsonl")},
        "policies": [{**fake, "name": "fake"}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "dvts", "n": 64}],
        "work": {"solutions_per_unit": 8, "units_in_flight": 6, "checkpoint_interval_s": 0.3},
    }
    path = tmp_path / "hosts.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def start_run(
    head: Machine, recipe: Path, runs: Path, iteration_s: float
) -> subprocess.Popen[bytes]:
    """Starts the command on the head."""
    run = [sys.executable, "-m", "jobs", "run", str(recipe), f"runs_folder={runs}"]
    run += [f"{role}.options.iteration_s={iteration_s}" for role in ("policies.0", "prm")]
    run += ["--address", f"{head.host.address}:{PORT}"]
    return head.host.start(
        run, runs.with_suffix(".log"), {**ENVIRONMENT, "HOME": os.environ["HOME"]}
    )


def loaded(run: subprocess.Popen[bytes], runs: Path) -> Run:
    """What a run that ends well leaves."""
    assert run.wait(PATIENCE_S) == 0, runs.with_suffix(".log").read_text()[-3000:]
    [folder] = runs.iterdir()
    return load_run(folder)


def committed_anywhere(runs: Path) -> list[dict[str, Any]]:
    return [row for folder in runs.glob("*") for row in committed_units(folder)]


def names(run: Run) -> list[str]:
    return sorted(run.units["unit_id"].to_pylist())


def test_a_host_is_cut_off_in_the_middle(
    machines: list[Machine], recipe: Path, tmp_path: Path
) -> None:
    head, cut = machines[0], machines[-1]
    plain = loaded(start_run(head, recipe, tmp_path / "plain", QUICK_S), tmp_path / "plain")
    runs = tmp_path / "cut"
    run = start_run(head, recipe, runs, SLOW_S)
    log = runs.with_suffix(".log")

    everywhere = {machine.host.address for machine in machines}

    def all_take_part() -> bool:
        """Units have run on every host, and replicas of the one to be cut have answered."""
        done, replicas = committed_anywhere(runs), cut.replicas()
        answered = [
            any(row[f"{role}_replica"] in replicas for row in done) for role in ("policy", "prm")
        ]
        return {row["node_ip"] for row in done} == everywhere and all(answered)

    wait_until(lambda: all_take_part() and cut.works(), run, log)
    cut.host.cut()
    before = committed_anywhere(runs)
    wait_until(lambda: "was lost" in log.read_text(), run, log)
    # What ran on it is run elsewhere by now; the host comes back and knows nothing of that.
    assert head.lost()
    cut.host.mend()
    disturbed = loaded(run, runs)
    assert names(disturbed) == names(plain)
    assert set(disturbed.units["status"].to_pylist()) == {"done"}
    for name in ("problems", "nodes", "solutions", "answers", "samples"):
        assert rows(getattr(disturbed, name)) == rows(getattr(plain, name))
    # What was committed was not run again.
    took = {row["unit_id"]: row["seconds"] for row in disturbed.units.to_pylist()}
    assert {row["unit_id"]: row["seconds"] for row in before}.items() <= took.items()
    # What ran on it was started again elsewhere.
    again = [row for row in disturbed.units.to_pylist() if row["attempts"] > 1]
    assert again
    assert all(row["node_ip"] != cut.host.address for row in again)
