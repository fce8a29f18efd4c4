"""Ports for the servers of tests."""

import socket
from contextlib import ExitStack, closing


def free_ports(count: int) -> list[int]:
    """Different ones that nobody listens on at this moment."""
    with ExitStack() as held:
        sockets = [held.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
