"""Slurm's commands: what partitions there are, what is queued, and submitting. Standard library only.

Nothing newer than Slurm 20.11 is asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

TIMEOUT_SECONDS = 60
"""For an answer; a controller that is busy takes a while."""
TIME_GRAMMAR = "write minutes, hours:minutes:seconds or days-hours, such as 90, 24:00:00 or 2-12"
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
_OF_CLIENTS = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""How Slurm's commands find and reach the controller."""
_NO_LIMIT = ("infinite", "unlimited", "n/a")


class SlurmError(ValueError):
    """Slurm isn't here, doesn't answer or refuses; the message is for users."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A set of nodes that jobs can be submitted to."""

    name: str
    is_default: bool
    nodes: int
    """All of them, also those that are down or busy."""
    gpus_per_node: int
    """Of the node that has most; 0: none has any."""
    cpus_per_node: int
    """Of the node that has most."""
    time_limit_seconds: float | None
    """Of a job; None: no limit."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job that waits or runs."""

    job: str
    """Slurm's id; of an array's task ARRAY_TASK, as in 12_3."""
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it waits, in Slurm's word; empty where there is none."""
    ends: datetime | None
    """When its time is up, in the cluster's local time; None: it has not begun, or no limit."""
    nodes: str
    """As Slurm writes them, gpu[07-09]; empty while it waits."""


def require() -> None:
    """Nothing, where jobs can be submitted.

    Raises:
        SlurmError: there is no sbatch on PATH.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "Slurm's sbatch is not on PATH: log in to a machine of the cluster that has it, or start the run without Slurm, "
            "with deepspeed, torchrun or mpirun (see docs/cluster.md)"
        )


def partitions() -> list[Partition]:
    """All partitions, also hidden ones, in sinfo's order.

    Raises:
        SlurmError: sinfo can't be asked.
    """
    # --exact: nodes that differ have a line each, where sinfo would else write "4+" for their CPUs.
    return read_partitions(_ask("sinfo", "--noheader", "--all", "--exact", "--format=%P|%D|%c|%l|%G"))


def read_partitions(text: str) -> list[Partition]:
    """What sinfo has printed; lines that are none are left out."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 4)]
        if len(fields) != 5 or not fields[0].strip("*"):
            continue
        name, nodes, cpus, limit, resources = fields
        before = found.get(name.rstrip("*"))
        found[name.rstrip("*")] = Partition(
            name=name.rstrip("*"), is_default=name.endswith("*"),
            nodes=_number(nodes) + (before.nodes if before else 0),
            gpus_per_node=max(count_gpus(resources), before.gpus_per_node if before else 0),
            cpus_per_node=max(_number(cpus), before.cpus_per_node if before else 0),
            time_limit_seconds=_limit(limit),
        )  # fmt: skip
    return list(found.values())


def count_gpus(resources: str) -> int:
    """GPUs in a node's generic resources: "gpu:h100:8(S:0-1),mps:400" has 8, "(null)" none."""
    # What stands in parentheses, of which sockets or indices they are, has commas and numbers of its own.
    names = re.sub(r"\([^)]*\)", "", resources).split(",")
    fields = [name.strip().split(":") for name in names]
    return sum(
        int(last) if (last := parts[-1]).isascii() and last.isdigit() else 1 for parts in fields if parts[0] == "gpu"
    )


def parse_time(text: str) -> float | None:
    """Seconds of a time as --time takes and sinfo prints it; None: no limit.

    Raises:
        ValueError: it is none; the message says how times are written.
    """
    if text.strip().lower() in _NO_LIMIT:
        return None
    match = _TIME.fullmatch(text.strip())
    if match is None or not text.isascii():
        raise ValueError(f"is no time of Slurm's; {TIME_GRAMMAR}")
    numbers = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:  # days-hours, days-hours:minutes, days-hours:minutes:seconds
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return 86400 * int(match["days"]) + 3600 * hours + 60 * minutes + seconds
    hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    return 3600 * hours + 60 * minutes + seconds


