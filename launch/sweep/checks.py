"""Every cell's configuration, checked before any starts: each problem once, with the cells that have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launch.sweep.cells import Cell, Sweep
from training.config import Config
from training.ds_json import read_ds_config
from training.files import read_json
from training.recipe import ConfigError, load_config
from training.record.run_record import different_settings, directory_problems, listing

SHOWN = 4
"""Cells that a problem names."""


def check(
    sweep: Sweep, *, world_size: int | None = None, needs_files: bool = True, more_problems: Sequence[str] = ()
) -> None:
    """Load the configuration of every cell.

    Args:
        sweep: what is checked.
        world_size: ranks of a cell; None leaves out the checks that need it.
        needs_files: whether what the recipe names must be there.
        more_problems: reported with the others, before them.

    Raises:
        ConfigError: with all problems.
    """
    problems = [*more_problems, *(read_ds_config(sweep.ds_config)[1] if sweep.ds_config is not None else [])]
    found: dict[str, list[str]] = {}
    for cell in sweep.cells:
        for problem in _problems_of(sweep, cell, world_size, needs_files):
            found.setdefault(problem, []).append(cell.name)
    problems += [f"{problem}{_concerned(names, len(sweep.cells))}" for problem, names in found.items()]
    if problems:
        raise ConfigError(problems)


def _problems_of(sweep: Sweep, cell: Cell, world_size: int | None, needs_files: bool) -> list[str]:
    try:
        load_config(
            cell.recipe, cell.arguments, world_size=world_size, needs_files=needs_files,
            also_check=lambda config: list(_beside(sweep, cell, config)),
        )  # fmt: skip
    except ConfigError as error:
        return [problem.replace("(command line)", f"({sweep.file.name})") for problem in error.problems]
    return []


def _beside(sweep: Sweep, cell: Cell, config: Config) -> Iterator[str]:
    """What only a sweep can say of a configuration."""
    if sweep.ds_config is None and config.train.placement != "replicated":
        yield (f"ds_config ({sweep.file.name}): is missing, and needed with train.placement = "
               f'"{config.train.placement}": the DeepSpeed JSON, such as ds_configs/zero3.json')  # fmt: skip
    if lines := different_settings(cell.run_dir, config):
        state = "is done" if (read_json(cell.run_dir / "run.json") or {}).get("status") == "done" else "was begun"
        yield (f"{cell.name} ({sweep.file.name}): {state} in {cell.run_dir} with other settings; set them back, remove that "
               f"folder, or choose another root:{listing(lines)}")  # fmt: skip
    else:
        yield from directory_problems(config)


def _concerned(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return ""
    if len(names) == 1:
        return f" [{names[0]}]"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" [{len(names)} cells: {', '.join(names[:SHOWN])}{more}]"
