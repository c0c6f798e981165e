"""Rank 0's end of all lifelines: what comes together here, what is decided, and how all ranks are told."""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from training.ranks.verdict import DIED, UNREACHABLE, Report, Verdict, decide, hang_report, is_settled, place
from training.ranks.wire import LOST, Clock, Wire, keep_alive
from training.world import World

START_UP = "start-up"
"""What a rank does that has not said otherwise."""

BEATS_PER_SECOND = 200
"""Most messages that rank 0 gets in quiet times; with fewer ranks, one from each per second."""

SILENT_BEATS = 3
"""Beats that a rank misses before it counts as silent: its process is stopped, or out of reach."""

READY_SECONDS = 3.0
"""Time that ranks have to write their stacks before the cause is said, and to answer a goodbye."""


class Server(threading.Thread):
    """The thread of rank 0 that all ranks are connected to, its own main thread's lifeline among them."""

    def __init__(
        self,
        world: World,
        listener: socket.socket | None,
        own: Wire,
        *,
        token: str,
        hang_timeout: float | None,
        stacks: str,
        speak: Callable[[Verdict], None],
    ) -> None:
        super().__init__(name="lifeline server", daemon=True)
        self._world, self._listener, self._token = world, listener, token
        self._hang_timeout, self._stacks, self._speak = hang_timeout, stacks, speak
        self._beat = beat_seconds(world)
        self._clock = Clock(self._beat)
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, Peer] = {}
        self._reports: list[Report] = []
        self._first_report = 0.0
        self._next_beat = self._moved = 0.0
        self._is_closing = False
        self._selector.register(own.socket, selectors.EVENT_READ, own)
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until rank 0 says goodbye, or there is a verdict."""
        try:
            self._serve_to_the_end()
        finally:
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()

    def _serve_to_the_end(self) -> None:
        while not self._is_closing:
            self._serve(0.1 if self._reports else self._beat)
            if not self._reports:
                self._look_for_a_hang()
            silent = {
                rank for rank in range(self._world.size) if rank not in self._peers or self._peers[rank].is_awaited
            }
            if is_settled(self._reports, silent, self._clock.seconds - self._first_report):
                return self._end()
        self._broadcast(goodbye=True)
        # What was sent to a closed connection would be lost on those who read from it, too.
        self._serve_until(lambda peer: peer.has_left)

    def _serve_until(self, is_over: Callable[[Peer], bool]) -> None:
        """Wait until this holds for all ranks, but not long."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and not all(is_over(peer) for peer in self._peers.values()):
            self._serve(0.1)

    def _serve(self, seconds: float) -> None:
        """Wait for messages, and take those that are there."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                assert self._listener is not None
                # Who has hung up before it was answered is no rank.
                with contextlib.suppress(OSError):
                    wire = Wire(keep_alive(self._listener.accept()[0]))
                    self._selector.register(wire.socket, selectors.EVENT_READ, wire)
            else:
                self._hear(key.data)
        self._clock.tick()
        if self._clock.seconds >= self._next_beat:
            self._next_beat = self._clock.seconds + self._beat
            self._broadcast(beat=True)

    def _hear(self, wire: Wire) -> None:
        peer = next((peer for peer in self._peers.values() if peer.wire is wire), None)
        try:
            for message in wire.receive():
                if peer is None:
                    peer = self._welcome(wire, message)
                else:
                    self._take(peer, message)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._selector.unregister(wire.socket)
            wire.socket.close()
            if peer is not None:
                is_lost = isinstance(error, OSError) and error.errno in LOST
                self._has_gone(peer, UNREACHABLE if is_lost else DIED)

    def _welcome(self, wire: Wire, message: dict[str, Any]) -> Peer:
        """A rank's first message; who has not the token is no rank."""
        if message.get("token") != self._token:
            raise ValueError("not one of the ranks")
        peer = Peer(rank=message["hello"], host=message["host"], wire=wire, heard=self._clock.seconds)
        self._peers[peer.rank] = peer
        return peer

    def _take(self, peer: Peer, message: dict[str, Any]) -> None:
        peer.heard = self._clock.seconds
        if "at" in message:
            if message["moves"] != peer.moves:
                self._moved = peer.moved = self._clock.seconds
            peer.what, peer.moves, peer.is_watched = message["at"], message["moves"], message["is_watched"]
        elif "report" in message:
            peer.is_awaited = False
            self._note(Report(**message["report"]))
        elif "ready" in message:
            peer.is_ready = True
        elif "goodbye" in message:
            peer.has_left, peer.is_awaited, peer.is_ready = True, False, True
            # Of rank 0 itself: the run is over.
            self._is_closing |= peer.rank == 0

    def _has_gone(self, peer: Peer, how: str) -> None:
        if not peer.has_left and peer.is_awaited:
            self._note(Report(rank=peer.rank, kind="death", text=how))
        peer.has_left, peer.is_awaited, peer.is_ready = True, False, True

    def _note(self, report: Report) -> None:
        """Keep a report, and let the others know it, should this rank be the next to die."""
        if not self._reports:
            self._first_report = self._clock.seconds
        self._reports.append(report)
        self._broadcast(report=dataclasses.asdict(report))

    def _look_for_a_hang(self) -> None:
        """Nothing moves on any rank: where only some stand still, they wait for others that do something."""
        peers = sorted(self._peers.values(), key=lambda peer: (peer.moved, peer.rank))
        if self._hang_timeout is None or not any(peer.moves for peer in peers):
            return
        if not all(peer.is_watched for peer in peers):
            self._moved = self._clock.seconds
        elif self._clock.seconds - self._moved > self._hang_timeout:
            self._note(hang_report(peers[0].rank, self._hang_timeout, self._places(peers)))

    def _end(self) -> None:
        """Tell all, have the cause said when they are ready, and let them go."""
        for peer in self._peers.values():
            # Only others' errors came, which have their cause somewhere.
            silence = self._silence(peer)
            if all(report.kind == "echo" for report in self._reports) and silence > SILENT_BEATS * self._beat:
                how = f"has not been heard of for {silence:.0f} s (stopped? its node or the network lost?)"
                self._reports.append(Report(rank=peer.rank, kind="death", text=how))
        present = [peer for peer in self._peers.values() if not peer.has_left]
        verdict = decide(
            self._reports,
            places=self._places(present),
            hosts={peer.rank: peer.host for peer in self._peers.values()},
            stacks=self._stacks,
        )
        self._broadcast(verdict=dataclasses.asdict(verdict))
        self._serve_until(lambda peer: peer.is_ready)
        self._speak(verdict)
        self._broadcast(leave=True)

    def _places(self, peers: Iterable[Peer]) -> dict[int, str]:
        return {
            peer.rank: place(peer.what, is_silent=self._silence(peer) > SILENT_BEATS * self._beat) for peer in peers
        }

    def _silence(self, peer: Peer) -> float:
        """Seconds for which a rank's thread has not been heard of."""
        return self._clock.seconds - peer.heard

    def _broadcast(self, **message: Any) -> None:
        for peer in self._peers.values():
            if not peer.has_left:
                peer.wire.send(**message)


@dataclasses.dataclass(kw_only=True)
class Peer:
    """A rank as rank 0 sees it."""

    rank: int
    host: str
    wire: Wire
    what: str = START_UP
    is_watched: bool = True
    moves: int = 0
    moved: float = 0.0
    """When it moved last, on the server's clock; and when it was heard of."""
    heard: float
    is_awaited: bool = True
    """It may still report."""
    has_left: bool = False
    is_ready: bool = False
    """It has written what it has to."""


def beat_seconds(world: World) -> float:
    """Time between two messages of a rank, and of rank 0 to it."""
    return max(1.0, world.size / BEATS_PER_SECOND)
