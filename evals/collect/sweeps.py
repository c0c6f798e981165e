"""Sweeps: which runs are the cells of one study. `python -m launch sweep` writes sweep.json into the folder of its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from evals.collect.walk import Skipped, SweepFile
from evals.errors import EvalError
from evals.json_text import parse_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of settings.

    Attributes:
        index: its number in the sweep.
        name: what the sweep calls it.
        run: id of its run, which may not have begun.
        values: axis -> value; the axis "method" names a group of settings.
    """

    index: int
    name: str
    run: str
    values: dict[str, Any]

    @property
    def method(self) -> str | None:
        """The method, where the sweep has any."""
        method = self.values.get("method")
        return method if isinstance(method, str) else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as it was started last.

    Attributes:
        name: of the sweep.
        folder: id of the folder that its runs are in.
        axes: what the cells differ in.
        cells: all of them, in the order of their numbers.
    """

    name: str
    folder: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]


def read_sweeps(files: Iterable[SweepFile]) -> tuple[list[Sweep], list[Skipped]]:
    """The sweeps in some files, and the files that hold none."""
    sweeps, skipped = [], []
    for file in files:
        try:
            sweeps.append(read_sweep(file.path, file.folder))
        except EvalError as error:
            skipped.append(Skipped(str(file.path), str(error)))
        except OSError as error:
            skipped.append(Skipped(str(file.path), f"cannot be read ({error.strerror})"))
    return sweeps, skipped


def read_sweep(path: Path, folder: str = "") -> Sweep:
    """The sweep in a sweep.json.

    Args:
        path: the file.
        folder: id of the folder it is in; ids of runs begin with it.

    Raises:
        EvalError: why it is none, without its path.
        OSError: it can't be read.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise EvalError(f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise EvalError("no sweep: it has no cells")
    if content.get("schema") != SCHEMA:
        raise EvalError(f"schema {content.get('schema')!r} of a sweep is not known here")
    axes, cells, name = content.get("axes"), content.get("cells"), content.get("name")
    if not (isinstance(axes, list) and all(isinstance(axis, str) for axis in axes) and isinstance(cells, list)):
        raise EvalError("no sweep: it has no axes and cells")
    found = sorted((_cell(cell, folder) for cell in cells), key=lambda cell: cell.index)
    return Sweep(
        name=name if isinstance(name, str) and name else "sweep", folder=folder, axes=tuple(axes), cells=tuple(found)
    )


def _cell(cell: Any, folder: str) -> Cell:
    """A cell; its run is inside of the sweep's folder."""
    try:
        index, name, run, values = (cell[key] for key in ("index", "name", "run", "values"))
    except (KeyError, TypeError):
        raise EvalError("no sweep: a cell has no index, name, run or values") from None
    is_cell = isinstance(index, int) and isinstance(name, str) and isinstance(run, str) and isinstance(values, dict)
    if not is_cell or run in ("", ".") or ".." in PurePosixPath(run).parts or PurePosixPath(run).is_absolute():
        raise EvalError(f"no sweep: cell {index!r} is none")
    return Cell(
        index=index,
        name=name,
        run=str(PurePosixPath(folder, run)),
        values={axis: _finite(value) for axis, value in values.items()},
    )


def _finite(value: Any) -> Any:
    """The value, as text where JSON has no word for it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
