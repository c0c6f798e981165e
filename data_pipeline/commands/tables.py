"""Tables on standard output, the same in a terminal, a file and a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH_OF_FILES = 140


def output_width() -> int:
    """Columns there are: those of the terminal; where there is none, enough for everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH_OF_FILES


def table(words: Sequence[str], numbers: Sequence[str], *, title: str | None = None) -> Table:
    """A table with columns of words, then columns of numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=None if title is None else Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in words:
        made.add_column(heading, overflow="fold")
    for heading in numbers:
        made.add_column(heading, justify="right", overflow="fold")
    return made


def print_table(made: Table) -> None:
    """Print a table, whole even where no terminal gives a width."""
    from rich.console import Console

    console = Console(width=output_width(), highlight=False, emoji=False, markup=False)
    # Captured, as a console that finds its reader gone would end the process itself.
    with console.capture() as captured:
        console.print(made)
    print(captured.get(), end="")


def short_location(location: str, folder: str) -> str:
    """A path or URL as it is inside `folder`, its name alone where that is the file itself; whole where it is elsewhere."""
    if location == folder:
        return location.rstrip("/").rsplit("/", 1)[-1]
    return location.removeprefix(folder.rstrip("/") + "/")
