from __future__ import annotations

import os

import pytest

from evals.code import exchange


def test_messages_on_a_pipe() -> None:
    read, write = os.pipe()
    exchange.send(write, b"one")
    exchange.send(write, b"")
    exchange.send(write, b"12345")
    os.write(write, b"\x05\0\0\0\0\0\0\0cut")
    os.close(write)
    assert exchange.receive(read) == b"one"
    assert exchange.receive(read) == b""
    with pytest.raises(ValueError, match="a message of 5 bytes, longer than 4"):
        exchange.receive(read, longest=4)
    os.close(read)


@pytest.mark.parametrize("data", [b"", b"\x05\0", b"\x05\0\0\0\0\0\0\0cut"])
def test_the_end_of_messages(data: bytes) -> None:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    assert exchange.receive(read) is None
    os.close(read)
