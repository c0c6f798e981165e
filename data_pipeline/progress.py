"""Progress on the terminal: a bar, or plain lines where nobody watches."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

_SECONDS_BETWEEN_LINES = 5.0


class ProgressReporter:
    """Shows how far a task is; used as a context, with one call of `report` for each piece of work done."""

    def __init__(self, file: TextIO) -> None:
        """Write to `file`: a bar if it is a terminal, else a line at the start, every few seconds and at the end."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._file = file
        self._last_line = 0.0
        self._tasks: dict[str, int] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(file=file)) if file.isatty() else None

    def __enter__(self) -> ProgressReporter:
        """Start to show bars."""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()

    def report(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` pieces of the task `what` are done."""
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done)  # type: ignore[arg-type]
            return
        if what not in self._tasks or done == total or time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._tasks.setdefault(what, 0)
            self._last_line = time.monotonic()
            print(f"{what}: {done}/{total}", file=self._file, flush=True)
