"""Jobs of the real Slurm: submitted, watched, and what their runs have written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.jobs import Event, events
from tests.ranks import ROOT, base_environment
from tests.slurm.cluster import Cluster

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")
ON_CPUS = ("--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1")
"""What a test changes of the scripts' headers, which ask for nodes of eight GPUs."""

PYTHON = """#!/bin/bash
# {why}
{code}
exec {python} "$@"
"""


def python(folder: Path, code: str, why: str = "the interpreter, for a test") -> Path:
    """A program to be used as PYTHON by a job, which does something before it becomes the interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python"
    path.write_text(PYTHON.format(why=why, code=code, python=sys.executable))
    path.chmod(0o755)
    return path


class Gate:
    """Training that makes as many steps as the test allows (tests/integration/gated_run.py)."""

    def __init__(self, folder: Path, allowed: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.allow(allowed)
        code = f"""if [ "$2 $3" = "-m training.main" ]; then
    set -- -u -m tests.integration.gated_run {folder} "${{@:4}}"
fi"""
        self.python = python(folder, code)

    def allow(self, steps: int) -> None:
        """Up to this step; None of the ranks sees half a number."""
        temporary = self.folder / ".allowed"
        temporary.write_text(str(steps))
        temporary.replace(self.folder / "allowed")

    @property
    def made(self) -> int:
        """Steps made."""
        try:
            return int((self.folder / "made").read_text() or 0)
        except FileNotFoundError:
            return 0


class Submitted:
    """A job."""

    def __init__(self, cluster: Cluster, number: str, folder: Path) -> None:
        self.cluster, self.number, self.folder = cluster, number, folder

    def field(self, name: str) -> str:
        """What scontrol shows."""
        text = self.cluster.run("scontrol", "show", "job", "-o", self.number) or ""
        match = re.search(rf"\b{name}=(\S*)", text)
        return match[1] if match else ""

    @property
    def output(self) -> str:
        """All that the job has printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"*{self.number}*.out")))

    def wait(self, until: Callable[[], object], what: str, seconds: float = 180) -> None:
        """Wait for something, and fail with all there is to know."""
        deadline = time.monotonic() + seconds
        while not until():
            state = self.field("JobState")
            if time.monotonic() > deadline:
                raise AssertionError(f"job {self.number} ({state}): no {what} after {seconds:.0f} s\n{self.output}\n{self.cluster.logs()}")  # fmt: skip
            time.sleep(0.1)

    def end(self, seconds: float = 240) -> str:
        """The state in which it ended."""
        self.wait(lambda: self.field("JobState") in ENDED, "end", seconds)
        return self.field("JobState")


def submit(cluster: Cluster, folder: Path, script: str | Path, *arguments: str, options: tuple[str, ...] = (), **environment: str) -> Submitted:  # fmt: skip
    """sbatch from `folder`, where its output goes; `environment` are the script's settings."""
    env = {
        **base_environment(),
        **cluster.environment,
        "ROOT": str(ROOT),
        "PYTHON": sys.executable,
        "PREFLIGHT": "no",
        **environment,
    }
    path = ROOT / "slurm" / script
    done = subprocess.run(
        ["sbatch", "--parsable", *options, str(path), *arguments], cwd=folder, env=env, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Submitted(cluster, done.stdout.strip(), folder)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def story(run: Path) -> list[tuple[str, int | None]]:
    """A run's jobs in short: what happened, with exit codes."""
    return [(event.event, event.code) for event in told(run)]


def told(run: Path) -> list[Event]:
    """A run's jobs."""
    return events(run)


def record(run: Path) -> dict[str, Any]:
    """run.json."""
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


os.environ.setdefault("OMP_NUM_THREADS", "1")
