"""A polite end: signals and the PREEMPT file ask for it, all ranks agree on it at the next boundary."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that this rank was asked to stop; `any_rank` turns that into everybody's decision."""

    def __init__(self, run_dir: Path, *, watches_file: bool = True) -> None:
        """One rank is enough to watch for the file; shared storage is asked at every step."""
        self.reason: str | None = None
        self._is_interrupted = False
        self._preempt_file = run_dir / "PREEMPT"
        self._watches_file = watches_file

    def listen(self) -> None:
        """From now on, Ctrl-C, SIGTERM and SIGUSR1 ask for a stop instead of killing the process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C means now. (Launchers follow the first one up with SIGTERM, which doesn't.)
        if number == signal.SIGINT and self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted |= number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name

    def is_local(self) -> bool:
        """Whether this rank was asked, by a signal or by the PREEMPT file in the run directory."""
        if self.reason is None and self._watches_file and self._preempt_file.exists():
            self.reason = "PREEMPT file"
        return self.reason is not None

    def any_rank(self, any_of: Callable[[bool], bool]) -> bool:
        """Whether any rank was asked: `any_of` is a collective or, called by all ranks alike."""
        return any_of(self.is_local())

    def clear_file(self) -> None:
        """Remove the PREEMPT file now that it was heeded, so that the next start goes on (rank 0)."""
        self._preempt_file.unlink(missing_ok=True)
