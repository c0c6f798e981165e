"""Messages between processes: bytes with their length in front."""

from __future__ import annotations

import os
import struct

LONGEST = 64 * 2**20
"""Bytes in the longest message that is read."""


def send(fd: int, message: bytes) -> None:
    """Write a message."""
    data = memoryview(struct.pack("<Q", len(message)) + message)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int, longest: int = LONGEST) -> bytes | None:
    """Read a message; None at the end, also at an end in the middle of a message.

    Raises:
        ValueError: the message is longer than `longest`.
    """
    head = _read(fd, 8)
    if head is None:
        return None
    (size,) = struct.unpack("<Q", head)
    if size > longest:
        raise ValueError(f"a message of {size} bytes, longer than {longest}")
    return _read(fd, size)


def _read(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 2**20))
        if not piece:
            return None
        data += piece
    return bytes(data)
