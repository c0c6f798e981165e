"""What storage has not taken of a run's small files: kept, tried again, and said once per kind of trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

PAUSE_SECONDS = 5.0
"""Least time between an attempt that failed and the next one."""

PAUSE_FACTOR = 10.0
"""It may take minutes until storage says no; training goes on for so many times as long before it is asked again."""

LAST_PAUSES = (1.0, 2.0, 4.0)
"""Seconds between the attempts at the end of a run."""


class Change(Protocol):
    """Something to be written, which keeps what storage did not take. As text it says what is missing."""

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: some of it can't be written now.
        """


class Unwritten:
    """The changes that wait for storage; training goes on meanwhile."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` tells the user of trouble, and when it is over."""
        self.say = say
        self._waiting: list[Change] = []
        self._told: set[str] = set()
        self._cause = ""
        self._next_attempt = 0.0
        # The lifeline's thread writes how a run ended.
        self._lock = threading.RLock()

    def write(self, change: Change) -> None:
        """Write a change now or, as long as storage refuses something, together with everything that waits."""
        with self._lock:
            if not self._waiting:
                self._attempt([change])
                return
            if change not in self._waiting:
                self._waiting.append(change)
            if time.monotonic() >= self._next_attempt:
                self.retry()

    def retry(self) -> str | None:
        """Try everything that waits; return what is still missing and why, None when nothing is."""
        with self._lock:
            if self._waiting:
                self._attempt(self._waiting)
            if not self._waiting:
                return None
            return f"{', '.join(str(change) for change in self._waiting)} ({self._cause})"

    def settle(self) -> str | None:
        """The same in several attempts, because it is the last chance."""
        for pause in LAST_PAUSES:
            if self.retry() is None:
                return None
            time.sleep(pause)
        return self.retry()

    def _attempt(self, changes: list[Change]) -> None:
        late = ", ".join(str(change) for change in changes) if changes is self._waiting else ""
        refused = []
        for change in changes:
            began = time.monotonic()
            try:
                change.flush()
            except OSError as error:
                refused.append(change)
                now = time.monotonic()
                self._next_attempt = now + max(PAUSE_SECONDS, PAUSE_FACTOR * (now - began))
                self._tell(change, error)
        self._waiting = refused
        if late and not refused:
            self._told.clear()
            self.say(f"storage takes what is written again; written late: {late}")

    def _tell(self, change: Change, error: OSError) -> None:
        self._cause = error.strerror or str(error)
        if self._cause not in self._told:
            self._told.add(self._cause)
            self.say(
                f"WARNING: storage does not take {change}: {self._cause}. Training goes on; what is missing is tried again, and "
                "lost if it still waits when the run ends"
            )