def write_time(seconds: float) -> str:
    """A time as Slurm writes it: 1:00:00, 7-00:00:00."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-{hours:02}" if days else f"{hours}") + f":{minutes:02}:{seconds:02}"


def submit(text: str, *, cwd: Path) -> str:
    """Submit a batch script and return the job's id; from inside a job, too, of which the new one takes nothing over.

    Args:
        text: the script.
        cwd: the folder that relative paths in it are relative to.

    Raises:
        SlurmError: with sbatch's own words.
    """
    require()
    # An array's number, a count of restarts or of tasks that the new job doesn't have itself would be those of this job.
    of_this_job = {name for name in os.environ if name.startswith("SLURM_") and name not in _OF_CLIENTS}
    answer = _ask("sbatch", "--parsable", text=text, cwd=cwd, without=overruled(text) | of_this_job).strip()
    # Where there are several clusters: id;cluster. Sites have scripts around sbatch that say more, before it.
    job = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not job.isdigit():
        raise SlurmError(f"sbatch has not said the job's number, but {answer!r}; see squeue whether it is there")
    return job


def release(job: str) -> None:
    """Let a job that was submitted with --hold begin, all tasks of an array.

    Raises:
        SlurmError: with scontrol's own words.
    """
    _ask("scontrol", "release", job)


def overruled(text: str) -> set[str]:
    """Variables of sbatch that would take the place of what a script itself asks for, as its options do not."""
    names = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    others = {
        "time": "TIMELIMIT",
        "array": "ARRAY_INX",
        "mem": "MEM_PER_NODE",
        "no-requeue": "REQUEUE",
        "requeue": "NO_REQUEUE",
    }
    return {"SBATCH_" + others.get(name, name.upper().replace("-", "_")) for name in names}


def queue() -> dict[str, Queued] | None:
    """This user's jobs by id, every task of an array by itself; None where there is no squeue.

    Raises:
        SlurmError: it fails, as that of a busy cluster does now and then: whether there are jobs is not known.
    """
    if shutil.which("squeue") is None:
        return None
    return read_queue(_ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%e|%N|%r"))


def read_queue(text: str) -> dict[str, Queued]:
    """What squeue has printed; lines that are none are left out."""
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 4)]
        if len(fields) != 5 or not fields[0]:
            continue
        job, state, ends, nodes, reason = fields
        try:
            at = datetime.fromisoformat(ends)
        except ValueError:
            at = None
        found[job] = Queued(job=job, state=state, reason="" if reason == "None" else reason, ends=at, nodes=nodes)
    return found


def _ask(
    command: str, *arguments: str, text: str | None = None, cwd: Path | None = None, without: Collection[str] = ()
) -> str:
    """What a command prints that is given `text`, in an environment without some variables.

    Raises:
        SlurmError: it isn't there, fails or doesn't answer.
    """
    # Users' own formats and filters would change what is read here.
    own = ("SQUEUE_", "SINFO_", "SLURM_TIME_FORMAT")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(own) and name not in without
    }
    try:
        done = subprocess.run(
            [command, *arguments], input=text, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL if text is None else None, timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SlurmError(f"{command} is not on PATH") from error
    except OSError as error:
        raise SlurmError(f"{command} can't be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command} has not answered within {TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        raise SlurmError(f"{command} failed: {_words(done.stderr, command) or f'exit code {done.returncode}'}")
    return done.stdout


def _words(stderr: str, command: str) -> str:
    """What a command of Slurm has said, on one line, without its name before every line."""
    lines = (re.sub(rf"^{re.escape(command)}: (error: )?", "", line).strip() for line in stderr.splitlines())
    return "; ".join(dict.fromkeys(filter(None, lines)))


def _number(text: str) -> int:
    """The number that a field begins with, such as "4+"; 0 where it is none."""
    match = re.match(r"[0-9]+", text)
    return int(match[0]) if match else 0


def _limit(text: str) -> float | None:
    try:
        return parse_time(text)
    except ValueError:
        return None
