"""An S3 server in a process of its own, which a test may stop for a while: moto's server mode."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from free_ports import free_ports
from pyarrow import fs

PACKAGES = Path(sys.prefix) / "s3-server"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
START_S = 120.0


@dataclass(frozen=True)
class S3Server:
    """A server with one bucket, `bucket`."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def query(self) -> str:
        """What a URI needs behind its path."""
        return f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def uri(self, path: str) -> str:
        return f"s3://{path}?{self.query}"

    def files(self, path: str) -> list[str]:
        """The paths of all files under one."""
        store, where = fs.FileSystem.from_uri(self.uri(path))
        found = store.get_file_info(fs.FileSelector(where, allow_not_found=True, recursive=True))
        return sorted(each.path for each in found if each.type == fs.FileType.File)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Nothing is answered while the context lasts."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """No key is known to it while the context lasts."""
        self._allow_without_credentials(0)
        try:
            yield
        finally:
            self._allow_without_credentials(10**9)

    def _allow_without_credentials(self, requests: int) -> None:
        url = f"http://127.0.0.1:{self.port}/moto-api/reset-auth"
        head = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(url, str(requests).encode(), head, method="POST")
        urllib.request.urlopen(asked).close()


@contextlib.contextmanager
def running_s3(log: Path) -> Iterator[S3Server]:
    """Starts a server on a free port, and ends it."""
    if not PACKAGES.exists():
        pytest.fail(f"there is no {PACKAGES}: `make test` installs the S3 server there")
    [port] = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGES)}
    with (
        pytest.MonkeyPatch.context() as patch,
        log.open("wb") as file,
        subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process,
    ):
        for name, value in KEYS.items():
            patch.setenv(name, value)
        server = S3Server(port, process)
        try:
            _wait_for(server, log)
            options = f"{server.query}&allow_bucket_creation=true"
            store, _ = fs.FileSystem.from_uri(f"s3://bucket?{options}")
            store.create_dir("bucket")
            yield server
        finally:
            process.kill()


def _wait_for(server: S3Server, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert server.process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", server.port), 1.0).close()
            return
        time.sleep(0.1)
