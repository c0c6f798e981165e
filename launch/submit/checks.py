"""What can be wrong with a job and is known before the queue: partitions, the run's state, where its directory is."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.jobs import events
from launch.slurm import Partition, Queued, SlurmError, parse_time, partitions, require, write_time
from launch.submit.script import Resources
from training.files import read_json

MEMORY = ("tmpfs", "ramfs", "devtmpfs")
"""File systems that are in a machine's memory."""
LOCAL = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders that every machine has for itself."""


def slurm_problems(wanted: Resources, scoring: Resources | None = None) -> list[str]:
    """Why Slurm can't start such a job, or the one that scores afterwards."""
    try:
        require()
        known = partitions()
    except SlurmError as error:
        return [str(error)]
    problems = partition_problems(wanted, known)
    if scoring is not None:  # It asks for no more, but for its own time.
        times = (problem for problem in partition_problems(scoring, known) if problem.startswith("--time"))
        problems += [problem.replace("--time", "--eval-time", 1) for problem in times]
    return problems


def partition_problems(wanted: Resources, known: Sequence[Partition]) -> list[str]:
    """What the partition doesn't have; of several in which the job may run, one is enough."""
    by_name = {partition.name: partition for partition in known}
    # As sbatch does it where the script doesn't say.
    names = (wanted.partition or os.environ.get("SBATCH_PARTITION", "")).split(",")
    if names == [""]:
        names = [partition.name for partition in known if partition.is_default]
        if not names:
            return [f"--partition is missing, and this cluster has no default; it has {listed(known)}"]
    if unknown := [name for name in names if name not in by_name]:
        return [
            f"--partition {name}: there is none of this name; this cluster has {listed(known, name)}"
            for name in unknown
        ]
    return min((_lacks(by_name[name], wanted) for name in names), key=len)


def listed(known: Sequence[Partition], name: str = "") -> str:
    """The partitions' names, those closest to `name` first."""
    likeness = {each.name: difflib.SequenceMatcher(None, name.lower(), each.name.lower()).ratio() for each in known}
    return ", ".join(sorted(likeness, key=lambda each: -likeness[each])) or "none"


def _lacks(partition: Partition, wanted: Resources) -> list[str]:
    problems, name = [], f"partition {partition.name}"
    if wanted.nodes > partition.nodes:
        problems.append(f"--nodes {wanted.nodes}: {name} has {partition.nodes}")
    if wanted.gpus_per_node > partition.gpus_per_node:
        has = (
            f"has {partition.gpus_per_node} at most" if partition.gpus_per_node else "has none; --gpus 0 trains on CPUs"
        )
        problems.append(f"--gpus {wanted.gpus_per_node}: a node of {name} {has}")
    cpus = wanted.tasks_per_node * wanted.cpus_per_task
    if cpus > partition.cpus_per_node:
        problems.append(
            f"--cpus-per-task {wanted.cpus_per_task}: {wanted.tasks_per_node} processes make {cpus} CPUs per node, and a node "
            f"of {name} has {partition.cpus_per_node} at most"
        )
    seconds, limit = parse_time(wanted.time), partition.time_limit_seconds
    if limit is not None and (seconds is None or seconds > limit):
        problems.append(f"--time {wanted.time}: {name} allows {write_time(limit)}")
    return problems


def run_problems(run_dir: Path, queued: Mapping[str, Queued], dependency: str) -> list[str]:
    """Why no other job may be submitted for this run.

    Args:
        run_dir: its directory.
        queued: the user's jobs.
        dependency: of the new job; one that waits for the jobs there are may be submitted.
    """
    if (read_json(run_dir / "run.json") or {}).get("status") == "done":
        return [f'run.dir = "{run_dir}": is done already; remove it, or choose another run.dir, to train again']
    awaited = set(re.findall(r"\d+(?:_\d+)?", dependency))
    jobs = [job for job in queued_jobs(run_dir, queued) if not awaited & {job, job.partition("_")[0]}]
    if not jobs:
        return []
    states = ", ".join(f"{job} ({queued[job].state})" for job in jobs)
    return [
        f'run.dir = "{run_dir}": this run has jobs in the queue already: {states}; cancel them (scancel {" ".join(jobs)}), '
        f"or have the new one follow (--after afterany:{':'.join(jobs)})"
    ]


def queued_jobs(run_dir: Path, queued: Mapping[str, Queued]) -> list[str]:
    """Those of the user's jobs that are of this run; of a job that was recorded as one and is an array, every task."""
    known = dict.fromkeys(event.job for event in events(run_dir))
    return [job for each in known for job in queued if each in (job, job.partition("_")[0])]


def place_warnings(run_dir: Path, mounted: str) -> list[str]:
    """What is suspicious about where a run directory is, as far as this machine can tell.

    Args:
        run_dir: an absolute path, which need not exist.
        mounted: as `mounts` returns it.
    """
    kind = file_system(run_dir, mounted)
    place = next((folder for folder in LOCAL if run_dir.is_relative_to(folder)), None)
    if kind not in MEMORY and place is None:
        return []
    where = (
        f"in memory of this machine ({kind})" if kind in MEMORY else f"in {place}, which every machine has for itself"
    )
    return [
        f'run.dir = "{run_dir}": is {where}; all nodes and this machine must see the same folder, so choose one on shared '
        "storage (the preflight of the job will tell)"
    ]


def mounts() -> str:
    """What is mounted on this machine, as /proc/self/mounts has it; empty where that can't be read."""
    try:
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def file_system(path: Path, mounted: str) -> str:
    """Type of the file system that a path is on; empty where that is not known."""
    found = Path("/"), ""
    for line in mounted.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        # Blanks and the like are written as octal numbers.
        folder = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        if path.is_relative_to(folder) and len(folder.parts) >= len(found[0].parts):
            found = folder, fields[2]
    return found[1]
