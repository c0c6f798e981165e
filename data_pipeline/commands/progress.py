"""Progress on the terminal: a bar with speed and time left, or plain lines where nobody watches."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from data_pipeline.commands.formatting import format_amounts, format_pace

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_UPDATES = 0.1


class ProgressReporter:
    """Shows how far a task is; used as a context, with one call of `report` for each piece of work done."""

    def __init__(self, file: TextIO, *, unit: str = "") -> None:
        """Write to `file`: a bar if it is a terminal, else a line at the start, every few seconds and at the end.

        Args:
            file: usually sys.stderr.
            unit: what `done` and `total` count: "bytes" are shown as MB and MB/s, others by name.
        """
        self._file = file
        self._unit = unit
        self._started: dict[str, tuple[float, int]] = {}
        self._last_shown: dict[str, float] = {}
        self._bars = _bars(file) if file.isatty() else None
        self._bar_of: dict[str, TaskID] = {}

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
        now = time.monotonic()
        is_first = what not in self._started
        if is_first:
            self._started[what] = (now, done)
        pause = _SECONDS_BETWEEN_UPDATES if self._bars is not None else _SECONDS_BETWEEN_LINES
        if not is_first and done != total and now - self._last_shown[what] < pause:
            # Called for every document: showing each would cost more than the work.
            return
        self._last_shown[what] = now
        started, done_before = self._started[what]
        amounts = format_amounts(done, total, self._unit)
        pace = format_pace(done - done_before, total - done, now - started, self._unit)
        if self._bars is None:
            print(f"{what}: {amounts}{', ' + pace if pace else ''}", file=self._file, flush=True)
            return
        if is_first:
            self._bar_of[what] = self._bars.add_task(what, total=total, amounts=amounts, pace=pace)
        self._bars.update(self._bar_of[what], completed=done, total=total, amounts=amounts, pace=pace)


def _bars(file: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(min_width=8, max_width=40, ratio=1)),
        TextColumn("{task.fields[amounts]}", justify="right", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[pace]}", table_column=Column(no_wrap=True)),
    )
    return Progress(*columns, console=Console(file=file), expand=True)
