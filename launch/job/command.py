"""`python -m launch job begin|end|refused|base`: called by slurm/job.sh on the first node of a job, beside no ranks."""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.job.decision import Ended, Limits, decide
from launch.job.settings import setting_problems
from launch.jobs import FOLDER, Event, Name, events, note
from training.ds_json import read_ds_config
from training.files import read_json
from training.recipe import ConfigError, load_config
from training.record.run_record import directory_problems
from training.world import SlurmJob, slurm_job, slurm_port

DONE_ALREADY = 10
"""Exit code of `begin` for a run that is done."""
REQUEUE, REQUEUE_WITHOUT = 75, 76
"""Exit codes of `end`: requeue the job, as it is or without the nodes in RUN/slurm/excluded-<job>."""
PORTS, STRIDE = 50, 7919
"""How many ports are tried, and how far apart, so that jobs with ids in a row don't take each other's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    steps = parser.add_subparsers(dest="job_step", required=True)
    begin = steps.add_parser("begin", help="check the configuration; print the run directory and a free port")
    begin.add_argument("recipe", type=Path)
    begin.add_argument("--ds_config", type=Path)
    begin.add_argument("--resume", default="auto")
    begin.add_argument("--ranks", type=int, required=True, help="processes that will train")
    end = steps.add_parser("end", help="decide whether the job is requeued, and record why")
    end.add_argument("run", type=Path)
    end.add_argument("--code", type=int, required=True, help="exit code of what has run")
    end.add_argument("--time-is-up", action="store_true")
    end.add_argument("--cancelled", action="store_true")
    end.add_argument("--preempted", action="store_true")
    end.add_argument("--preflight", action="store_true", help="it was preflight that ended")
    end.add_argument("--failing", type=Path, help="file with the nodes that preflight has named")
    base = steps.add_parser("base", help="print the model that a run began with")
    base.add_argument("run", type=Path)
    refused = steps.add_parser("refused", help="record that Slurm did not requeue the job")
    refused.add_argument("run", type=Path)
    refused.add_argument("--code", type=int, required=True)
    refused.add_argument("--reason", required=True, help="what Slurm said")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run one of the steps and return its exit code."""
    steps = {"begin": run_begin, "end": run_end, "refused": run_refused, "base": run_base}
    try:
        return steps[options.job_step](options, overrides, os.environ)
    except OSError as error:
        print(f"\n{error.filename} can't be read or written: {error.strerror}\n", file=sys.stderr)
        return 1


def run_begin(options: argparse.Namespace, overrides: list[str], environment: Mapping[str, str]) -> int:
    """Check everything that training will, so that no rank starts in vain; print run directory and port."""
    try:
        problems = setting_problems(environment)
        problems += read_ds_config(options.ds_config)[1] if options.ds_config else []
        config = load_config(
            options.recipe, overrides, world_size=options.ranks, more_problems=problems, also_check=directory_problems
        )
    except ConfigError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 2
    run_dir = config.run.dir
    record = read_json(run_dir / "run.json") or {}
    if record.get("status") == "done" and options.resume in ("auto", "never"):
        print(f"{run_dir} is done already", file=sys.stderr)
        return DONE_ALREADY
    if is_going_on(run_dir):
        print(f"{run_dir}: another start of this run is going on", file=sys.stderr)
        return 2
    note(run_dir, _event(run_dir, _job(environment), "started"))
    print(f"RUN={run_dir}")
    # Of an array's tasks each has a number of its own here.
    print(f"MASTER_PORT={free_port_of(int(environment.get('SLURM_JOB_ID') or 0))}")
    return 0


