"""The unfinished cells of a sweep as one array job."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch import slurm
from launch.jobs import Event, note
from launch.submit.script import Environment, Resources, script
from launch.sweep.cells import Cell, Sweep
from launch.sweep.record import LOGS, freeze


def task_list(indices: Sequence[int], at_once: int | None = None) -> str:
    """Ascending numbers as --array takes them: 0,3,5-9%2, of which two run at once."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return ",".join(parts) + (f"%{at_once}" if at_once is not None else "")


def next_files(sweep: Sweep) -> tuple[Path, Path]:
    """Where the script and the cells of the next array of this sweep go."""
    folder = sweep.root / LOGS
    number = 1
    while (folder / f"array-{number}.sh").exists():
        number += 1
    return folder / f"array-{number}.sh", folder / f"array-{number}.json"


def array_script(
    sweep: Sweep,
    cells: Sequence[Cell],
    resources: Resources,
    environment: Environment,
    frozen: Path,
    at_once: int | None,
) -> str:
    """The batch script that trains these cells, which are read from the file `frozen`."""
    # What Slurm would take for a pattern of its own is doubled.
    output = f"{str(sweep.root / LOGS).replace('%', '%%')}/%A_%a.out"
    resources = dataclasses.replace(resources, array=task_list([cell.index for cell in cells], at_once), output=output)
    return script(resources, environment, shlex.join(["cell", str(frozen)]))


def submit(
    sweep: Sweep, cells: Sequence[Cell], resources: Resources, environment: Environment, at_once: int | None
) -> tuple[str, Path]:
    """Submit an array and record it in the cells' run directories; returns its id and its script.

    Raises:
        SlurmError: sbatch refused.
        OSError: the sweep's folder can't be written.
    """
    path, frozen = next_files(sweep)
    text = array_script(sweep, cells, resources, environment, frozen, at_once)
    freeze(sweep, frozen)
    path.write_text(text)
    # Held until all of it is recorded: afterwards the jobs write into these directories, too.
    held = dataclasses.replace(resources, extra=(*resources.extra, "--hold"))
    try:
        job = slurm.submit(array_script(sweep, cells, held, environment, frozen, at_once), cwd=sweep.root)
    except slurm.SlurmError:
        path.unlink()
        frozen.unlink()
        raise
    for cell in cells:
        note(cell.run_dir, Event(job=f"{job}_{cell.index}", event="submitted", message=f"array of {sweep.name}"))
    slurm.release(job)
    return job, path
