"""How far a comparison is: a bar with the time left on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from evals.formatting import duration

SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def showing_progress(what: str, file: TextIO) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function to call with the work done, the work in all, and the matrix that was compared last.

    Args:
        what: is compared.
        file: usually sys.stderr.
    """
    if file.isatty():
        with _bar(what, file) as report:
            yield report
    else:
        yield _lines(what, file)


def _lines(what: str, file: TextIO) -> Callable[[int, int, str], None]:
    begun = time.monotonic()
    last = [begun - SECONDS_BETWEEN_LINES]

    def report(done: int, total: int, name: str) -> None:
        now = time.monotonic()
        # The first matrix says how long the others will take.
        if done == total or now - last[0] >= SECONDS_BETWEEN_LINES:
            last[0] = now
            left = (now - begun) * (total - done) / done
            print(
                f"{what}: {100 * done / total:.0f} % done, about {duration(left)} left ({name})", file=file, flush=True
            )

    return report


@contextlib.contextmanager
def _bar(what: str, file: TextIO) -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        # Matrices take minutes each on a CPU: the pace is that of the whole time.
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*columns, console=Console(file=file), speed_estimate_period=1e9) as progress:
        task = progress.add_task(what, total=None, name="")

        def report(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, name=name)

        yield report
