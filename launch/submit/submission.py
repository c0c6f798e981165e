"""From options and recipe to scripts that can be submitted, or to every problem at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.jobs import FOLDER
from launch.slurm import Queued, SlurmError, queue
from launch.submit.checks import mounts, place_warnings, queued_jobs, run_problems, slurm_problems
from launch.submit.fit import fit_problems
from launch.submit.options import environment_of, job_problems, resources_of
from launch.submit.scoring import (
    TRAINING,
    scoring_command,
    scoring_environment,
    scoring_problems,
    scoring_resources,
    time_problems,
)
from launch.submit.script import Environment, Resources, script
from launch.submit.settings import shell_line
from training.config import Config
from training.ds_json import read_ds_config
from training.duration import parse_duration
from training.origin import find_origin
from training.recipe import ConfigError, load_config
from training.record.run_record import directory_problems


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch script that can be submitted."""

    resources: Resources
    environment: Environment
    command: str

    def text(self) -> str:
        """The script."""
        return script(self.resources, self.environment, self.command)

    def after(self, job: str) -> Job:
        """The same, waiting for this job of the training."""
        dependency = self.resources.dependency.replace(TRAINING, job)
        return dataclasses.replace(self, resources=dataclasses.replace(self.resources, dependency=dependency))


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is to be submitted; nothing is wrong with it as far as this machine can tell."""

    run_dir: Path
    training: Job
    scoring: Job | None
    stale_stop: Path | None
    """A file PREEMPT that is meant for no job there is, and would stop the new one."""
    warnings: Sequence[str]


def prepare(options: argparse.Namespace, overrides: Sequence[str], environment: Mapping[str, str]) -> Submission:
    """Check everything and put the jobs together; nothing is changed, and Slurm is not asked with --dry-run.

    Args:
        options: of the command line.
        overrides: settings, paths in full.
        environment: variables of this process.

    Raises:
        ConfigError: with all problems at once.
    """
    problems = [*job_problems(options), *(time_problems(options) if options.eval else [])]
    wanted = None if problems else resources_of(options, name=options.name, output="")
    if wanted is not None and not options.dry_run:
        problems += slurm_problems(wanted, scoring_resources(wanted, options) if options.eval else None)
    if options.ds_config is not None:
        problems += read_ds_config(options.ds_config)[1]
    queued: Mapping[str, Queued] = {}
    try:
        queued = {} if options.dry_run else queue() or {}
    except SlurmError as error:
        problems.append(f"{error}; whether a job of this run is in the queue is not known: try again later")
    config = load_config(
        options.recipe, overrides, world_size=wanted.nodes * wanted.tasks_per_node if wanted else None,
        more_problems=problems, needs_files=not options.no_files,
        also_check=lambda config: _config_problems(config, options, overrides, wanted, queued, environment),
    )  # fmt: skip
    run_dir = config.run.dir
    training = _training(config, options, overrides)
    scoring = None
    if options.eval:
        scoring = Job(
            resources=scoring_resources(training.resources, options),
            environment=scoring_environment(training.environment, config, options, environment),
            command=scoring_command(run_dir, options.eval),
        )
    stop = run_dir / "PREEMPT"
    return Submission(
        run_dir=run_dir, training=training, scoring=scoring, warnings=place_warnings(run_dir, mounts()),
        stale_stop=stop if stop.exists() and not queued_jobs(run_dir, queued) else None,
    )  # fmt: skip


def _training(config: Config, options: argparse.Namespace, overrides: Sequence[str]) -> Job:
    run_dir, ds_config = config.run.dir, options.ds_config
    # What Slurm would take for a pattern of its own is doubled.
    output = f"{str(run_dir / FOLDER).replace('%', '%%')}/%j.out"
    files = [os.path.abspath(options.recipe), "" if ds_config is None else os.path.abspath(ds_config)]
    return Job(
        resources=resources_of(options, name=options.name or run_dir.name, output=output),
        environment=environment_of(options, options.recipe),
        command=shell_line(["train", *files, *overrides]),
    )


def _config_problems(
    config: Config, options: argparse.Namespace, overrides: Sequence[str], wanted: Resources | None,
    queued: Mapping[str, Queued], environment: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """What is wrong with this run as a job, beside its configuration and the job's own options."""
    found = directory_problems(config)
    if options.ds_config is None and config.train.placement != "replicated":
        found.append("--ds_config is missing: the DeepSpeed JSON, such as ds_configs/zero3.json")
    try:
        find_origin(config)
    except ConfigError as error:
        found += error.problems
    found += run_problems(config.run.dir, queued, options.after)
    found += _stop_problems(config, options.signal, overrides)
    if options.eval:
        found += scoring_problems(config, options, environment)
    if options.gpu and options.gpus == 0:
        found.append(f"--gpu {options.gpu}: the job asks for none (--gpus 0)")
    elif options.gpu and wanted is not None:
        found += fit_problems(
            config, options.recipe, gpu=options.gpu, nodes=wanted.nodes, gpus=wanted.gpus_per_node, ds_config=options.ds_config
        )  # fmt: skip
    return found


def _stop_problems(config: Config, signal_seconds: int, overrides: Sequence[str]) -> list[str]:
    """Whether the run would stop by itself before it is told to; of the recipe's own time the job says another."""
    is_given = any(re.match(r"--train\.stop[_-]before\b", word) for word in overrides)
    if not is_given or not signal_seconds or parse_duration(config.train.stop_before) < signal_seconds:
        return []
    return [
        f"train.stop_before = {config.train.stop_before}: the run would stop by itself before Slurm's signal, which comes "
        f"{signal_seconds} s before the end; make it shorter, or give a larger --signal"
    ]
