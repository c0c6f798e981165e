"""The lifeline: when one rank can't go on, all of them end within seconds, and the last line says why.

Every rank holds a TCP connection to rank 0, made right after the rendezvous and served by a thread, so that it works
while the main thread waits in a collective. What a rank reports, an error or that it was asked to stop before training began,
and what the connection tells, that it is dead or that nothing moves any more, comes together at rank 0. That decides what
the cause is (training/ranks/verdict.py) and tells all ranks; each writes the stacks of its threads to its log, rank 0 says the cause,
and all leave with the same exit code. Nothing that could wait for a lost rank is closed.

"The last line" is that of the job itself: launchers add their own below it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from datetime import UTC, datetime

from training.command_line import EXIT_FAILED, EXIT_PREEMPTED, EXIT_WRONG_CONFIGURATION
from training.files import read_json, write_json
from training.ranks.lifeline_server import READY_SECONDS, START_UP, Server, beat_seconds
from training.ranks.verdict import DIED, PATIENCE, UNREACHABLE, Report, Verdict, decide, in_words, place, report_of
from training.ranks.wire import LOST, Clock, Wire, keep_alive, listen
from training.record.run_record import RunRecord
from training.watch.display import Display
from training.world import World

log = logging.getLogger("palimpsest")

WRITE_SECONDS = 2.0
"""Time to write run.json before the cause is said without."""

LEAVE_SECONDS = 8.0
"""Time after which a rank leaves in any case once the end is decided."""

ENDED = ".ended-"
"""File of the run directory that who speaks makes first, where rank 0 is not there to do so."""


class Lifeline:
    """This rank's end of it; alone until `connect`."""

    def __init__(self, world: World, record: RunRecord, display: Display) -> None:
        self._world, self._record, self._display = world, record, display
        self._what, self._is_watched, self._moves = START_UP, True, 0
        self._wire: Wire | None = None
        self._server: Server | None = None
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
        from training.ranks.distributed import from_rank_0, raise_on_all_ranks

        world = self._world
        listener = listen() if world.rank == 0 and world.size > 1 else None
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
            self._server = Server(
                world, listener, Wire(theirs), token=self._token, hang_timeout=hang_timeout, stacks=self._stacks,
                speak=self._speak,
            )  # fmt: skip
            wire = Wire(mine)
        else:
            try:
                wire = Wire(keep_alive(socket.create_connection((world.master_addr, port), timeout=30)))
            except OSError as error:
                problem = ConnectionError(f"can't reach rank 0 at {world.master_addr}, port {port}: {error}")
        raise_on_all_ranks(problem, ConnectionError, world)
        wire.send(hello=world.rank, token=self._token, host=socket.gethostname())
        self._wire = wire
        if self._server is not None:
            self._server.start()
        threading.Thread(target=self._live, args=(wire,), name="lifeline", daemon=True).start()

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
        else:
            text = decide([report], places={}, hosts={}, stacks=self._stacks).text
            print(f"rank {self._world.rank}: {text}", flush=True)
        _leave(EXIT_PREEMPTED)

    def fail(self, error: BaseException, *, is_user_error: bool) -> int:
        """This rank's main thread can't go on: find out with the others what the cause is, and have it said.

        Args:
            error: what was raised.
            is_user_error: its message says all; else it is printed with its traceback, if it is the cause.

        Returns:
            The exit code, the same on all ranks.
        """
        log.error('failed in "%s"', self._what, exc_info=error)
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
        with self._lock:
            self._is_released = True
        if self._guard is not None:
            self._guard.cancel()
        if self._wire is not None:
            self._wire.send(goodbye=True)
        if self._server is not None:
            self._server.join(READY_SECONDS + 1)

    # What follows is done by the lifeline's thread.

    def _live(self, wire: Wire) -> None:
        with wire.socket, selectors.DefaultSelector() as selector:
            selector.register(wire.socket, selectors.EVENT_READ)
            self._hold(wire, selector)

    def _hold(self, wire: Wire, selector: selectors.BaseSelector) -> None:
        """Tell rank 0 where this rank is, and listen to it, until the end."""
        beat = beat_seconds(self._world)
        clock, heard = Clock(beat), 0.0
        while True:
            wire.send(at=self._what, is_watched=self._is_watched, moves=self._moves)
            has_news = bool(selector.select(beat))
            clock.tick()
            if has_news:
                heard = clock.seconds
                try:
                    messages = wire.receive()
                except OSError as error:
                    if self._is_released:
                        return
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

    def _obey(self, verdict: Verdict, selector: selectors.BaseSelector, wire: Wire) -> None:
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
        with self._lock:
            if self._guard is None:
                self._guard = threading.Timer(LEAVE_SECONDS, _leave, (code,))
                self._guard.daemon = True
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
            # The bar would be drawn again below what is said.
            self._display.__exit__(None, None, None)
        if verdict.kind == "stop":
            self._display.say(verdict.text)
            sys.stdout.flush()
        elif verdict.kind == "user error":
            print(f"\n{verdict.text}\n", file=sys.stderr, flush=True)
        elif verdict.rank != self._world.rank or self._error is None:
            # Else it is the last line of the traceback.
            print(verdict.text, file=sys.stderr, flush=True)
        # The main thread may be closing things, and have something to say about that.
        self._display.console.quiet = True

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


def _leave(code: int) -> None:
    """End this process now."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
