"""A file that grows by whole entries, also where storage refuses to take some for a while."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

MOST_BYTES = 64 << 20
"""What may wait in memory for one file; that is some hundred thousand steps of metrics."""


class AppendedFile:
    """Entries, such as lines, at the end of a file; those that storage does not take wait in memory, in order.

    An attempt that fails halfway leaves a piece of an entry behind, as on a full disk. It is cut before anything follows it.
    """

    def __init__(self, path: Path, *, called: str | None = None) -> None:
        """`called` is what people call the entries; the file's folder must exist when they are written."""
        self.path = path
        self.num_lost = 0
        """Entries, the oldest ones, that had to give way to newer ones because more than MOST_BYTES were waiting."""
        self._called = called or f"lines of {path.name}"
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.torn_at: int | None = None
        """Where the file ended before an attempt that failed."""
        self._is_looked_at = False

    def __str__(self) -> str:
        """What is missing in the file."""
        lost = f" ({self.num_lost} older ones are lost)" if self.num_lost else ""
        return f"{len(self._waiting)} {self._called}{lost}"

    def add(self, entry: bytes) -> None:
        """Have an entry wait for the next flush."""
        self._waiting.append(entry)
        self._waiting_bytes += len(entry)
        while self._waiting_bytes > MOST_BYTES and len(self._waiting) > 1:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.num_lost += 1

    def keep(self, is_kept: Callable[[bytes], bool]) -> None:
        """Of what waits, keep these entries only."""
        self._waiting = deque(entry for entry in self._waiting if is_kept(entry))
        self._waiting_bytes = sum(len(entry) for entry in self._waiting)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: storage did not take it; all of it waits on.
        """
        if not self._waiting:
            return
        # Opened anew each time: a file that was open when its server went away stays unusable.
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self.torn_at = self._cut_piece(descriptor)
            rest = memoryview(b"".join(self._waiting))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            # A network file system may say only here that there is no room.
            os.close(descriptor)
        self.torn_at = None
        self._waiting.clear()
        self._waiting_bytes = 0

    def _cut_piece(self, descriptor: int) -> int:
        """Cut what an attempt that failed has left behind, and half a line of a process that was killed; return the end."""
        size = os.fstat(descriptor).st_size
        end = size
        if self.torn_at is not None:
            end = min(self.torn_at, size)
        elif size and not self._is_looked_at:
            with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as content:
                end = content.rfind(b"\n") + 1
        self._is_looked_at = True
        if end < size:
            os.ftruncate(descriptor, end)
        return end
