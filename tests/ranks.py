"""Run a function on several ranks: one fresh interpreter each, a timeout that dumps all stacks, results as JSON.

The parent calls run_ranks("tests.distributed.scenarios:function", world_size, argument=...); each rank imports the
function, calls it and writes what it returned. The first rank that fails ends the others.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class RanksFailed(AssertionError):
    """A rank failed or hung; the message holds every rank's output."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def base_environment() -> dict[str, str]:
    """The environment of a launched process: no variables of another launcher, CPU only, the repository importable."""
    drop = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    env.update(
        DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo",
        DEEPSPEED_TIMEOUT="2", HF_HUB_OFFLINE="1", PYTHONFAULTHANDLER="1", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    return env


def run_ranks(
    function: str, world_size: int, *, timeout: float = 240, local_size: int | None = None, **arguments: Any
) -> list[Any]:
    """Call `module:name` with keyword arguments on every rank; return what each rank returned.

    With `local_size` the ranks believe to be on several nodes, with so many on each.
    """
    port = free_port()
    local_size = local_size or world_size
    with tempfile.TemporaryDirectory() as folder:
        processes, outputs = [], []
        for rank in range(world_size):
            env = base_environment() | {
                "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank % local_size),
                "LOCAL_SIZE": str(local_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            command = [sys.executable, "-m", "tests.ranks", function, json.dumps(arguments), f"{folder}/{rank}.json"]
            output = Path(folder) / f"{rank}.log"
            outputs.append(output)
            with output.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        [*command, str(timeout - 10)],
                        env=env,
                        cwd=ROOT,
                        stdout=file,
                        stderr=file,
                        start_new_session=True,
                    )
                )
        problem = wait_for(processes, timeout)
        if problem:
            logs = "\n".join(f"--- rank {k}\n{path.read_text(errors='replace')}" for k, path in enumerate(outputs))
            raise RanksFailed(f"{function} on {world_size} ranks: {problem}\n{logs}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world_size)]


def wait_for(processes: list[subprocess.Popen[bytes]], timeout: float) -> str | None:
    """Wait for all; on the first failure or the timeout end the rest and say what happened."""
    deadline = time.monotonic() + timeout
    problem = None
    while problem is None and any(process.poll() is None for process in processes):
        failed = [k for k, process in enumerate(processes) if process.poll() not in (None, 0)]
        if failed:
            problem = f"rank {failed[0]} ended with code {processes[failed[0]].returncode}"
        elif time.monotonic() > deadline:
            problem = f"no end after {timeout:.0f} s; stacks below"
            for process in processes:
                process.send_signal(signal.SIGUSR1)
            time.sleep(2)
        time.sleep(0.1)
    if problem is None:
        codes = [process.wait() for process in processes]
        problem = f"exit codes {codes}" if any(codes) else None
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return problem


def worker(function: str, arguments: str, result: str, seconds: str) -> None:
    """One rank."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    faulthandler.dump_traceback_later(float(seconds))
    module, name = function.split(":")
    try:
        value = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        Path(result).write_text(json.dumps(value))
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for threads of the process group, which may wait for a rank that is gone.
    os._exit(code)


if __name__ == "__main__":
    worker(*sys.argv[1:])
