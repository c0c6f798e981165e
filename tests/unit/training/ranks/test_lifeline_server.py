"""The thread of rank 0 with ranks that are played here; whole processes are in tests/integration/test_dying.py."""

from __future__ import annotations

import dataclasses
import queue
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from training.ranks import lifeline_server, verdict
from training.ranks.lifeline_server import Server
from training.ranks.verdict import Report, Verdict
from training.ranks.wire import Wire, listen
from training.world import World

TOKEN = "the token"


class Rank:
    """One rank's end of the wire."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.wire = Wire(connection)
        self.moves = 0
        self._heard: list[dict[str, Any]] = []
        self.wire.send(hello=number, token=TOKEN, host=f"node{number}")

    def at(self, what: str, *, is_watched: bool = True) -> None:
        self.moves += 1
        self.wire.send(at=what, is_watched=is_watched, moves=self.moves)

    def hears(self, key: str) -> Any:
        """The next message of this kind."""
        deadline = time.monotonic() + 30
        while True:
            for number, message in enumerate(self._heard):
                if key in message:
                    del self._heard[: number + 1]
                    return message[key]
            assert time.monotonic() < deadline, f"no {key}"
            self._heard += self.wire.receive()
            time.sleep(0.01)


class Ranks:
    def __init__(self, size: int, hang_timeout: float | None) -> None:
        world = World(rank=0, size=size, local_rank=0, local_size=size, master_addr="x", master_port=1, launcher="none")
        self.spoken: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        mine, theirs = socket.socketpair()
        listener = listen()
        self.port = listener.getsockname()[1]
        self.server = Server(
            world, listener, Wire(theirs), token=TOKEN, hang_timeout=hang_timeout, stacks="run/logs",
            speak=self.spoken.put,
        )  # fmt: skip
        self.server.start()
        self.all = [Rank(0, mine)]
        self.all += [Rank(number, self.connect()) for number in range(1, size)]
        for rank in self.all:
            rank.hears("beat")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def ready(self, *numbers: int) -> Verdict:
        """These ranks write what they have to; what is said then, and they leave."""
        verdicts = []
        for number in numbers:
            verdicts.append(Verdict(**self.all[number].hears("verdict")))
            self.all[number].wire.send(ready=True)
        spoken = self.spoken.get(timeout=30)
        for number in numbers:
            self.all[number].hears("leave")
        assert set(verdicts) == {spoken}
        self.server.join(30)
        assert not self.server.is_alive()
        return spoken


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ranks]]:
    monkeypatch.setattr(lifeline_server, "beat_seconds", lambda world: 0.05)
    # The ranks that are played here beat when they do something only.
    monkeypatch.setattr(lifeline_server, "SILENT_BEATS", 10_000)
    made: list[Ranks] = []

    def make(size: int, hang_timeout: float | None = None) -> Ranks:
        made.append(Ranks(size, hang_timeout))
        return made[-1]

    yield make
    for each in made:
        each.all[0].wire.send(goodbye=True)
        for rank in each.all:
            rank.wire.socket.close()
        each.server.join(30)
        assert not each.server.is_alive()


def report(kind: Any, rank: int, text: str = "boom") -> dict[str, Any]:
    return dataclasses.asdict(Report(rank=rank, kind=kind, text=text, type_name="ValueError", exit_code=1))


def test_a_connection_that_ends_is_a_death_and_all_others_know_it_first(ranks: Callable[..., Ranks]) -> None:
    run = ranks(3)
    run.all[0].at("step 4: update")
    run.all[2].at("step 4: update")
    run.all[1].wire.socket.close()
    assert run.all[2].hears("report")["rank"] == 1, "before anything is decided"
    found = run.ready(0, 2)
    assert found.text == (
        'rank 1 on node1 died without a word (killed? out of memory?); the other ranks were in "step 4: update"; '
        "stacks are in run/logs"
    )


def test_who_says_goodbye_has_not_died(ranks: Callable[..., Ranks]) -> None:
    run = ranks(3)
    run.all[1].wire.send(goodbye=True)
    run.all[1].wire.socket.close()
    run.all[2].wire.socket.close()
    assert run.ready(0).rank == 2


def test_at_the_end_rank_0_says_goodbye_to_all(ranks: Callable[..., Ranks]) -> None:
    run = ranks(2)
    run.all[0].wire.send(goodbye=True)
    assert run.all[1].hears("goodbye") is True
    # So that it does not hang up before it is heard.
    assert run.server.is_alive()
    run.all[1].wire.send(goodbye=True)
    run.server.join(30)
    assert not run.server.is_alive()
    assert run.spoken.empty()


def test_an_error_before_its_echoes(ranks: Callable[..., Ranks]) -> None:
    run = ranks(3)
    run.all[0].wire.send(report=report("echo", 0))
    run.all[2].wire.send(report=report("error", 2, "not 3 but 4"))
    run.all[1].wire.send(report=report("echo", 1))
    assert run.ready(0, 1, 2).text == "rank 2: ValueError: not 3 but 4"


def test_an_error_and_the_end_of_that_process_are_one(ranks: Callable[..., Ranks]) -> None:
    run = ranks(2)
    run.all[1].wire.send(report=report("error", 1))
    run.all[1].wire.socket.close()
    run.all[0].wire.send(report=report("echo", 0))
    assert run.ready(0).text == "rank 1: ValueError: boom"


def test_a_stop_of_one_rank_is_everybodys_but_not_beside_a_death(ranks: Callable[..., Ranks]) -> None:
    stop = dataclasses.asdict(Report(rank=1, kind="stop", text="SIGUSR1", exit_code=85))
    run = ranks(2)
    run.all[1].wire.send(report=stop)
    found = run.ready(0, 1)
    assert (found.kind, found.exit_code, found.error) == ("stop", 85, "SIGUSR1")
    run = ranks(3)
    run.all[1].wire.send(report=stop)
    # A launcher ends the others when one has died.
    run.all[2].wire.socket.close()
    assert run.ready(0, 1).kind == "death"


def test_a_hang(ranks: Callable[..., Ranks]) -> None:
    run = ranks(2, hang_timeout=1.0)
    run.all[1].at("step 7: data")
    run.all[0].at("step 7: data")
    time.sleep(0.2)
    run.all[0].at("step 7: update")
    for _ in range(40):
        # Both threads live; nothing moves.
        run.all[1].wire.send(at="step 7: data", is_watched=True, moves=1)
        run.all[0].wire.send(at="step 7: update", is_watched=True, moves=2)
        time.sleep(0.02)
    found = run.ready(0, 1)
    assert found.kind == "hang"
    assert found.text == (
        'nothing has moved for 1 s: rank 1 is in "step 7: data", rank 0 in "step 7: update"; stacks are in run/logs'
    )


@pytest.mark.parametrize("why", ["it has not begun", "one rank moves", "it is not watched", "it is switched off"])
def test_no_hang(ranks: Callable[..., Ranks], why: str) -> None:
    run = ranks(2, hang_timeout=None if why == "it is switched off" else 0.3)
    if why != "it has not begun":
        run.all[0].at("export", is_watched=why != "it is not watched")
        run.all[1].at("export")
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        if why == "one rank moves":
            run.all[1].at("step 1: data")
        time.sleep(0.05)
    assert run.spoken.empty()
    assert run.server.is_alive()


def test_who_does_not_know_the_token_is_no_rank(ranks: Callable[..., Ranks]) -> None:
    run = ranks(2)
    for said in (b'{"hello": 1, "token": "guessed", "host": "x"}\n', b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b""):
        with run.connect() as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(30)
            assert stranger.recv(1) == b"", "hung up"
    assert run.spoken.empty()
    run.all[1].wire.socket.close()
    assert run.ready(0).rank == 1


def test_a_rank_that_never_gets_ready_does_not_keep_the_others(
    ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifeline_server, "READY_SECONDS", 0.3)
    run = ranks(3)
    run.all[1].wire.socket.close()
    # Rank 2 is stopped.
    assert run.ready(0).rank == 1


def test_where_only_echoes_come_the_silent_rank_is_the_cause(
    ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verdict.PATIENCE, "echo", 1.0)
    monkeypatch.setattr(lifeline_server, "SILENT_BEATS", 5)
    run = ranks(2)
    run.all[0].wire.send(report=report("echo", 0))
    for _ in range(30):
        run.all[0].wire.send(at="step 1: update", is_watched=True, moves=1)
        time.sleep(0.05)
    found = run.ready(0)
    assert (found.kind, found.rank) == ("death", 1)
    assert "rank 1 on node1 has not been heard of for" in found.text


def test_the_first_rank_gets_no_more_messages_with_a_thousand_ranks() -> None:
    world = World(rank=0, size=2, local_rank=0, local_size=2, master_addr="x", master_port=1, launcher="none")
    assert lifeline_server.beat_seconds(world) == 1.0
    assert lifeline_server.beat_seconds(dataclasses.replace(world, size=1000)) == 5.0
