"""What a person sees while the run goes on: a bar on a terminal, plain lines otherwise. Rank 0 only."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Least time between two plain lines."""


class Output:
    """Standard output; what it does not take, as a file on a full disk, is gone, and no reason to end a run."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def write(self, text: str) -> int:
        """Write as far as possible."""
        with contextlib.suppress(OSError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        """Write through as far as possible."""
        with contextlib.suppress(OSError):
            sys.stdout.flush()


class Display:
    """Progress of training and evaluation; silent on ranks other than 0."""

    def __init__(self, *, label: str, steps: int, is_shown: bool) -> None:
        self.label, self.steps, self.is_shown = label, steps, is_shown
        self.console = Console(file=cast(IO[str], Output()), highlight=False, quiet=not is_shown)
        self.is_live = is_shown and self.console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=not self.is_live,
            transient=False,
        )
        self._train = self._bar.add_task(label, total=steps, note="", visible=False)
        self._eval = self._bar.add_task("  evaluating", total=1, note="", visible=False)
        self._started = self._first_step = None  # type: float | None
        self._printed = 0.0
        self._prepared: float | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, steps: int) -> None:
        """The run is so many steps long."""
        self.steps = steps
        self._bar.update(self._train, total=steps)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(f"{self.label}: {text}", markup=False, emoji=False, soft_wrap=True)

    def step(self, step: int, loss: float, tokens_per_second: float, mfu: float | None = None) -> None:
        """Training has reached `step`, at this fraction of the devices' peak, if that is known."""
        note = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        if mfu is not None:
            note += f"  {mfu:.0%} MFU"
        if self.is_live:
            self._bar.update(self._eval, visible=False)
            self._bar.update(self._train, completed=step, note=note, visible=True)
            return
        now = time.monotonic()
        if self._started is None or self._first_step is None:
            self._started, self._first_step = now, step
        if now - self._printed < PLAIN_SECONDS and step != self.steps:
            return
        self._printed = now
        done = step - self._first_step
        left = f"  {clock((self.steps - step) * (now - self._started) / done)} left" if done else ""
        self.say(f"step {step}/{self.steps}  {note}{left}")

    def preparing(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of the work `what` that comes before training is done."""
        now = time.monotonic()
        # Silent where it is soon done, as it is at every start but the first.
        self._prepared = self._prepared or now
        if now - max(self._prepared, self._printed) >= PLAIN_SECONDS:
            self._printed = now
            self.say(f"{what}: {done / max(1, total):.0%}")

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has done `done` of `total` forward passes."""
        if self.is_live:
            self._bar.update(self._eval, completed=done, total=total, visible=done < total)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self.say(f"evaluating {done}/{total}")


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
