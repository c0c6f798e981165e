"""`python -m launch submit RECIPE`: check everything, write the batch script into the run directory, submit it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from launch.jobs import FOLDER, Event, note
from launch.slurm import SlurmError, submit
from launch.submit.options import add_job_arguments
from launch.submit.scoring import add_scoring_arguments
from launch.submit.script import Resources
from launch.submit.settings import absolute
from launch.submit.submission import Job, Submission, prepare
from training.recipe import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("recipe", type=Path, help="TOML file of the run")
    parser.add_argument(
        "--ds_config", "--ds-config", type=Path, help="DeepSpeed JSON; not needed with train.placement replicated"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the script; write and submit nothing; needs no Slurm"
    )
    parser.add_argument("--name", default="", help="of the job (default: that of the run directory)")
    parser.add_argument("--gpu", metavar="NAME", help="such as H100: also check that the run fits, as plan does")
    parser.add_argument(
        "--no-files", action="store_true", help="paths exist on compute nodes only: don't look for them here"
    )
    add_scoring_arguments(parser)
    add_job_arguments(parser)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Submit, or show what would be, and return the exit code: 2 when something is wrong, 1 when Slurm refuses, else 0."""
    try:
        submission = prepare(options, absolute(overrides), os.environ)
    except ConfigError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    for warning in submission.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if submission.stale_stop is not None:
        removed = "would be removed" if options.dry_run else "removed"
        print(f"{submission.stale_stop}, from an earlier stop, would stop this job at once: {removed}", file=sys.stderr)
    if options.dry_run:
        show(submission)
        return 0
    try:
        return send(submission)
    except BrokenPipeError:
        raise  # Of what is printed, which nobody reads any more.
    except OSError as error:
        print(f'\nrun.dir = "{submission.run_dir}": can\'t be written: {error}\n', file=sys.stderr)
        return 2


def show(submission: Submission) -> None:
    """Print the scripts, and beside them what was looked at."""
    jobs = [job for job in (submission.training, submission.scoring) if job is not None]
    print("\n".join(job.text() for job in jobs), end="")
    wanted = submission.training.resources
    print(
        f"dry run: nothing was written or submitted. Nothing is wrong with the recipe for {wanted.nodes * wanted.tasks_per_node} "
        f"processes, nor with {submission.run_dir}.\nSubmitting would also look whether the cluster has such a partition, nodes, "
        "GPUs, CPUs and time, and whether a job of this run is in the queue.",
        file=sys.stderr,
    )


def send(submission: Submission) -> int:
    """Write and submit the scripts, record the jobs, and say what to do with them; return the exit code.

    Raises:
        OSError: the run directory can't be written.
    """
    run_dir, training, scoring = submission.run_dir, submission.training, submission.scoring
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if submission.stale_stop is not None:
        submission.stale_stop.unlink(missing_ok=True)
    path = write_script(folder, training)
    try:
        job = submit(path.read_text(encoding="utf-8"), cwd=training.environment.root)
    except SlurmError as error:
        print(f"\n{error}\nNothing was submitted; the script is {path}.\n", file=sys.stderr)
        return 1
    what = described(training.resources)
    scored_by = send_scoring(scoring.after(job), folder, job) if scoring is not None else None
    is_recorded = record(run_dir, job, what)
    out, stop = folder / f"{job}.out", run_dir / "PREEMPT"
    print(f"job {job} submitted: {what}")
    print(f"  script  {path}\n  output  {out}\n  follow  tail -F {shlex.quote(str(out))}")
    print(f"  see     python -m launch status {shlex.quote(str(run_dir))}")
    print(f"  stop    touch {shlex.quote(str(stop))}    (saves first; while it waits: scancel {job})")
    if scored_by is not None:
        print(f"job {scored_by} scores the last checkpoint when job {job} is done")
    return 0 if is_recorded and (scored_by is not None or scoring is None) else 1


def record(run_dir: Path, job: str, message: str) -> bool:
    """Record a job that Slurm has taken; whether that was possible: it is in the queue all the same, which is said."""
    try:
        note(run_dir, Event(job=job, event="submitted", message=message))
    except OSError as error:
        print(
            f"\njob {job} is submitted, but can't be recorded in {run_dir}: {error}\nUntil it begins, status doesn't know of "
            f"it, and another submit would not be refused. Without it: scancel {job}\n",
            file=sys.stderr,
        )
        return False
    return True


def send_scoring(scoring: Job, folder: Path, training: str) -> str | None:
    """Submit and record the job that scores; return its id, or None where that can't be done, which is said.

    It is recorded before the training's job: of a run the last event is the one that is shown.
    """
    try:
        path = write_script(folder, scoring)
    except OSError as error:
        print(f"\n{folder}: can't be written: {error}\nThe job that scores was not submitted.\n", file=sys.stderr)
        return None
    try:
        job = submit(path.read_text(encoding="utf-8"), cwd=scoring.environment.root)
    except SlurmError as error:
        print(f"\n{error}\nThe job that scores was not submitted; its script is {path}.\n", file=sys.stderr)
        return None
    record(folder.parent, job, f"scores the last checkpoint after job {training}")
    return job


def described(wanted: Resources) -> str:
    """Resources in a few words."""
    if wanted.gres:
        each = f"gres={wanted.gres}"
    elif wanted.gpus_per_node:
        each = f"gpus-per-node={wanted.gpus_per_node}"
    else:
        each = f"tasks-per-node={wanted.tasks_per_node}"
    where = f" partition={wanted.partition}" if wanted.partition else ""
    return f"nodes={wanted.nodes} {each} time={wanted.time}{where}"


def write_script(folder: Path, job: Job) -> Path:
    """Write a job's script to <name>-<n>.sh, where n is the next number that is free, and return its path.

    Raises:
        OSError: the folder can't be written.
    """
    stem, number = re.sub(r"[^\w.-]+", "-", job.resources.name).strip("-.") or "job", 1
    while True:
        path = folder / f"{stem}-{number}.sh"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(job.text())
        except FileExistsError:
            number += 1
            continue
        return path
