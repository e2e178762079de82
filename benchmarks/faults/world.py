"""A cluster of several Ray nodes on this machine, and runs of one recipe on it.

Each node has a raylet and workers of its own, so that it can be lost whole. The engines are
fake: they take as long as real ones, and write down what they were asked. Invariant: only
processes of this cluster, or started here, are ever signalled.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.faults.ledgers import Ledger, read_ledger, unanswered
from cluster.repository import REPOSITORY
from jobs.results import Run, load_run

# The head holds Serve's controller, and Ray's own; it is not one of those that are lost.
HEAD_CPUS, NODE_CPUS, NODES = 1, 3, 2
OBJECT_STORE_BYTES = 80_000_000
UNITS_IN_FLIGHT = 6
PATIENCE_S = 300.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run has to do; all of it DVTS with N = 64."""

    problems: int = 12
    iteration_s: float = 0.006
    checkpoint_interval_s: float = 0.5


@dataclass(slots=True)
class World:
    """A cluster that is up, and the processes on it."""

    cluster: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's processes of this cluster whose title begins so, in no order."""
        return [each for node in self.nodes() for each in titled(descendants(node), title)]

    def nodes(self) -> list[psutil.Process]:
        """The raylet of each node; the head's first."""
        return [raylet_of(node) for node in (self.cluster.head_node, *self.cluster.worker_nodes)]

    def lose(self, raylet: psutil.Process) -> None:
        """Ends a node with everything on it at once, as if its plug were pulled."""
        lost = [raylet, *descendants(raylet)]
        for each in lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()  # nobody is left to notice the end of the others
        for each in lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for node in [each for each in self.cluster.worker_nodes if raylet_of(each) == raylet]:
            self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, raylet: psutil.Process, seconds: float) -> None:
        """Tells Ray that a node will be gone then, as a cloud tells of a spot machine."""
        [node] = [each for each in self.cluster.worker_nodes if raylet_of(each) == raylet]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
        command += ["--address", self.address, "--node-id", node.node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(max(1, round(seconds)))]
        subprocess.run(command, check=True, capture_output=True)

    def restore(self) -> None:
        """Adds nodes until there are as many as at the start."""
        while len(self.cluster.worker_nodes) < NODES:
            self.add_node()

    def add_node(self) -> None:
        """One node more; only in the main thread."""
        self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=OBJECT_STORE_BYTES)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A cluster for the length of the context."""
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": HEAD_CPUS,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        found = World(cluster)
        found.restore()
        cluster.wait_for_nodes()
        yield found
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def raylet_of(node: Any) -> psutil.Process:
    """The raylet of a node of the cluster."""
    [raylet] = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All that a process has started; nothing if it is gone."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def titled(processes: list[psutil.Process], begin: str) -> list[psutil.Process]:
    """Those of the processes whose title begins so."""
    return [each for each in processes if title(each).startswith(begin)]


def title(process: psutil.Process) -> str:
    """Its command line, by which Ray and vLLM name their processes; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@dataclass(slots=True)
class Running:
    """A run under way in a process of its own."""

    world: World
    folder: Path
    driver: "subprocess.Popen[str]"
    command: list[str]
    # What a fault does to the run while it lasts, to be undone at the end.
    undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def ledgers(self) -> Path:
        return self.folder / "ledgers"

    def wait_for_share(self, share: float, of: Ledger) -> None:
        """Waits until so much of what another run was answered has been answered."""
        self.wait_until(lambda: self.answers() >= share * of.answers)

    def answers(self) -> int:
        """Requests that the policy has answered."""
        return read_ledger(self.ledgers, "policy").answers if self.ledgers.exists() else 0

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Waits for something of the run; an error if the run ends first."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if self.driver.poll() is not None:
                raise RuntimeError(f"the run ended too early:\n{self.log()[-3000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run does not get on:\n{self.log()[-3000:]}")
            time.sleep(POLL_S)

    def unanswered(self, role: str, pid: int) -> int:
        """How many requests the engine in a process has not answered."""
        return sum(map(unanswered, self.ledgers.glob(f"{role}-{pid}-*.jsonl")))

    def log(self) -> str:
        """What the driver has printed."""
        return (self.folder / "driver.log").read_text()

    def restart(self) -> None:
        """The same command once more."""
        self.driver = _started(self.command, self.folder)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has ended: its tables, its ledgers and what its driver printed."""

    run: Run
    policy: Ledger
    prm: Ledger
    log: str

    @property
    def units_redone(self) -> int:
        """How often a unit was started again."""
        attempts: list[int] = self.run.units["attempts"].to_pylist()
        return sum(attempts) - len(attempts)


def begin(world: World, folder: Path, size: Size, runs: Path | None = None) -> Running:
    """Starts the driver; runs: where its run folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "night.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(folder, size, runs or folder / "runs")))
    command = [sys.executable, "-m", "jobs", "run", str(recipe), "--address", world.address]
    return Running(world, folder, _started(command, folder), command)


def finish(running: Running, runs: Path | None = None) -> Finished:
    """Waits for the end; an error if the run did not end well."""
    try:
        code = running.driver.wait(PATIENCE_S)
    finally:
        for undo in running.undo:
            undo()
    if code:
        raise RuntimeError(f"the run ended with {code}:\n{running.log()[-3000:]}")
    [folder] = (runs or running.folder / "runs").iterdir()
    return Finished(
        load_run(folder),
        read_ledger(running.ledgers, "policy"),
        read_ledger(running.ledgers, "prm"),
        running.log(),
    )


def end(running: Running) -> None:
    """Ends the driver if it still runs, whatever happened."""
    if running.driver.poll() is None:
        running.driver.send_signal(signal.SIGKILL)
        running.driver.wait()


def _started(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _recipe(folder: Path, size: Size, runs: Path) -> dict[str, Any]:
    rows = ({"id": f"p{i}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(size.problems))
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"iteration_s": size.iteration_s, "ledger": str(folder / "ledgers")}
    fake = {"model": "fake", "engine": "fake", "replicas": 2, "cpus_per_replica": 0.5}
    garbage = {"nan_while": str(garbage_file(folder))}
    return {
        "name": "night",
        "data": {"source": str(data)},
        "policies": [{**fake, "name": "fake", "options": options, "max_batch": 64}],
        "prm": {
            **fake,
            "family": "qwen2.5-math-prm",
            "options": options | garbage,
            "max_batch": 64,
        },
        "searches": [{"strategy": "dvts", "n": 64, "branching": 4}],
        "limits": {"max_steps": 8, "max_step_tokens": 60, "max_solution_tokens": 400},
        "work": {
            "solutions_per_unit": 16,
            "units_in_flight": UNITS_IN_FLIGHT,
            "speculation": False,
            "checkpoint_interval_s": size.checkpoint_interval_s,
        },
        "runs_folder": str(runs),
    }


def garbage_file(folder: Path) -> Path:
    """While this is there the PRM returns no numbers."""
    return folder / "garbage"
