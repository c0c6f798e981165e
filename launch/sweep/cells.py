"""A definition -> its cells: every combination of axes, in an order and with names that depend on the file only. Pure."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.sweep.definition import Definition, Method
from launch.sweep.names import METHOD, cell_names, text_of
from training.recipe import ConfigError

MOST_CELLS = 1000
"""What Slurm's job arrays have room for, unless a cluster's MaxArraySize says otherwise."""
TAKEN = ("logs", "collected", "sweep.json")
"""Names in the sweep's folder that are no cells'."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    index: int
    """From 0, in the order of the file: an array's task."""
    name: str
    run_dir: Path
    recipe: Path
    values: dict[str, Any]
    """Its method, where there are any, and its place on every axis that something sets for it."""
    settings: dict[str, Any]
    """All that it sets of the recipe, but for run.dir."""

    @property
    def arguments(self) -> list[str]:
        """Its settings as a command line."""
        # Last, so that no blank value ends the lines that a shell reads them from.
        settings = {**self.settings, "run.dir": self.run_dir}
        return [part for path, value in settings.items() for part in (f"--{path}", text_of(value))]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep with its cells."""

    name: str
    file: Path
    ds_config: Path | None
    root: Path
    axes: tuple[str, ...]
    """`method`, where there are any, then settings in the file's order."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class _Combination:
    """A cell without number and name."""

    own: dict[str, Any]
    """What it is named after: its method, and its place on that method's axes."""
    recipe: Path
    values: dict[str, Any]
    settings: dict[str, Any]

    def has(self, conditions: dict[str, list[Any]]) -> bool:
        """Whether it meets all of them."""
        return all(path in self.values and self.values[path] in wanted for path, wanted in conditions.items())


def expand(definition: Definition) -> Sweep:
    """The sweep that a file defines.

    Raises:
        ConfigError: too many cells, none at all, or several that are the same run.
    """
    file, root = definition.file.name, definition.root
    methods = definition.methods or (Method(name="", settings={}, axes={}),)
    count = sum(math.prod(map(len, _axes(definition, method).values())) for method in methods)
    if count > MOST_CELLS:
        raise ConfigError([f"{file}: makes {count:,} cells, and a sweep has at most {MOST_CELLS:,}, as Slurm's job arrays do "
                           "by default (MaxArraySize); take fewer values, or split it into files"])  # fmt: skip
    axes = list(dict.fromkeys([*definition.grid, *(path for method in methods for path in method.axes)]))
    found = [each for method in methods for each in _combinations(definition, method, axes)]
    problems = [
        f"skip {number} ({file}): leaves out no cell; are its values those of [grid] and [methods]?"
        for number, conditions in enumerate(definition.skip, start=1)
        if not any(each.has(conditions) for each in found)
    ]
    left = [each for each in found if not any(each.has(conditions) for conditions in definition.skip)]
    if not left:
        problems.append(f"skip ({file}): leaves out every cell")
    names = cell_names([each.own for each in left])
    problems += [f"{name} ({file}): is the name of something else in {root}; rename the method"
                 for name in names if name in TAKEN]  # fmt: skip
    problems += _duplicates(file, names, left)
    if problems:
        raise ConfigError(problems)
    cells = tuple(
        Cell(
            index=index, name=name, run_dir=root / name, recipe=each.recipe, values=each.values, settings=each.settings
        )
        for index, (name, each) in enumerate(zip(names, left, strict=True))
    )
    return Sweep(
        name=definition.file.stem, file=definition.file, ds_config=definition.ds_config, root=root,
        axes=tuple([METHOD, *axes] if definition.methods else axes), cells=cells,
    )  # fmt: skip


def _axes(definition: Definition, method: Method) -> dict[str, list[Any]]:
    """A method's axes: the grid's, unless it says otherwise, and its own."""
    fixed = {path: [value] for path, value in method.settings.items() if path in definition.grid}
    return definition.grid | fixed | method.axes


def _combinations(definition: Definition, method: Method, all_axes: Sequence[str]) -> Iterator[_Combination]:
    """The cells of a method; they have values also on axes of other methods, where something sets those."""
    axes, name = _axes(definition, method), {METHOD: method.name} if method.name else {}
    recipe = method.recipe or definition.recipe
    assert recipe is not None
    for combination in itertools.product(*axes.values()):
        place = dict(zip(axes, combination, strict=True))
        settings = definition.settings | method.settings | place
        values = {path: settings[path] for path in all_axes if path in settings}
        yield _Combination(own=name | place, recipe=recipe, values=name | values, settings=settings)


def _duplicates(file: str, names: Sequence[str], cells: Sequence[_Combination]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, cell in zip(names, cells, strict=True):
        same = first.setdefault(json.dumps([str(cell.recipe), sorted(cell.settings.items())], default=str), name)
        if same != name:
            yield f"{name} ({file}): has the same settings as {same}; what is to tell them apart?"
