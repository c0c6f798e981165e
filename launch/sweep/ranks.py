"""The ranks of one cell on this machine, started directly: their exit codes and signals pass through no launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.local import ROOT
from training.world import free_port

PATIENCE = 30.0
"""Seconds that the other ranks have to end, once one has failed."""


class Ranks:
    """Processes of one run; each is a session of its own, which a Ctrl-C in the terminal does not reach."""

    def __init__(self, arguments: Sequence[str], *, count: int, environment: Mapping[str, str], output: Path) -> None:
        """Start `count` ranks of training with these arguments; what they print is appended to `output`."""
        world = {
            "WORLD_SIZE": str(count),
            "LOCAL_SIZE": str(count),
            # One launcher, this one, as deepspeed says it: the ranks of a cell need not be all tasks of a Slurm job.
            "CROSS_RANK": "0",
            "CROSS_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        command = [sys.executable, "-u", str(ROOT / "training" / "main.py"), *arguments]
        self._failed_at: float | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        with output.open("ab") as log:
            try:
                for rank in range(count):
                    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    self._processes.append(
                        subprocess.Popen(
                            command,
                            env={**environment, **world, **place},
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=log,
                            start_new_session=True,
                        )
                    )
            except OSError:
                self.kill()
                raise

    def poll(self) -> int | None:
        """The exit code of the run, when all ranks have ended: of the first rank that has another than 0."""
        codes = [process.poll() for process in self._processes]
        if None not in codes:
            failed = [code for code in codes if code]
            return 0 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]
        if any(codes):
            # Ranks end together (training.ranks.lifeline), unless one is lost before they have found one another.
            self._failed_at = self._failed_at or time.monotonic()
            if time.monotonic() - self._failed_at > PATIENCE:
                self.kill()
        return None

    def stop(self) -> None:
        """Let them save, and end with 85."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End them now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
