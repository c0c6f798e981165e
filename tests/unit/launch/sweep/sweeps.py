"""Small sweeps for tests."""

from __future__ import annotations

from pathlib import Path

from launch.sweep.cells import Sweep, expand
from launch.sweep.definition import read_definition
from tests.unit.training.minimal import write_recipe
from training.recipe import ConfigError

HEAD = """
recipe = "recipe.toml"
root = "study"
"""
SETTINGS = """
[settings]
"train.placement" = "replicated"
"""
GRID = """
[grid]
"optim.lr" = [1e-5, 2e-5]
"run.seed" = [1, 2, 3]
"""


def write_sweep(folder: Path, text: str = SETTINGS + GRID, head: str = HEAD) -> Path:
    """A sweep's file beside a recipe without problems."""
    write_recipe(folder)
    path = folder / "sweep.toml"
    path.write_text(head + text)
    return path


def sweep_of(folder: Path, text: str = SETTINGS + GRID, head: str = HEAD) -> Sweep:
    return expand(read_definition(write_sweep(folder, text, head)))


def problems_of(folder: Path, text: str = SETTINGS + GRID, head: str = HEAD) -> list[str]:
    """What is wrong with a sweep's file; [] when nothing is."""
    try:
        sweep_of(folder, text, head)
    except ConfigError as error:
        return error.problems
    return []
