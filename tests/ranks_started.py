"""Whole runs as plain processes, one per rank, on one console, as a launcher would start them: to be killed, stopped and asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.ranks import ROOT, base_environment, free_port

PROGRAM = """
import sys
from training.main import leave, main
{patch}
leave(main(sys.argv[1:]))
"""

IN_STEP = """
from training.engine import Engine
own, taken = Engine.step, []
def step(*arguments, **more):
    taken.append(None)
    if len(taken) == {step}:
        {code}
    return own(*arguments, **more)
Engine.step = step
"""
"""A patch: `code` runs at the beginning of a step, counted from 1."""

BLOCKED = """
import os, pathlib
import {module} as module
def block(*arguments, **more):
    pathlib.Path({marker!r}).touch()
    os.read(os.pipe()[0], 1)
module.{name} = block
"""
"""A patch: `name` of `module` makes a file and never comes back from a system call."""


class Job:
    """The ranks of one run, with the model replicated, as that starts fastest; what is left of them is killed at the end."""

    def __init__(
        self,
        out: Path,
        recipe: Path,
        *settings: str,
        size: int = 2,
        ranks: range | None = None,
        patches: Mapping[int, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start them.

        Args:
            out: the run directory.
            recipe: of the run.
            settings: more of the command line.
            size: world size.
            ranks: those that are started; all, unless said.
            patches: code that some ranks run first.
            environment: more variables.
        """
        self.out, self.port = out, free_port()
        self._console = out.with_name(f"{out.name}-{self.port}.console")
        arguments = ["--recipe", str(recipe), "--run.dir", str(out), "--train.placement", "replicated",
                     "--eval.at_start", "false", "--data.workers", "0", *settings]  # fmt: skip
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in ranks or range(size):
            env = base_environment() | {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), **(environment or {}),
            }  # fmt: skip
            program = PROGRAM.format(patch=(patches or {}).get(rank, ""))
            with self._console.open("ab") as console:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, "-c", program, *arguments], env=env, cwd=ROOT, stdout=console, stderr=console
                )

    def signal(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def wait_for(self, condition: Callable[[], Any], seconds: float = 180) -> None:
        """Wait until the condition holds, while all ranks are alive."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert all(process.poll() is None for process in self.processes.values()), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: len(self.metrics()) >= step)

    def codes(self, seconds: float = 60) -> list[int]:
        """The exit codes, by rank."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(deadline - time.monotonic()) for process in self.processes.values()]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {seconds} s:\n{self.said()}") from None

    def said(self) -> str:
        """What all ranks have printed, as it came."""
        return self._console.read_text(errors="replace")

    def last_line(self) -> str:
        return self.said().strip().splitlines()[-1]

    def metrics(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def record(self) -> dict[str, Any]:
        """run.json."""
        found: dict[str, Any] = json.loads((self.out / "run.json").read_text())
        return found

    def log(self, rank: int) -> str:
        return (self.out / "logs" / f"rank{rank}.log").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
