"""The lifeline: when one rank can't go on, all of them end within seconds, and the last line says why.

Every rank holds a TCP connection to rank 0, made right after the rendezvous and served by a thread, so that it works
while the main thread waits in a collective. What a rank reports, an error or that it was asked to stop before training began,
and what the connection tells, that it is dead or that nothing moves any more, comes together at rank 0. That decides what
the cause is (training/verdict.py) and tells all ranks; each writes the stacks of its threads to its log, rank 0 says the cause,
and all leave with the same exit code. Nothing that could wait for a lost rank is closed.

"The last line" is that of the job itself: launchers add their own below it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from training.command_line import EXIT_FAILED, EXIT_PREEMPTED, EXIT_WRONG_CONFIGURATION
from training.files import read_json, write_json
from training.record import RunRecord
from training.verdict import PATIENCE, Report, Verdict, decide, hang_report, in_words, is_settled, place, report_of
from training.watch.display import Display
from training.world import World

log = logging.getLogger("palimpsest")

START_UP = "start-up"
"""What a rank does that has not said otherwise."""

BEATS_PER_SECOND = 200
"""Most messages that rank 0 gets in quiet times; with fewer ranks, one from each per second."""

SILENT_BEATS = 3
"""Beats that a rank misses before it counts as silent: its process is stopped, or out of reach."""

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
"""A node that is lost answers no more: noticed after 25 s, whether something was sent to it (in ms) or not (in s)."""

READY_SECONDS = 3.0
"""Time that ranks have to write their stacks before the cause is said."""

WRITE_SECONDS = 2.0
"""Time to write run.json before the cause is said without."""

LEAVE_SECONDS = 8.0
"""Time after which a rank leaves in any case once the end is decided."""

ENDED = ".ended-"
"""File of the run directory that who speaks makes first, where rank 0 is not there to do so."""

DIED = "died without a word (killed? out of memory?)"
LOST = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
UNREACHABLE = "can't be reached any more (its node or the network lost?)"


class Lifeline:
    """This rank's end of it; alone until `connect`."""

    def __init__(self, world: World, record: RunRecord, display: Display) -> None:
        self._world, self._record, self._display = world, record, display
        self._what, self._is_watched, self._moves = START_UP, True, 0
        self._wire: _Wire | None = None
        self._server: _Server | None = None
        self._host_of_0 = ""
        self._token = ""
        self._hang_timeout: float | None = None
        self._is_released = False
        self._reports: list[Report] = []
        # The end, on whichever thread it comes.
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._is_over = threading.Event()
        self._exit_code = EXIT_FAILED
        self._guard: threading.Timer | None = None

    def connect(self, *, hang_timeout: float | None) -> None:
        """Hold the ranks together from now on (a collective).

        Args:
            hang_timeout: seconds without a call of `at` on any rank, after the first one, that count as a hang; None: never.

        Raises:
            ConnectionError: on all ranks, when one can't reach rank 0.
        """
        # Torch is not loaded before the configuration is known to be right.
        from training.distributed import from_rank_0, raise_on_all_ranks

        world = self._world
        listener = _listen() if world.rank == 0 and world.size > 1 else None
        port = listener.getsockname()[1] if listener else 0
        port, self._token, self._host_of_0 = from_rank_0(
            lambda: (port, secrets.token_hex(8), socket.gethostname()), world
        )
        self._hang_timeout = hang_timeout
        problem = None
        if world.rank == 0:
            for path in self._record.dir.glob(f"{ENDED}*"):
                path.unlink(missing_ok=True)
            mine, theirs = socket.socketpair()
            self._server = _Server(
                world, listener, _Wire(theirs), token=self._token, hang_timeout=hang_timeout, stacks=self._stacks,
                speak=self._speak,
            )  # fmt: skip
            self._wire = _Wire(mine)
        else:
            try:
                self._wire = _Wire(_keep_alive(socket.create_connection((world.master_addr, port), timeout=30)))
            except OSError as error:
                problem = ConnectionError(f"can't reach rank 0 at {world.master_addr}, port {port}: {error}")
        raise_on_all_ranks(problem, ConnectionError, world)
        assert self._wire is not None
        self._wire.send(hello=world.rank, token=self._token, host=socket.gethostname())
        if self._server is not None:
            self._server.start()
        threading.Thread(target=self._hold, args=(self._wire,), name="lifeline", daemon=True).start()

    def at(self, what: str, *, is_watched: bool = True) -> None:
        """This rank is alive and begins with `what` ("step 12: forward"); cheap enough for every micro-batch.

        Whatever may take longer than train.hang_timeout in one piece is not watched. The first call says that training has begun.
        """
        self._what, self._is_watched = what, is_watched
        self._moves += 1

    @property
    def _has_begun(self) -> bool:
        return self._moves > 0

    @property
    def _stacks(self) -> str:
        return str(self._record.dir / "logs")

    def stop(self, reason: str) -> None:
        """Leave with 85, all ranks together, as nothing can be lost before training begins; from any thread, without return."""
        self._leave_in_time(EXIT_PREEMPTED)
        report = Report(rank=self._world.rank, kind="stop", text=reason, exit_code=EXIT_PREEMPTED)
        if self._wire is not None:
            self._wire.send(report=dataclasses.asdict(report))
            time.sleep(2 * LEAVE_SECONDS)
        elif self._world.rank == 0:
            # The launcher ends ranks that wait for this one.
            self._speak(decide([report], places={}, hosts={}, stacks=self._stacks))
        _leave(EXIT_PREEMPTED)

    def fail(self, error: BaseException, *, is_user_error: bool) -> int:
        """This rank's main thread can't go on: find out with the others what the cause is, and have it said.

        Args:
            error: what was raised.
            is_user_error: its message says all; else it is printed with its traceback, if it is the cause.

        Returns:
            The exit code, the same on all ranks.
        """
        log.error("failed", exc_info=error)
        code = EXIT_FAILED if self._has_begun or not is_user_error else EXIT_WRONG_CONFIGURATION
        report = report_of(error, rank=self._world.rank, is_user_error=is_user_error, exit_code=code)
        with self._lock:
            self._error, self._exit_code = error, code
            self._reports.append(report)
            is_alone = self._wire is None or self._is_released
        if is_alone:
            # All ranks know of a user error that was found before they were connected.
            if self._wire is not None or not is_user_error or self._world.rank == 0:
                self._end_alone()
            return code
        assert self._wire is not None
        self._wire.send(report=dataclasses.asdict(report))
        self._is_over.wait(max(PATIENCE.values()) + 2 * LEAVE_SECONDS)
        return self._exit_code

    def close(self) -> None:
        """Say goodbye: from now on the others may not take the end of this process for a death."""
        if self._guard is not None:
            self._guard.cancel()
        if self._wire is not None:
            self._wire.send(goodbye=True)
        if self._server is not None:
            self._server.join(READY_SECONDS + 1)

    # What follows is done by the lifeline's thread.

    def _hold(self, wire: _Wire) -> None:
        """Tell rank 0 where this rank is, and listen to it, until the end."""
        beat = _beat_seconds(self._world)
        clock, heard = _Clock(beat), 0.0
        selector = selectors.DefaultSelector()
        selector.register(wire.socket, selectors.EVENT_READ)
        while True:
            wire.send(at=self._what, is_watched=self._is_watched, moves=self._moves)
            has_news = bool(selector.select(beat))
            clock.tick()
            if has_news:
                heard = clock.seconds
                try:
                    messages = wire.receive()
                except OSError as error:
                    how = UNREACHABLE if error.errno in LOST else DIED
                    self._reports.append(Report(rank=0, kind="death", text=how))
                    return self._end_alone()
                for message in messages:
                    if "report" in message:
                        self._reports.append(Report(**message["report"]))
                    elif "verdict" in message:
                        return self._obey(Verdict(**message["verdict"]), selector, wire)
                    elif "goodbye" in message:
                        wire.send(goodbye=True)
                        return self._release()
            silence = clock.seconds - heard
            if self._hang_timeout and self._has_begun and silence > self._hang_timeout:
                text = f"nothing has been heard of rank 0 on {self._host_of_0} for {in_words(self._hang_timeout)} (stopped?)"
                self._reports.append(Report(rank=0, kind="hang", text=text))
                return self._end_alone()

    def _release(self) -> None:
        """Rank 0 is at the end of the run, and waits for nobody."""
        with self._lock:
            self._is_released = True
            has_failed = self._error is not None
        if has_failed:
            self._end_alone()

    def _obey(self, verdict: Verdict, selector: selectors.BaseSelector, wire: _Wire) -> None:
        """Do what belongs to the end, wait until the cause is said, and leave."""
        self._prepare(verdict)
        wire.send(ready=True)
        deadline = time.monotonic() + READY_SECONDS + 1
        with contextlib.suppress(OSError):
            # Told to leave, or rank 0 has left.
            while time.monotonic() < deadline:
                if selector.select(0.1) and any("leave" in message for message in wire.receive()):
                    break
        self._end(verdict.exit_code)

    def _end_alone(self) -> None:
        """The end where rank 0 can't be asked: decide with what is known here; the first of those left says it."""
        places = {self._world.rank: place(self._what)}
        verdict = decide(self._reports, places=places, hosts={0: self._host_of_0}, stacks=self._stacks)
        self._prepare(verdict)
        if self._is_first_to_speak():
            self._speak(verdict)
        self._end(verdict.exit_code)

    def _prepare(self, verdict: Verdict) -> None:
        """Write this rank's stacks to its log, and the traceback to the terminal if it has caused the end."""
        self._leave_in_time(verdict.exit_code)
        if verdict.kind == "stop":
            return
        if self._error is None:
            log.error("this run ends: %s", verdict.text)
            with (
                contextlib.suppress(OSError),
                (self._record.dir / "logs" / f"rank{self._world.rank}.log").open("a") as file,
            ):
                file.write(f'stacks of all threads, in "{self._what}":\n')
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        elif verdict.kind in ("error", "echo") and verdict.rank == self._world.rank:
            traceback.print_exception(self._error, file=sys.stderr)
            sys.stderr.flush()

    def _leave_in_time(self, code: int) -> None:
        """Whatever keeps this process: it does so for some seconds at most, unless it is closed before."""
        self._guard = self._guard or threading.Timer(LEAVE_SECONDS, _leave, (code,))
        self._guard.daemon = True
        if not self._guard.is_alive():
            self._guard.start()

    def _is_first_to_speak(self) -> bool:
        if not self._token:
            return True
        try:
            os.close(os.open(self._record.dir / f"{ENDED}{self._token}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _speak(self, verdict: Verdict) -> None:
        """Write the cause to run.json, if this start has opened that, and say it."""
        if self._record.content:
            # What is said comes last, but waits for no storage that has gone.
            writing = threading.Thread(target=self._write, args=(verdict,), daemon=True)
            writing.start()
            writing.join(WRITE_SECONDS)
        if self._display.is_live:
            self._display.console.show_cursor()
            self._display.console.print()
        if verdict.kind == "stop":
            self._display.say(verdict.text)
            sys.stdout.flush()
        elif verdict.kind == "user error":
            print(f"\n{verdict.text}\n", file=sys.stderr, flush=True)
        elif verdict.rank != self._world.rank or self._error is None:
            # Else it is the last line of the traceback.
            print(verdict.text, file=sys.stderr, flush=True)

    def _write(self, verdict: Verdict) -> None:
        status, key = ("preempted", "stopped_by") if verdict.kind == "stop" else ("failed", "error")
        if self._record.is_writer:
            self._record.finish(status, **{key: verdict.error})
            return
        # Rank 0 is gone, and with it what it knows.
        path = self._record.dir / "run.json"
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            write_json(path, {**(read_json(path) or {}), "status": status, key: verdict.error, "finished": finished})
        except OSError:
            log.exception("run.json could not be written")

    def _end(self, code: int) -> None:
        """Leave, or let the main thread do it if that waits for this."""
        with self._lock:
            self._exit_code = code
            if self._error is not None:
                self._is_over.set()
                return
        _leave(code)


class _Server(threading.Thread):
    """Rank 0's other end of all lifelines."""

    def __init__(
        self,
        world: World,
        listener: socket.socket | None,
        own: _Wire,
        *,
        token: str,
        hang_timeout: float | None,
        stacks: str,
        speak: Callable[[Verdict], None],
    ) -> None:
        super().__init__(name="lifeline server", daemon=True)
        self._world, self._listener, self._token = world, listener, token
        self._hang_timeout, self._stacks, self._speak = hang_timeout, stacks, speak
        self._beat = _beat_seconds(world)
        self._clock = _Clock(self._beat)
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
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

    def _serve_until(self, is_over: Callable[[_Peer], bool]) -> None:
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
                    wire = _Wire(_keep_alive(self._listener.accept()[0]))
                    self._selector.register(wire.socket, selectors.EVENT_READ, wire)
            else:
                self._hear(key.data)
        self._clock.tick()
        if self._clock.seconds >= self._next_beat:
            self._next_beat = self._clock.seconds + self._beat
            self._broadcast(beat=True)

    def _hear(self, wire: _Wire) -> None:
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

    def _welcome(self, wire: _Wire, message: dict[str, Any]) -> _Peer:
        """A rank's first message; who has not the token is no rank."""
        if message.get("token") != self._token:
            raise ValueError("not one of the ranks")
        peer = _Peer(rank=message["hello"], host=message["host"], wire=wire, heard=self._clock.seconds)
        self._peers[peer.rank] = peer
        return peer

    def _take(self, peer: _Peer, message: dict[str, Any]) -> None:
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

    def _has_gone(self, peer: _Peer, how: str) -> None:
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

    def _places(self, peers: Iterable[_Peer]) -> dict[int, str]:
        return {
            peer.rank: place(peer.what, is_silent=self._silence(peer) > SILENT_BEATS * self._beat) for peer in peers
        }

    def _silence(self, peer: _Peer) -> float:
        """Seconds for which a rank's thread has not been heard of."""
        return self._clock.seconds - peer.heard

    def _broadcast(self, **message: Any) -> None:
        for peer in self._peers.values():
            if not peer.has_left:
                peer.wire.send(**message)


@dataclasses.dataclass(kw_only=True)
class _Peer:
    """A rank as rank 0 sees it."""

    rank: int
    host: str
    wire: _Wire
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


class _Wire:
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
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages


class _Clock:
    """Seconds in which this process ran: when all of a job is suspended, nobody hangs."""

    def __init__(self, beat: float) -> None:
        self._most, self._last = 2 * beat, time.monotonic()
        self.seconds = 0.0

    def tick(self) -> None:
        """Go on."""
        now = time.monotonic()
        self.seconds += min(now - self._last, self._most)
        self._last = now


def _beat_seconds(world: World) -> float:
    return max(1.0, world.size / BEATS_PER_SECOND)


def _listen() -> socket.socket:
    """A socket at any port of all interfaces, of both families where there are both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _keep_alive(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _leave(code: int) -> None:
    """End this process now."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
