"""Messages between processes: bytes with their length in front, and plain data that carries no code.

A program's answers are read with an unpickler that knows no class but the built-in data types. What it returns has
therefore no methods of the program's own: an object that claims to equal everything cannot be sent.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

LONGEST = 64 * 2**20
"""Bytes in the longest message that is read."""

_DATA_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range)
}

_WITH_SUBCLASSES: tuple[Any, ...] = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


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


class _Pickler(pickle.Pickler):
    """Sends instances of data types' subclasses, such as Counter, as the data that they are."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Decimal | Fraction) and math.isfinite(value):
            for number in (int, float):
                if number(value) == value:
                    return number, (number(value),)
        for kind in _WITH_SUBCLASSES:
            if isinstance(value, kind) and type(value) is not kind:
                return kind, (kind(value),)
        return NotImplemented


def dump(value: Any) -> bytes:
    """Any picklable value as bytes; `load` reads those that are plain data."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


class _Unpickler(pickle.Unpickler):
    """Knows the built-in data types only; these cannot be changed by what is read."""

    def find_class(self, module: str, name: str) -> type:
        if module == "builtins" and name in _DATA_TYPES:
            return _DATA_TYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


def load(data: bytes) -> Any:
    """Plain data from untrusted bytes.

    Raises:
        Exception: whatever unpickling raises for bytes that are something else.
    """
    return _Unpickler(io.BytesIO(data)).load()
