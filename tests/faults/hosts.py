"""Hosts with addresses of their own on one machine: network namespaces around a switch.

The switch is a bridge in a namespace of its own, so that nothing of the machine's network is
touched or can clash. All hosts share the machine's disk and processors. Invariant: when the block
ends, whatever way, the hosts are gone with every process in them, and no other was ended.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Kept for tests of networks (RFC 2544); unknown outside of the namespaces.
SUBNET = "198.18.0"
ALL_GONE_S = 30.0


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace; `cable` is the switch's end of its only link."""

    name: str
    address: str
    switch: str
    cable: str
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, words: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command in this host; it ends with the host at the latest."""
        with log.open("ab") as file:
            child = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        self.children.append(child)
        return child

    def cut(self) -> None:
        """From now on every packet from and to this host vanishes, and no one is told."""
        self._set_cable("down")

    def mend(self) -> None:
        """The network is back."""
        self._set_cable("up")

    def _set_cable(self, state: str) -> None:
        _ip("-n", self.switch, "link", "set", self.cable, state)

    def processes(self) -> list[int]:
        """The ids of all processes in this host."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def kill_processes(self) -> None:
        """Ends them all; a process may start another one meanwhile."""
        deadline = time.monotonic() + ALL_GONE_S
        while (alive := self.processes()) and time.monotonic() < deadline:
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        for child in self.children:
            child.wait()


def reason_not_permitted() -> str:
    """Why hosts cannot be made here, or nothing."""
    if shutil.which("ip") is None:
        return "no network namespaces: iproute2 is not installed"
    try:
        with hosts(2):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other, with the addresses 198.18.0.1, .2, ..."""
    prefix = f"branchwise-{os.getpid()}"
    switch = f"{prefix}-switch"
    made = [
        Host(f"{prefix}-{number}", f"{SUBNET}.{number}", switch, f"cable{number}")
        for number in range(1, count + 1)
    ]
    with contextlib.ExitStack() as stack:
        _namespace(switch, stack)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for host in made:
            _namespace(host.name, stack)
            stack.callback(host.kill_processes)
            _plug_in(host)
        _introduce(made)
        yield made


def _namespace(name: str, stack: contextlib.ExitStack) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)


def _plug_in(host: Host) -> None:
    inside = ("-n", host.name)
    link = ("type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("-n", host.switch, "link", "add", host.cable, *link)
    _ip("-n", host.switch, "link", "set", host.cable, "master", "switch", "up")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "link", "set", "eth0", "address", _hardware_address(host), "up")
    _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
    # Ray asks which address would be used to reach a host of the internet.
    _ip(*inside, "route", "add", "default", "dev", "eth0")


def _introduce(made: list[Host]) -> None:
    """Everybody knows where the others are: a host that asks in vain would learn that one is gone.

    In a cloud a router stands between machines, and answers such questions for those it lost too.
    """
    for host in made:
        for other in made:
            if other is not host:
                found = (other.address, "lladdr", _hardware_address(other), "nud", "permanent")
                _ip("-n", host.name, "neighbour", "add", *found, "dev", "eth0")


def _hardware_address(host: Host) -> str:
    return f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout
