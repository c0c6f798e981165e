"""What a local queue shows: a line for what has happened, and in a terminal below that a live line per running cell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

SILENCE = 60.0
"""Seconds after which the running cells are printed again, where there is no terminal."""


class Board:
    """Lines on the terminal, or in a file."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` is where they go: standard output."""
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = (
            Live(console=self.console, transient=True, auto_refresh=False) if self.console.is_terminal else None
        )
        self._shown = time.monotonic()

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print something that has happened."""
        self.console.print(line, markup=False)

    def show(self, running: Sequence[str]) -> None:
        """Show what runs now; called as often as one likes."""
        if self._live is not None:
            self._live.update(Text("\n".join(running), no_wrap=True, overflow="ellipsis"), refresh=True)
        elif running and time.monotonic() - self._shown > SILENCE:
            self._shown = time.monotonic()
            for line in running:
                self.say(line)