def is_going_on(run_dir: Path) -> bool:
    """Whether the ranks of another job train this run, as the lock of its first one says."""
    try:
        with (run_dir / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock yet, or storage without locks
        return False
    return False


def free_port_of(job: int) -> int:
    """A free port of this node: the job's own or, where something else listens there, one that no neighbouring job tries next."""
    for attempt in range(PORTS):
        port = slurm_port(job + attempt * STRIDE)
        with socket.socket() as probe:
            # A connection that is about to be forgotten is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    return slurm_port(job)


def run_end(options: argparse.Namespace, overrides: list[str], environment: Mapping[str, str]) -> int:
    """Decide, say and record what becomes of the job."""
    run_dir, job = options.run, _job(environment)
    record = read_json(run_dir / "run.json") or {}
    failing = (
        options.failing.read_text(errors="replace").split() if options.failing and options.failing.exists() else []
    )
    is_stopped = record.get("status") == "preempted"
    verdict = decide(
        Ended(
            code=options.code, is_time_up=options.time_is_up, is_cancelled=options.cancelled,
            is_preempted=options.preempted, failing_nodes=failing, is_preflight=options.preflight,
        ),
        limits_of(environment),
        restart=job.restart, step=_step(record),
        stopped_by=_text(record, "stopped_by") if is_stopped else None,
        error=_text(record, "error") if record.get("status") == "failed" else None,
        history=[event for event in events(run_dir) if event.job == job.job], nodes=job.nodes,
    )  # fmt: skip
    if options.failing is not None:
        options.failing.unlink(missing_ok=True)
    if verdict.message != "done":
        print(verdict.message, flush=True)
    name: Name = "requeued" if verdict.requeue else "ended"
    if verdict.exclude:
        (run_dir / FOLDER / f"excluded-{environment['SLURM_JOB_ID']}").write_text(",".join(verdict.exclude) + "\n")
    event = _event(run_dir, job, name, message=verdict.message, code=options.code)
    note(run_dir, dataclasses.replace(event, is_preflight=options.preflight))
    if not verdict.requeue:
        return 0
    return REQUEUE_WITHOUT if verdict.exclude else REQUEUE


def limits_of(environment: Mapping[str, str]) -> Limits:
    """What slurm/job.sh has exported. Where only preflight was asked for, the job ends with it."""
    is_only = environment.get("PREFLIGHT") == "only"
    return Limits(
        max_requeues=0 if is_only else int(environment.get("MAX_REQUEUES", "50")), retries=int(environment.get("RETRIES", "2")),
        excludes_failing=environment.get("EXCLUDE_FAILING", "yes") == "yes" and not is_only,
    )  # fmt: skip


def run_refused(options: argparse.Namespace, overrides: list[str], environment: Mapping[str, str]) -> int:
    """Record that the job should have come back and does not."""
    message = f"not requeued, Slurm refused: {' '.join(options.reason.split())}; submit it again to go on"
    print(message, flush=True)
    note(options.run, _event(options.run, _job(environment), "ended", message=message, code=options.code))
    return 0


def run_base(options: argparse.Namespace, overrides: list[str], environment: Mapping[str, str]) -> int:
    """Print the base of a run, to be scored as its step 0."""
    base: Any = read_json(options.run / "run.json")
    for key in ("config", "model", "base"):
        base = base.get(key) if isinstance(base, dict) else None
    if not isinstance(base, str):
        print(f"{options.run}: names no base in its run.json, so there is no step 0 to score", file=sys.stderr)
        return 2
    print(base)
    return 0


def _step(record: Mapping[str, Any]) -> int:
    """The step that run.json says; 0 where it says none, or nonsense: a damaged record keeps no job from its end."""
    step = record.get("step")
    return step if isinstance(step, int) else 0


def _text(record: Mapping[str, Any], key: str) -> str | None:
    """What run.json says there; None where that is no text."""
    value = record.get(key)
    return value if isinstance(value, str) else None


def _event(run_dir: Path, job: SlurmJob, name: Name, message: str = "", code: int | None = None) -> Event:
    step = _step(read_json(run_dir / "run.json") or {})
    return Event(
        job=job.job, event=name, message=message, code=code, restart=job.restart, nodes=tuple(job.nodes), step=step
    )


def _job(environment: Mapping[str, str]) -> SlurmJob:
    return slurm_job(environment) or SlurmJob(job="", restart=0, nodes=[])
