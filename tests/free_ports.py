"""Ports that nobody listens on, for servers of tests."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
