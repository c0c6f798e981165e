"""A log file on storage that may refuse lines for a while."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from training.record.appended import AppendedFile
from training.record.unwritten import PAUSE_SECONDS


class LogFile(logging.Handler):
    """Appends records to a file; lines that storage does not take wait, which is said on stderr once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = AppendedFile(path)
        self._next_attempt = 0.0
        self._is_told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            text = self.format(record)
        except Exception:
            # A message and its arguments don't fit: shown as logging shows it.
            self.handleError(record)
            return
        self._file.add((text + "\n").encode(errors="backslashreplace"))
        if time.monotonic() >= self._next_attempt:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as storage takes it."""
        try:
            self._file.flush()
        except OSError as error:
            self._next_attempt = time.monotonic() + PAUSE_SECONDS
            if not self._is_told:
                self._is_told = True
                print(
                    f"WARNING: storage does not take {self._file}: {error.strerror}. They wait, and are lost if they still wait when "
                    "the run ends",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def close(self) -> None:
        """Write what waits."""
        self.flush()
        super().close()
