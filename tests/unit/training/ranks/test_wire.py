from __future__ import annotations

import socket
import time

import pytest

from training.ranks.wire import KEEPALIVE, LONGEST_LINE, Clock, Wire, keep_alive, listen


def test_messages_arrive_whole_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    with ours, theirs:
        assert wire.receive() == []
        ours.sendall(b'{"a": 1}\n{"b"')
        assert wire.receive() == [{"a": 1}]
        ours.sendall(b": 2}\n")
        assert wire.receive() == [{"b": 2}]
        ours.close()
        with pytest.raises(ConnectionResetError):
            wire.receive()
        # Nobody is there; it is `receive` that says so.
        wire.send(beat=True)


def test_a_job_that_was_suspended_has_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(1.0)
    for seconds, passed in ((0.5, 0.5), (1.0, 1.5), (3600.0, 3.5)):
        now[0] += seconds
        clock.tick()
        assert clock.seconds == pytest.approx(passed)


def test_a_lost_node_is_noticed_whether_something_is_on_its_way_or_not() -> None:
    with listen() as listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as connection:
        keep_alive(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = {name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in KEEPALIVE}
    assert found == {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


@pytest.mark.parametrize("said", [b"[1]\n", b"GET / HTTP/1.0\r\n", b"\n", b"\xff\n"])
def test_what_is_no_message_is_refused(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(said)
        with pytest.raises(ValueError):  # noqa: PT011
            Wire(theirs).receive()


def test_nobody_fills_the_memory() -> None:
    ours, theirs = socket.socketpair()
    wire, sender = Wire(theirs), Wire(ours)

    def fill() -> None:
        for _ in range(LONGEST_LINE):
            sender.socket.send(b"x" * 4096)
            wire.receive()

    with ours, theirs, pytest.raises(ValueError, match="too long"):
        fill()
