"""A Ray head of its own for a test, with dashboard and job server, on ports that are free.

Tokens are on, and nothing of the machine's own token, address or checkout is seen by it.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from free_ports import free_ports

TOKEN = "branchwise-test-" + "0" * 48
# Programs of this interpreter come first: `python` is what a job is started with.
BIN = str(Path(sys.executable).parent)
START_S, END_S = 120.0, 30.0


@dataclass(frozen=True)
class Head:
    """A head that answers. environment: for a process that may talk to it."""

    address: str
    environment: dict[str, str]

    def get(self, path: str) -> bytes:
        """What its dashboard says."""
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


@contextlib.contextmanager
def ray_head(home: Path, cores: int = 8) -> Iterator[Head]:
    """Starts one and ends it. home: what its jobs see as BRANCHWISE_HOME."""
    dashboard, *others = free_ports(4)
    ports = zip(
        ("port", "dashboard-agent-listen-port", "ray-client-server-port"), others, strict=True
    )
    environment = _environment(home)
    folder = tempfile.mkdtemp(prefix="bw-", dir="/tmp")  # short, for its sockets' sake
    options = [f"--{name}={port}" for name, port in ports]
    options += [f"--num-cpus={cores}", "--num-gpus=0", f"--object-store-memory={200 << 20}"]
    options += [
        "--include-dashboard=true",
        f"--dashboard-port={dashboard}",
        "--disable-usage-stats",
    ]
    command = [f"{BIN}/ray", "start", "--head", "--block", f"--temp-dir={folder}", *options]
    with (Path(folder) / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    head = Head(f"http://127.0.0.1:{dashboard}", environment)
    try:
        _wait_for(head, process, Path(folder) / "output")
        yield head
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: "subprocess.Popen[bytes]") -> None:
    """A head in order if it can be had in time, and with all that it started."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _environment(home: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own.pop("PYTHONPATH", None)
    return own | {
        "PATH": f"{BIN}{os.pathsep}{own['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "BRANCHWISE_HOME": str(home),
        # A replica that cannot start is not started again and again.
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
    }


def _wait_for(head: Head, process: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            head.get("/api/jobs/")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"no job server: {output.read_text()[-2000:]}")
