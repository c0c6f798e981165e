"""What is on storage of a sweep: ROOT/sweep.json for everyone who reads the runs, and frozen copies for arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.local import ROOT
from launch.sweep.cells import Cell, Sweep
from training.files import read_json, write_json
from training.recipe import ConfigError

FILE = "sweep.json"
LOGS = "logs"
"""Folder of the output of cells, and of arrays' scripts and frozen cells."""
SCHEMA = 1
DS_CONFIG = ROOT / "ds_configs" / "zero3.json"


def as_json(sweep: Sweep) -> dict[str, Any]:
    """A sweep for those who read its runs."""
    return {
        "schema": SCHEMA,
        "name": sweep.name,
        "file": str(sweep.file),
        "axes": list(sweep.axes),
        "cells": [
            {
                "index": cell.index,
                "name": cell.name,
                "run": str(cell.run_dir.relative_to(sweep.root)),
                "values": {axis: plain(value) for axis, value in cell.values.items()},
            }
            for cell in sweep.cells
        ],
    }


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def write_record(sweep: Sweep) -> None:
    """Say in ROOT/sweep.json which runs belong together, and make the folder of logs.

    Raises:
        OSError: the root can't be written.
    """
    (sweep.root / LOGS).mkdir(parents=True, exist_ok=True)
    write_json(sweep.root / FILE, as_json(sweep))


def freeze(sweep: Sweep, path: Path) -> None:
    """Write what `--cell` prints of each cell: an array trains what was submitted, also when the sweep's file has changed.

    Raises:
        OSError: it can't be written.
    """
    cells = {str(cell.index): command(sweep, cell) for cell in sweep.cells}
    write_json(path, {"schema": SCHEMA, "sweep": sweep.name, "cells": cells})


def read_frozen(path: Path, index: int) -> list[str]:
    """The lines of a cell in a file that `freeze` wrote.

    Raises:
        ConfigError: it is no such file, or has no such cell.
    """
    cells = (read_json(path) or {}).get("cells")
    if not isinstance(cells, dict) or not all(isinstance(lines, list) for lines in cells.values()):
        raise ConfigError([f"{path}: can't be read, or holds no cells of a sweep; submit the sweep again"])
    if str(index) not in cells:
        raise ConfigError([f"--cell {index}: {path} has the cells 0 to {len(cells) - 1}"])
    return [str(line) for line in cells[str(index)]]


def command(sweep: Sweep, cell: Cell) -> list[str]:
    """A cell's recipe, DeepSpeed JSON and arguments; slurm/job.sh reads them as lines.

    A sweep without a DeepSpeed JSON replicates its models, and the JSON is not looked at.
    """
    return [str(cell.recipe), str(sweep.ds_config or DS_CONFIG), *cell.arguments]
