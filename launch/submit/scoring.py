"""The job that scores a run's last checkpoint with whole suites, once training is done."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from launch.slurm import parse_time
from launch.submit.script import Environment, Resources
from launch.submit.settings import shell_line
from training.config import Config

TRAINING = "JOB"
"""Stands for the number of the training's job where there is none yet."""
DTYPES = {"fp32": "float32"}
"""What scores are computed in, where it is not bfloat16, by train.precision."""
ONLY_TRAINING = ("MAX_REQUEUES", "PREFLIGHT", "EXCLUDE_FAILING", "STOP_BEFORE")
"""Variables that say nothing to this job."""


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--eval", action="append", default=[], metavar="SUITE",
                        help="score the last checkpoint afterwards, in a job of its own (repeatable)")  # fmt: skip
    parser.add_argument(
        "--eval-time", default="04:00:00", metavar="TIME", help="wall time of that job (default 04:00:00)"
    )


def time_problems(options: argparse.Namespace) -> list[str]:
    """What is wrong with the wall time."""
    try:
        parse_time(options.eval_time)
    except ValueError as error:
        return [f"--eval-time {options.eval_time}: {error}"]
    return []


def scoring_problems(config: Config, options: argparse.Namespace, environment: Mapping[str, str]) -> list[str]:
    """What is wrong with the suites, or with their data."""
    asked = dataclasses.replace(config.eval, suites=tuple(options.eval), final_suites=(), tasks={})
    problems = [f"--eval: {message}" for name, message in asked.problems() if name == "suites"]
    folder = _data(config, options, environment)
    how = "give the folder of the suites' data sets as eval.data_dir, or as --export EVAL_DATA=FOLDER"
    if folder is None:
        problems.append(f"--eval: compute nodes often have no internet; {how}")
    elif not options.no_files and not folder.is_dir():
        problems.append(f"--eval: there is no folder {folder}; {how}")
    return problems


def scoring_resources(training: Resources, options: argparse.Namespace) -> Resources:
    """One node as training has them, when that has ended well; no signal, as what is scored is kept anyway."""
    return dataclasses.replace(
        training, nodes=1, name=f"{training.name}-eval", time=options.eval_time, signal_seconds=0,
        dependency=f"afterok:{TRAINING}",
    )  # fmt: skip


def scoring_environment(
    training: Environment, config: Config, options: argparse.Namespace, environment: Mapping[str, str]
) -> Environment:
    """That of the training, with what `score` of slurm/job.sh reads."""
    exports = {
        "EVAL_DATA": str(_data(config, options, environment)),
        "DTYPE": DTYPES.get(config.train.precision, "bfloat16"),
        "BATCH_TOKENS": str(config.eval.batch_tokens),
    }
    # The user's own come last, and may be one of these.
    exports |= {name: value for name, value in training.exports.items() if name not in ONLY_TRAINING}
    return dataclasses.replace(training, exports=exports)


def scoring_command(run_dir: Path, suites: list[str]) -> str:
    """The line of the script."""
    return shell_line(["score", str(run_dir), "last", *(word for suite in suites for word in ("--suite", suite))])


def _data(config: Config, options: argparse.Namespace, environment: Mapping[str, str]) -> Path | None:
    """Folder of the suites' data sets: as given, as the recipe says it, or by the variables of slurm/eval_llama7b.sh."""
    given = dict(text.partition("=")[::2] for text in options.export)
    if "EVAL_DATA" in given:
        return Path(given["EVAL_DATA"])
    if config.eval.data_dir is not None:
        return config.eval.data_dir
    if "EVAL_DATA" in environment:
        return Path(environment["EVAL_DATA"])
    data = given.get("DATA") or environment.get("DATA")
    return Path(data, "evals") if data else None
