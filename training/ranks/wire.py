"""What ranks tell each other beside the collectives: lines of JSON over TCP, which also tells that the other end is gone."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
import time
from typing import Any

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
"""A node that is lost answers no more: noticed after 25 s, whether something was sent to it (in ms) or not (in s)."""

LOST = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Errors of a connection whose other end does not answer; others are of one that was closed."""

LONGEST_LINE = 1 << 20
"""Bytes; nothing that ranks say is so long."""


class Wire:
    """Messages over a socket: a line of JSON each. Nobody waits for who doesn't read."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setblocking(False)
        self._rest = b""
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send, if the other end is there; whether it is, `receive` finds out."""
        with self._lock, contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """What has come.

        Raises:
            OSError: the other end is gone, with errno ETIMEDOUT if it does not answer any more.
            ValueError: it is none of ours.
        """
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise ValueError("too long")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages


class Clock:
    """Seconds in which this process ran: when all of a job is suspended, nobody hangs."""

    def __init__(self, beat: float) -> None:
        self._most, self._last = 2 * beat, time.monotonic()
        self.seconds = 0.0

    def tick(self) -> None:
        """Go on."""
        now = time.monotonic()
        self.seconds += min(now - self._last, self._most)
        self._last = now


def listen() -> socket.socket:
    """A socket at any port of all interfaces, of both families where there are both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def keep_alive(connection: socket.socket) -> socket.socket:
    """Have the kernel find out when the other end's node is lost; return the same connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
