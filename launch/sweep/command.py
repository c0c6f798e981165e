"""`python -m launch sweep SWEEP.toml`: list the cells, print one, train them here, or submit them as an array."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import slurm
from launch.jobs import events
from launch.slurm import Queued, SlurmError
from launch.submit.checks import place_warnings, slurm_problems
from launch.submit.options import add_job_arguments, environment_of, job_problems, resources_of, tasks_per_node
from launch.submit.script import Environment, Resources
from launch.sweep.array_job import array_script, next_files, submit
from launch.sweep.board import Board
from launch.sweep.cells import Cell, Sweep, expand
from launch.sweep.checks import check
from launch.sweep.definition import read_definition
from launch.sweep.local_queue import DONE, STOPPED, LocalQueue, only_queue, share_of_this_machine
from launch.sweep.record import LOGS, command, read_frozen, write_record
from launch.sweep.states import states_of, table
from training.recipe import ConfigError

FAILED, WRONG_CONFIGURATION, INTERRUPTED = 1, 2, 130
MOUNTS = Path("/proc/self/mounts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("sweep", type=Path, help="TOML file of the sweep")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print every cell's number, name, state and step")
    what.add_argument("--cell", type=int, metavar="N", help="print the recipe, DeepSpeed JSON and arguments of a cell")
    what.add_argument("--local", action="store_true", help="train the cells that are not done on this machine")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells, the script and a command; start nothing"
    )
    parser.add_argument("--no-files", action="store_true", help="don't check files that only compute nodes have")
    parser.add_argument(
        "--at-once", type=int, metavar="K", help="cells that run at once (default: here 1, of an array all)"
    )
    parser.add_argument("--retries", type=int, default=1, help="new tries of a cell after failures (default 1)")
    parser.add_argument("--ranks", type=int, default=2, help="with --local: processes of a cell (default 2)")
    add_job_arguments(parser)
    # With it an array is submitted.
    parser.set_defaults(nodes=None)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Do it; returns the exit code: 0 done, 1 cells failed, 2 something is wrong, 85 cells were stopped, 130 after Ctrl-C."""
    try:
        if overrides:
            raise ConfigError([f"{' '.join(overrides)}: settings of a sweep go in its file, in [settings]"])
        if options.cell is not None:
            print("\n".join(_cell(options.sweep, options.cell)))
            return 0
        sweep = expand(read_definition(options.sweep))
        if options.list:
            print(table(sweep, states_of(sweep, _queue(sweep))))
            return 0
        return _start(options, sweep)
    except (ConfigError, SlurmError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return WRONG_CONFIGURATION
    except BrokenPipeError:
        raise  # Of what is printed, which nobody reads any more.
    except OSError as error:
        print(f"\n{error.filename}: {error.strerror}\n", file=sys.stderr)
        return FAILED


def _cell(file: Path, index: int) -> list[str]:
    """What a job needs to know of its cell; an array has it in a file of its own."""
    if file.suffix == ".json":
        return read_frozen(file, index)
    sweep = expand(read_definition(file))
    if not 0 <= index < len(sweep.cells):
        raise ConfigError([f"--cell {index}: {file.name} has the cells 0 to {len(sweep.cells) - 1}"])
    return command(sweep, sweep.cells[index])


def _start(options: argparse.Namespace, sweep: Sweep) -> int:
    """Check everything, then train here or submit."""
    is_array = options.nodes is not None
    problems = [f"{name} {value}: must be at least {least}" for name, value, least in
                (("--at-once", options.at_once, 1), ("--retries", options.retries, 0)) if value is not None and value < least]  # fmt: skip
    if options.local and is_array:
        problems.append("--local and --nodes: cells run here or in jobs; give one of the two")
    elif not options.local and not is_array and not options.dry_run:
        problems.append(
            "what to do with the cells? --list shows them, --local trains them here, --nodes N submits them"
        )
    share = share_of_this_machine(options.ranks, options.at_once or 1)
    if options.local and not problems:
        problems += share.problems
    world_size, resources = options.ranks if options.local else None, None
    if is_array:
        problems += (wrong := job_problems(options))
        if not wrong:
            resources = resources_of(options, name=sweep.name, output="")
            problems += [] if options.dry_run else slurm_problems(resources)
            world_size = options.nodes * tasks_per_node(options)
    check(sweep, world_size=world_size, needs_files=not options.no_files, more_problems=problems)
    if resources is not None:
        environment = environment_of(options, *dict.fromkeys(cell.recipe for cell in sweep.cells))
        environment = dataclasses.replace(environment, exports={**environment.exports, "RETRIES": str(options.retries)})
        for warning in place_warnings(sweep.root, MOUNTS.read_text()) if MOUNTS.exists() else []:
            print(f"warning: {warning.replace('run.dir', 'root', 1)}", file=sys.stderr)
        if not options.dry_run:
            return _submit(sweep, resources, environment, options.at_once)
    elif not options.dry_run:
        return _train_here(options, sweep)
    states = states_of(sweep, _queue(sweep))
    print(table(sweep, states), end="\n\n")
    cells = [cell for cell, state in zip(sweep.cells, states, strict=True) if not state.is_taken]
    if resources is not None and cells:
        print(array_script(sweep, cells, resources, environment, next_files(sweep)[1], options.at_once))
    example = cells[0] if cells else sweep.cells[0]
    print(f"Cell {example.index} is trained by\n{_shell(sweep, example)}")
    return 0


def _queue(sweep: Sweep, *, is_to_start: bool = False) -> Mapping[str, Queued] | None:
    """This user's jobs; None where squeue isn't here, or can't be asked, which is said if cells have had jobs.

    Raises:
        SlurmError: squeue fails, and what is `is_to_start` might be started a second time.
    """
    try:
        return slurm.queue()
    except SlurmError as error:
        if not any(events(cell.run_dir) for cell in sweep.cells):
            return None
        if is_to_start:
            message = (
                f"{error}\nWhether cells are in the queue already is not known: nothing was started; try again later"
            )
            raise SlurmError(message) from error
        print(f"{error}; what is queued is not known", file=sys.stderr)
        return None


def _shell(sweep: Sweep, cell: Cell) -> str:
    """A command that trains a cell, whatever launcher is put before it."""
    ds_config = [] if sweep.ds_config is None else ["--ds_config", str(sweep.ds_config)]
    return shlex.join(["python", "-m", "training.main", *ds_config, "--recipe", str(cell.recipe), *cell.arguments])


def _submit(sweep: Sweep, resources: Resources, environment: Environment, at_once: int | None) -> int:
    write_record(sweep)
    # The states are looked at once nobody else can change their minds about the cells.
    with only_queue(sweep.root):
        states = states_of(sweep, _queue(sweep, is_to_start=True))
        cells = [cell for cell, state in zip(sweep.cells, states, strict=True) if not state.is_taken]
        for cell, state in zip(sweep.cells, states, strict=True):
            if state.has_diverged:
                print(_diverged(cell))
        if not cells:
            print(f"{table(sweep, states)}\nThere is nothing to submit.")
            return 0
        job, path = submit(sweep, cells, resources, environment, at_once)
    print(f"job {job}: {len(cells)} of {len(sweep.cells)} cells of {sweep.name}, submitted with {path}\n"
          f"  output  {sweep.root / LOGS}/{job}_<cell>.out\n"
          f"  state   python -m launch sweep {shlex.quote(str(sweep.file))} --list\n"
          f"  stop    scancel {job}; or one cell: scancel {job}_{cells[0].index}")  # fmt: skip
    return 0


def _train_here(options: argparse.Namespace, sweep: Sweep) -> int:
    write_record(sweep)
    with only_queue(sweep.root), Board() as board:
        states = states_of(sweep, _queue(sweep, is_to_start=True))
        # What run.json calls running may be a run that was killed; a run that isn't refuses another start itself.
        cells = [
            cell
            for cell, state in zip(sweep.cells, states, strict=True)
            if not (state.state == "done" or state.job or state.has_diverged)
        ]
        board.say(f"{sweep.name}: {len(cells)} of {len(sweep.cells)} cells to train, in {sweep.root}")
        for cell, state in zip(sweep.cells, states, strict=True):
            if state.job:
                board.say(f"{cell.name}: left to {state.why}")
            elif state.has_diverged:
                board.say(_diverged(cell))
        queue = LocalQueue(
            sweep,
            cells,
            share=share_of_this_machine(options.ranks, options.at_once or 1),
            retries=options.retries,
            board=board,
        )
        codes = queue.run()
    print(f"\n{table(sweep, states_of(sweep, _queue(sweep)))}")
    if queue.is_stopping:
        print("Stopped; what was done is kept. Run the same command again to continue.")
        return INTERRUPTED
    if any(code not in (DONE, STOPPED) for code in codes.values()) or any(state.has_diverged for state in states):
        return FAILED
    return STOPPED if STOPPED in codes.values() else DONE


def _diverged(cell: Cell) -> str:
    return f"{cell.name}: failed, as it diverged, and is left so; to train it anew remove {cell.run_dir}"
