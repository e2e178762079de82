"""What can be lost or go wrong, and how it is made to.

Each fault strikes a run that is under way. Those that last are undone by themselves, or when the
run has ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from benchmarks.faults.world import Running, descendants, garbage_file, titled
from cluster.repository import REPOSITORY

WORK_UNIT, CONTROLLER = "ray::work_units_task", "ray::ServeController"
POLICY, PRM = "ray::ServeReplica:policy", "ray::ServeReplica:prm"
# A node that gets a tenth of its time, in slices that no health check misses.
SLICE_S, SLOWNESS = 0.02, 10
FILLERS = "benchmarks.faults.fill_object_stores"
STORE_BYTES = 3 << 20


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault about to strike: the run, the dice, and how long it lasts if it does."""

    running: Running
    random: Random
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """name: as on the command line. needs_mount: only a user who may mount can make it.

    strikes_at: when, as a share of the answers of the undisturbed run.
    """

    name: str
    strike: Callable[[Strike], None]
    needs_mount: bool = False
    strikes_at: float = 0.25


def _kill(title: str) -> Callable[[Strike], None]:
    """Ends one of the processes with a title, by SIGKILL."""

    def strike(at: Strike) -> None:
        _victim(at, title).kill()

    return strike


def _kill_busy(role: str, title: str) -> Callable[[Strike], None]:
    """Ends a replica at a moment when it has something to answer."""

    def strike(at: Strike) -> None:
        _suspended_busy(at, role, title).kill()

    return strike


def _suspended_busy(at: Strike, role: str, title: str) -> psutil.Process:
    """A replica that is stopped with something to answer."""

    def busy() -> list[psutil.Process]:
        return [each for each in at.running.world.processes(title) if owes(each)]

    def owes(replica: psutil.Process) -> bool:
        return at.running.unanswered(role, replica.pid) > 0

    while True:
        replica = _one_of(at, busy)
        replica.suspend()
        # It may have answered between the look and the stop.
        if owes(replica):
            return replica
        replica.resume()


def _one_of(at: Strike, found: Callable[[], list[psutil.Process]]) -> psutil.Process:
    """One of the processes that are found, as soon as there are any."""
    last: list[psutil.Process] = []

    def are_there() -> bool:
        last[:] = found()
        return bool(last)

    at.running.wait_until(are_there)
    return at.random.choice(sorted(last, key=lambda process: process.pid))


def _victim(at: Strike, title: str) -> psutil.Process:
    return _one_of(at, lambda: at.running.world.processes(title))


def _lose_node(at: Strike) -> None:
    """A node on which work units are running, with its workers and replicas."""
    at.running.world.lose(_busy_node(at))


def _spot_notice(at: Strike) -> None:
    """A node on which work units are running is told to leave; another one comes meanwhile."""
    node, world = _busy_node(at), at.running.world
    world.drain(node, at.lasts_s)
    world.add_node()
    _later(at, lambda: world.lose(node))


def _busy_node(at: Strike) -> psutil.Process:
    def busy() -> list[psutil.Process]:
        nodes = at.running.world.nodes()[1:]
        return [each for each in nodes if titled(descendants(each), WORK_UNIT)]

    return _one_of(at, busy)


def _hang(at: Strike) -> None:
    """A replica that stops in the middle of everything and keeps its connections."""
    _suspended_busy(at, "policy", POLICY)


def _slow_node(at: Strike) -> None:
    """Stops everything on a node for nine tenths of the time, until the run has ended."""
    node, over = _busy_node(at), threading.Event()
    slowing = threading.Thread(target=_in_slices, args=(node, over))
    slowing.start()

    def undo() -> None:
        over.set()
        slowing.join()

    at.running.undo.append(undo)


def _in_slices(node: psutil.Process, over: threading.Event) -> None:
    while not over.is_set():
        slowed = [node, *descendants(node)]
        _signal(slowed, signal.SIGSTOP)
        time.sleep(SLICE_S * (SLOWNESS - 1))
        _signal(slowed, signal.SIGCONT)
        time.sleep(SLICE_S)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _garbage(at: Strike) -> None:
    """The PRM returns no numbers for a while."""
    file = garbage_file(at.running.folder)
    file.touch()
    _later(at, lambda: file.unlink(missing_ok=True))


def _fill_object_stores(at: Strike) -> None:
    """Holds more objects on every node than its store has room for."""
    filler = subprocess.Popen(
        [sys.executable, "-m", FILLERS, at.running.world.address, str(at.lasts_s)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def undo() -> None:
        filler.terminate()
        filler.wait()

    at.running.undo.append(undo)


def _fill_disk(at: Strike) -> None:
    """The file system of the run folder is full for a while."""
    filler = _runs(at.running) / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    _later(at, lambda: filler.unlink(missing_ok=True))


def _later(at: Strike, undo: Callable[[], None]) -> None:
    timer = threading.Timer(at.lasts_s, undo)
    timer.start()

    def at_the_end() -> None:
        timer.cancel()
        undo()

    at.running.undo.append(at_the_end)


def _kill_driver(at: Strike) -> None:
    """The driver by SIGKILL; the same command is run again."""
    at.running.driver.kill()
    at.running.driver.wait()
    at.running.restart()


def _runs(running: Running) -> Path:
    return running.folder / "disk"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, so small that it can be filled; needs root."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", str(disk)],
        check=True,
        capture_output=True,
    )
    try:
        yield disk / "runs"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def may_mount() -> bool:
    """Whether this user may make a file system."""
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode
        == 0
    )


FAULTS = (
    Fault("worker process killed", _kill(WORK_UNIT)),
    Fault("node lost", _lose_node),
    Fault("node leaves after a notice", _spot_notice),
    Fault("policy replica killed", _kill_busy("policy", POLICY)),
    Fault("PRM replica killed", _kill_busy("prm", PRM)),
    Fault("Serve controller killed", _kill(CONTROLLER)),
    # Later, so that what it may lose is far less than all that was done.
    Fault("driver killed", _kill_driver, strikes_at=0.5),
    Fault("policy replica hangs", _hang),
    Fault("node ten times slower", _slow_node),
    Fault("object store full", _fill_object_stores),
    Fault("disk full for a while", _fill_disk, needs_mount=True),
    Fault("PRM returns garbage for a while", _garbage),
)
