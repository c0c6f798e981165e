"""The command line of training: everything that can be wrong with it is found here, before anything starts."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.files import resolve, unseen
from evals.config import EvalConfig, TaskConfig
from training.closed_pipe import give_up_output
from training.config import Config
from training.ds_json import read_ds_config
from training.files import read_json
from training.origin import Origin, Resume, find_origin
from training.recipe import ConfigError, load_config
from training.record.run_record import directory_problems
from training.world import SlurmJob, World, WorldError, detect_world, slurm_job

NO_DS_CONFIG = "--ds_config is missing: the DeepSpeed JSON, such as ds_configs/zero3.json"

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_CONFIGURATION = 2
EXIT_PREEMPTED = 85


@dataclass(frozen=True, kw_only=True)
class Command:
    """A checked command line."""

    config: Config
    ds_config: dict[str, Any]
    world: World
    origin: Origin
    """Where the run begins, as rank 0 sees it."""
    job: SlurmJob | None
    """The Slurm job this start belongs to."""
    goes_on: bool
    """Whether its launcher, or another start in its job, has started this command line before."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A command line that this rank can't follow, of a run with other ranks that perhaps can."""

    problem: ConfigError
    world: World


def parse_command_line(arguments: Sequence[str], environment: MutableMapping[str, str]) -> Command | Refusal | int:
    """Return the command, or the exit code when there is nothing to run (help, a problem, a finished run).

    All problems of recipe, overrides, DeepSpeed JSON, world and run directory are printed together, by rank 0 only;
    those of another rank are returned, as it may be the only one that has them.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", type=Path, nargs="?")
    parser.add_argument("--ds_config", "--ds-config", type=Path, nargs="?")
    parser.add_argument("--resume", nargs="?", default="auto", const="")
    # deepspeed's launcher appends this one; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int)
    parser.add_argument("-h", "--help", action="store_true")
    known, overrides = parser.parse_known_args(list(arguments))
    if known.help:
        return print_help(known.recipe)
    problems: list[str] = []
    ds_config: dict[str, Any] = {}
    if known.recipe is None:
        problems.append("--recipe is missing: the TOML file of the run, such as recipes/demo.toml")
        problems += [] if known.ds_config else [NO_DS_CONFIG]
    if known.ds_config is not None:
        ds_config, ds_problems = read_ds_config(known.ds_config)
        problems += ds_problems
    world, resume = None, read_resume(known.resume, problems)
    try:
        world = detect_world(environment)
    except WorldError as error:
        problems.append(str(error))
    origin: Origin | None = None

    def run_problems(config: Config) -> list[str]:
        nonlocal origin
        of_directory = directory_problems(config)
        found = [*of_directory, *ds_config_problems(config, known.ds_config), *node_problems(config, world)]
        try:
            origin = find_origin(config, resume, is_restart=is_restart(environment))
        except ConfigError as error:
            found += error.problems
        except OSError as error:
            # Of run.dir: where that itself can't be looked at, it is said already.
            found += [] if of_directory else [f'run.dir = "{config.run.dir}": {unseen(error)}']
        return found

    try:
        if known.recipe is None:
            raise ConfigError(problems)
        config = load_config(
            known.recipe,
            overrides,
            world_size=world.size if world else None,
            more_problems=problems,
            also_check=run_problems,
        )
    except ConfigError as error:
        if world is not None and world.rank != 0:
            return Refusal(problem=error, world=world)
        print(f"\n{error}\n", file=sys.stderr, flush=True)
        return EXIT_WRONG_CONFIGURATION
    assert world is not None
    assert origin is not None
    record = read_json(config.run.dir / "run.json") or {}
    if was_stopped_in_this_job(record, environment):
        if world.rank == 0:
            print(
                f"{config.run.dir} was stopped by {record['stopped_by']}, and torchrun's restart does not change that; "
                "start it again to continue",
                flush=True,
            )
        return EXIT_PREEMPTED
    is_done = record.get("status") == "done"
    # A done run goes back where it is told to, once.
    if is_done and origin.root is not None:
        if world.rank == 0:
            print(f"{config.run.dir} is done already; remove it, or choose another run.dir, to train again", flush=True)
        return EXIT_DONE
    job = slurm_job(environment)
    goes_on = is_restart(environment) or (job is not None and job.job == job_of_last_start(record))
    return Command(config=config, ds_config=ds_config, world=world, origin=origin, job=job, goes_on=goes_on)


def read_resume(text: str, problems: list[str]) -> Resume:
    """What --resume says; what is wrong with it is added to the problems."""
    if text in ("auto", "never"):
        return cast(Resume, text)
    try:
        if text:
            return Path(resolve(text, Path.cwd()))
        problems.append("--resume: needs a value: auto, never, or the path of a checkpoint")
    except ValueError as error:
        problems.append(f"--resume {text}: {error}")
    return "auto"


def is_restart(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this command line before, and does so again."""
    return any(environment.get(name, "0") != "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def job_of_last_start(record: Mapping[str, Any]) -> str | None:
    """Id of the Slurm job that a run was last started in."""
    starts = record.get("starts") or [{}]
    return (starts[-1].get("job") or {}).get("job")


def was_stopped_in_this_job(record: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether torchrun starts anew what a start of its own has ended on request, as it takes code 85 for a failure.

    SIGTERM is its own way to end ranks that it starts anew, with another number of nodes for instance; sent by others to all
    processes of a job, it ends torchrun too.
    """
    if environment.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or record.get("status") != "preempted":
        return False
    if record.get("stopped_by") in (None, "SIGTERM") or not record.get("finished"):
        return False
    import psutil

    # An earlier job may have been stopped, and a start of this one have failed before it had written anything.
    return datetime.fromisoformat(record["finished"]).timestamp() >= psutil.Process(os.getppid()).create_time()


def ds_config_problems(config: Config, path: Path | None) -> list[str]:
    """Only a model that is replicated is trained without DeepSpeed."""
    if path is not None or config.train.placement == "replicated":
        return []
    return [NO_DS_CONFIG]


def node_problems(config: Config, world: World | None) -> list[str]:
    """What a placement asks of the nodes."""
    if world is None or config.train.placement != "zero3_hpz" or world.size % world.local_size == 0:
        return []
    return [
        f'train.placement = "zero3_hpz": every node must have the same number of ranks, and {world.size} ranks are not a '
        f"multiple of the {world.local_size} of this node; start as many on every node, or use zero3"
    ]


def print_help(recipe: Path | None) -> int:
    """Every setting with its docstring and default (the recipe's value when one is given); the exit code."""
    import tyro

    # Named tables need an entry to show, and what has no default is shown as required.
    source = SourceConfig()
    task = TaskConfig(kind=tyro.MISSING, path=tyro.MISSING, domain=tyro.MISSING)
    defaults = Config(
        data=DataConfig(sources={"NAME": source}, tokenizer=tyro.MISSING), eval=EvalConfig(tasks={"NAME": task})
    )
    if recipe is not None:
        try:
            defaults = load_config(recipe)
        except ConfigError as error:
            print(f"{error}\n", file=sys.stderr)
    usage = (
        "deepspeed training/main.py --ds_config JSON --recipe TOML [--resume auto|never|PATH] [--section.setting value ...]\n\n"
        "--resume auto (the default) continues from the newest good checkpoint of run.dir, never begins a new run and refuses "
        "a run.dir with checkpoints, PATH continues from that checkpoint; later ones are set aside.\n\n"
        "Items of a list are separated by commas: a,b. A table is written as in TOML: '{\"*.mlp.*\" = 64}'. "
        "The value none unsets what may be None."
    )
    try:
        with contextlib.suppress(SystemExit):
            tyro.cli(
                Config, args=["--help"], default=defaults, prog="training/main.py", description=usage, use_underscores=True,
                # Truth values are written out, as read_overrides reads them.
                config=(tyro.conf.FlagConversionOff,),
            )  # fmt: skip
        sys.stdout.flush()
    except BrokenPipeError:
        return give_up_output()
    return EXIT_DONE
