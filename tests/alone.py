"""A command on a machine that it has to itself: namespaces for processes, network and /tmp/ray.

`ray start` and `ray stop` as a user types them take fixed ports, and end every process of Ray on
the machine. Here they see none but their own. Invariant: when the command has ended, whatever
way, so has all that it started, and no other process was touched.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Kept for tests of networks (RFC 2544). Ray asks which address would be used to reach the
# internet, so there is a way there that leads nowhere.
PREPARE = """
set -e
ip link set lo up
ip link add eth0 type veth peer name nowhere
ip link set nowhere up
ip link set eth0 up
ip address add 198.18.0.1/24 dev eth0
ip route add default dev eth0
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
exec "$@"
"""
UNSHARE = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}


def run_alone(
    words: list[str], tools: Path, environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs a command, with `tools` in front of PATH; output and errors in one.

    If it takes too long it is killed, and the code is 137.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [*UNSHARE, "bash", "-c", PREPARE, "alone", "timeout", "-s", "KILL", f"{timeout_s}", *words],
        env=kept | ENVIRONMENT | path | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def reason_not_permitted(folder: Path) -> str:
    """Why a command cannot be alone here, or nothing."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "no namespaces: iproute2 or util-linux is not installed"
    with contextlib.suppress(OSError):
        done = run_alone(["true"], folder, {}, 60)
        return f"no namespaces: {done.stdout.strip()}" if done.returncode else ""
    return "no namespaces"


def tool(folder: Path, name: str, text: str) -> None:
    """A command of this name, whatever else has it."""
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def ray_tool(folder: Path) -> None:
    """`ray` of this interpreter, which need not be on PATH."""
    tool(folder, "ray", f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n')
