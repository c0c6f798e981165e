"""A polite end: signals, the PREEMPT file and the wall time ask for it.

Until training begins nothing can be lost, and whoever is asked leaves at once, also out of a call that would not return. From then
on a request is remembered, and all ranks agree on it at the next boundary.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType

from training.duration import parse_duration

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

PREEMPT_FILE = "PREEMPT file"
WALL_TIME = "wall time"
"""Reasons to stop, beside the names of signals."""

LOOK_SECONDS = 0.5
"""Time between looks at file and clock before training begins."""


def time_to_stop(
    started: float, environment: Mapping[str, str], *, wall_time: str | None, stop_before: str
) -> float | None:
    """When to ask for a stop, in Unix seconds; None: never.

    Args:
        started: when this process did.
        environment: Slurm's, from version 23.02 on, says when the job ends.
        wall_time: of this start, as train.wall_time.
        stop_before: time before the end, as train.stop_before.
    """
    ends = [] if wall_time is None else [started + parse_duration(wall_time)]
    slurm = environment.get("SLURM_JOB_END_TIME", "")
    # One that is over is not this job's, or was extended.
    if slurm.isascii() and slurm.isdigit() and int(slurm) > started:
        ends.append(float(slurm))
    return min(ends) - parse_duration(stop_before) if ends else None


class StopRequest:
    """Remembers that this rank was asked to stop."""

    def __init__(
        self, run_dir: Path, *, watches_file: bool = True, heeds_earlier: bool = True, stop_at: float | None = None
    ) -> None:
        """One rank is enough to watch for the file; shared storage is asked at every step.

        Args:
            run_dir: where the PREEMPT file may be.
            watches_file: whether this rank looks for it.
            heeds_earlier: whether a file that is there already asks for a stop, as it does after a requeue: who left it meant
                this job. It is stale where nothing was going on that it could have stopped.
            stop_at: when the time is up, in Unix seconds.
        """
        self.reason: str | None = None
        self._is_interrupted = False
        self._preempt_file = run_dir / "PREEMPT"
        self._watches_file, self._stop_at = watches_file, stop_at
        self._stale = self._touched() if watches_file and not heeds_earlier else None
        self._leave: Callable[[str], object] | None = None

    def listen(self, leave: Callable[[str], object]) -> None:
        """From now until `hold`, `leave` is called with the reason when there is a request, in a thread of its own."""
        self._leave = leave
        signals, wakeup = socket.socketpair()
        # Python's own handlers wait until the main thread comes back from C; the byte is written at once.
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._wait, args=(signals, wakeup), name="stop requests", daemon=True).start()
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def hold(self) -> None:
        """Training begins: from now on a request waits for the next boundary (main thread)."""
        self._leave = None
        signal.set_wakeup_fd(-1)

    def _wait(self, signals: socket.socket, wakeup: socket.socket) -> None:
        """Look for requests until training begins."""
        with signals, wakeup:
            self._look(signals)

    def _look(self, signals: socket.socket) -> None:
        while (leave := self._leave) is not None:
            if self.is_local():
                if self.reason == PREEMPT_FILE:
                    self.clear_file()
                leave(str(self.reason))
            if select.select([signals], [], [], LOOK_SECONDS)[0]:
                for number in signals.recv(64):
                    if number in STOP_SIGNALS:
                        self.reason = self.reason or signal.Signals(number).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C means now. (Launchers follow the first one up with SIGTERM, which doesn't.)
        if number == signal.SIGINT and self._is_interrupted and self._leave is None:
            raise KeyboardInterrupt("a second Ctrl-C: what came after the last checkpoint is not saved")
        self._is_interrupted |= number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name

    def is_local(self) -> bool:
        """Whether this rank was asked: by a signal, by the PREEMPT file in the run directory, or as its time is up."""
        if self.reason is None and self._watches_file and self._touched() not in (None, self._stale):
            self.reason = PREEMPT_FILE
        if self.reason is None and self._stop_at is not None and time.time() >= self._stop_at:
            self.reason = WALL_TIME
        return self.reason is not None

    def clear_file(self) -> None:
        """Remove the PREEMPT file now that it was heeded, so that the next start goes on (rank 0)."""
        self._preempt_file.unlink(missing_ok=True)

    def remove_stale(self) -> str | None:
        """Remove a PREEMPT file from before this start, which nothing heeds; the line that says so (rank 0).

        Only once it is known that no other start of the run is going on: it could be meant for that one.
        """
        if self._stale is None or self._touched() != self._stale:
            return None
        touched = datetime.fromtimestamp(self._stale / 1e9).astimezone().isoformat(" ", "seconds")
        try:
            self.clear_file()
        except OSError as error:
            return f"PREEMPT from {touched}, before this start: ignored, it can't be removed ({error.strerror}); touch it to stop"
        return f"PREEMPT from {touched}, before this start: removed; touch it again to stop"

    def _touched(self) -> int | None:
        """When the PREEMPT file was touched last, in nanoseconds; None where there is none."""
        try:
            return os.stat(self._preempt_file).st_mtime_ns
        except OSError:
            return None
