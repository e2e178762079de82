"""How much memory each process of a run holds, looked at from a process of its own.

Memory is what is resident and not shared (psutil's `rss - shared`: the anonymous pages). Not
counted are Ray's object store and files that are mapped, such as libraries: to whom USS adds them
changes whenever another process that has them comes or goes.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

SAMPLE_EVERY_S = 0.02
FAMILY_EVERY_S = 0.5
DRIVER, WORKER, GRADING, OTHER = "driver", "worker", "grading process", "other"
# What a process calls itself, and what it is.
TITLES = {
    "ServeController": "Serve's controller",
    "ServeReplica:policy": "policy replica",
    "ServeReplica:prm": "PRM replica",
    "gcs_server": "Ray's GCS",
    "/raylet/raylet": "raylet",
}


@dataclass(slots=True)
class Watched:
    """One process: the least and the most bytes that it held in each stretch of the run."""

    pid: int
    kind: str = OTHER
    least: dict[int, int] = field(default_factory=dict)
    most: dict[int, int] = field(default_factory=dict)

    def note(self, stretch: int, size_bytes: int) -> None:
        self.least[stretch] = min(size_bytes, self.least.get(stretch, size_bytes))
        self.most[stretch] = max(size_bytes, self.most.get(stretch, size_bytes))


Known = dict[int, tuple[psutil.Process, Watched]]


def private_bytes(process: psutil.Process) -> int:
    """Resident memory of a process that is not shared."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


@dataclass(slots=True)
class Watch:
    """A process that looks at this one and at all that it starts, 50 times a second.

    A stretch of the run is `every` of what is counted. `found` is filled when the context ends.
    """

    every: int
    count: int = 0
    found: list[Watched] = field(default_factory=list)
    _pipe: "Connection | None" = None

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        watcher = context.Process(target=_look, args=(os.getpid(), theirs), daemon=True)
        watcher.start()
        self._pipe.recv()
        try:
            yield
        finally:
            self._pipe.send(None)
            self.found = self._pipe.recv()
            watcher.join()

    def advance(self) -> None:
        """Counts one; a new stretch begins with a look, however short it will be."""
        assert self._pipe is not None
        self.count += 1
        if self.count % self.every == 0:
            self._pipe.send(self.count // self.every)
            self._pipe.recv()


def _look(driver: int, pipe: Connection) -> None:
    """Runs in the process that looks, until it is told None; other messages begin a stretch."""
    known, family_due_s = {driver: (psutil.Process(driver), Watched(driver, DRIVER))}, 0.0
    stretch: int | None = 0
    _note_all(known, 0)
    pipe.send("ready")
    while stretch is not None:
        if time.monotonic() >= family_due_s:
            _note_family(known, driver)
            family_due_s = time.monotonic() + FAMILY_EVERY_S
        _note_all(known, stretch)
        if pipe.poll(SAMPLE_EVERY_S):
            last, stretch = stretch, pipe.recv()
            _note_all(known, last if stretch is None else stretch)
            pipe.send([watched for _, watched in known.values() if stretch is None])


def _note_all(known: Known, stretch: int) -> None:
    for process, watched in known.values():
        with contextlib.suppress(psutil.Error):
            watched.note(stretch, private_bytes(process))


def _note_family(known: Known, driver: int) -> None:
    """Processes that are new, and what those are that had not said it before."""
    for process in psutil.Process(driver).children(recursive=True):
        if process.pid == os.getpid():
            continue
        _, watched = known.setdefault(process.pid, (process, Watched(process.pid)))
        if watched.kind == OTHER:
            with contextlib.suppress(psutil.Error):
                watched.kind = _kind(process.cmdline())


def _kind(command: list[str]) -> str:
    """By its first word, to which Ray writes; one that multiprocessing spawned only grades."""
    title = command[0] if command else ""
    if any("spawn_main" in word for word in command):
        return GRADING
    return next((kind for part, kind in TITLES.items() if part in title), OTHER)


# ---- work units


def noting_task(task: Callable[..., Iterator[Any]], folder: Path) -> Callable[..., Iterator[Any]]:
    """The task of a bundle, which also notes what its worker holds when it has run."""

    def noted(bundle: Any, *where: Any) -> Iterator[Any]:
        yield from task(bundle, *where)
        line = f"{len(bundle.units)} {private_bytes(psutil.Process())}\n"
        with (folder / str(os.getpid())).open("a") as notes:
            notes.write(line)

    return noted


def read_notes(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """For each worker's process id: units that it had run, and the bytes that it held then."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in folder.iterdir():
        units, points = 0, list[tuple[int, int]]()
        for line in path.read_text().splitlines():
            run, size_bytes = map(int, line.split())
            units += run
            points.append((units, size_bytes))
        found[int(path.name)] = points
    return found
