"""A process that has imported once what every rank needs, and forks a process per rank in milliseconds.

Zygote starts `python -m tests.zygote`, and its `fork` has that call a function in a new process. The zygote computes nothing
and has one thread, so what it forks is as good as a new interpreter, but for two things: all have its hash seed, and what a
module reads from the environment at its import was read in the zygote. All that it has forked ends with it, and it ends with
the process that uses it. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "deepspeed.ops", "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3", "gigatoken",
    "safetensors.torch", "sentencepiece", "torch.utils.tensorboard", "transformers.models.llama.modeling_llama",
    "training.data", "training.engine", "training.evaluation", "training.export", "training.loop", "training.main",
    "training.placements.replicated", "training.placements.zero3", "training.saving", "training.watch.monitors",
    "training.watch.profiling",
)  # fmt: skip
"""What a training process imports, with what DeepSpeed imports when it is used."""

START_SECONDS = 120.0
"""Longest wait for the imports, on a busy machine."""

PR_SET_PDEATHSIG = 1
"""Linux' request for a signal at the death of the parent."""


class ZygoteFailed(Exception):
    """The zygote did not start or has ended; the message holds what it printed."""


class Zygote:
    """The zygote, seen from the one thread that uses it."""

    def __init__(self, environment: dict[str, str]) -> None:
        """Start it; the first `fork` waits for its imports."""
        self._connection, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", str(theirs.fileno())], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._running: dict[int, Forked] = {}

    def fork(self, function: str, arguments: dict[str, Any], *, environment: dict[str, str], output: Path) -> Forked:
        """Call `module:name` with keyword arguments that JSON can hold, in a new process that prints to `output`.

        Raises:
            ZygoteFailed: there is no zygote any more.
        """
        request = {"function": function, "arguments": arguments, "environment": environment, "output": str(output)}
        with contextlib.suppress(OSError):  # of one that has ended, which is seen when it is to answer
            self._connection.send_bytes(json.dumps(request).encode())
        while "code" in (message := self._receive(START_SECONDS)):
            self._note_end(message)
        forked = Forked(self, message["pid"], output)
        self._running[forked.pid] = forked
        return forked

    def listen(self, seconds: float) -> bool:
        """Wait for the end of any process, at most so long; return whether one has ended."""
        if not self._connection.poll(seconds):
            return False
        self._note_end(self._receive(0))
        return True

    def close(self) -> None:
        """Kill what it has forked, and end it."""
        self._connection.close()
        self._process.wait()
        self._output.close()

    def _receive(self, seconds: float) -> dict[str, int]:
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(seconds):
                message: dict[str, int] = json.loads(self._connection.recv_bytes())
                return message
        self._output.seek(0)
        printed = self._output.read().decode(errors="replace")
        raise ZygoteFailed(f"the process that forks ranks does not answer; it printed:\n{printed}")

    def _note_end(self, message: dict[str, int]) -> None:
        self._running.pop(message["pid"]).returncode = message["code"]


class Forked:
    """A process that the zygote has forked, first of a process group of its own; used like a subprocess.Popen."""

    def __init__(self, zygote: Zygote, pid: int, output: Path) -> None:
        self.pid, self.output = pid, output
        self.returncode: int | None = None
        """Exit code, or minus the number of the signal that ended it; None of a process not known to have ended."""
        self._zygote = zygote

    def poll(self) -> int | None:
        """The return code, None as long as it runs."""
        while self.returncode is None and self._zygote.listen(0):
            pass
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Wait for the end, and return the return code.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if (left := deadline - time.monotonic()) <= 0 and self.poll() is None:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self._zygote.listen(max(0.0, min(left, 60.0)))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and not what it has started."""
        self.send_signal(signal.SIGKILL)


def serve(connection: Connection) -> dict[str, Any]:
    """In the zygote: fork as requested until the other end is closed. Returns in the forked processes, with the request."""
    zygote, running = os.getpid(), dict[int, int]()
    while True:
        for ready in wait([connection, *running]):
            if isinstance(ready, int):
                pid = running.pop(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                connection.send_bytes(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())
                continue
            try:
                request: dict[str, Any] = json.loads(connection.recv_bytes())
            except EOFError:
                end(list(running.values()))
            if (pid := os.fork()) == 0:
                connection.close()
                for descriptor in running:
                    os.close(descriptor)
                settle(zygote, request["environment"], request["output"])
                return request
            # Here too: it may be killed as a group before it has run.
            os.setpgid(pid, pid)
            running[os.pidfd_open(pid)] = pid
            connection.send_bytes(json.dumps({"pid": pid}).encode())


def settle(zygote: int, environment: dict[str, str], output: str) -> None:
    """In a forked process: become what a new interpreter would be."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:  # it died before that
        os._exit(1)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def end(pids: list[int]) -> NoReturn:
    """End the zygote, and what it has forked and what that has started."""
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
    os._exit(0)


def call(function: str, arguments: dict[str, Any]) -> None:
    """Call `module:name`."""
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(**arguments)


def main(descriptor: int) -> None:
    """The zygote, and in the end every process that it has forked."""
    for module in MODULES:
        importlib.import_module(module)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: what is forked would wait for what the others hold"
    # A collection in a forked process would write to, and so copy, all of the memory that it shares.
    gc.collect()
    gc.freeze()
    request = serve(Connection(descriptor))
    call(request["function"], request["arguments"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
