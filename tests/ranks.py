"""Start several ranks: for a function, with a timeout that dumps all stacks and results as JSON, or for a whole training.

The parent calls run_ranks("tests.distributed.scenarios:function", world_size, argument=...); each rank imports the
function, calls it and writes what it returned. The first rank that fails ends the others.

Ranks are forked by one process that has imported torch and DeepSpeed (tests/zygote.py). With `fresh=True`, with FRESH_RANKS=1
in the environment and elsewhere than on Linux each is an interpreter of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.zygote import ROOT, Forked, Zygote, call


class RanksFailed(AssertionError):
    """A rank failed or hung; the message holds every rank's output."""


class Interpreter(subprocess.Popen[bytes]):
    """A rank that is an interpreter of its own."""

    def __init__(self, function: str, arguments: dict[str, Any], *, environment: dict[str, str], output: Path) -> None:
        self.output = output
        command = [sys.executable, "-m", "tests.ranks", function, json.dumps(arguments)]
        with output.open("wb") as file:
            super().__init__(command, env=environment, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)


Rank = Forked | Interpreter
"""A process that has pid, output (what it prints), returncode, poll(), wait(timeout), send_signal() and kill()."""


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


def rank_environments(world_size: int, local_size: int | None = None) -> list[dict[str, str]]:
    """What a launcher sets for each rank; with `local_size` ranks believe to be on several nodes, so many on each."""
    common = base_environment() | {
        "WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(local_size or world_size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [
        common | {"RANK": str(rank), "LOCAL_RANK": str(rank % (local_size or world_size))} for rank in range(world_size)
    ]


def run_ranks(
    function: str,
    world_size: int,
    *,
    timeout: float = 240,
    local_size: int | None = None,
    fresh: bool = False,
    **arguments: Any,
) -> list[Any]:
    """Call `module:name` with keyword arguments on every rank; return what each rank returned.

    With `local_size` the ranks believe to be on several nodes, with so many on each.

    Raises:
        RanksFailed: a rank raised an error, or ended otherwise than by returning, or took too long.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks: list[Rank] = []
        try:
            for number, environment in enumerate(rank_environments(world_size, local_size)):
                work = {"function": function, "arguments": arguments, "result": f"{folder}/{number}.json",
                        "seconds": max(timeout - 10, timeout / 2)}  # fmt: skip
                output = folder / f"{number}.log"
                ranks.append(start("tests.ranks:worker", work, environment=environment, output=output, fresh=fresh))
            problem = wait_for(ranks, timeout)
        finally:
            end(ranks)
        if problem:
            logs = "\n".join(f"--- rank {k}\n{rank.output.read_text(errors='replace')}" for k, rank in enumerate(ranks))
            raise RanksFailed(f"{function} on {world_size} ranks: {problem}\n{logs}")
        return [json.loads((folder / f"{number}.json").read_text()) for number in range(world_size)]


def start_program(
    arguments: Sequence[str],
    world_size: int,
    *,
    folder: Path,
    local_size: int | None = None,
    environment: dict[str, str] | None = None,
    fresh: bool = False,
) -> list[Rank]:
    """Start `training/main.py` with a command line on every rank, without a launcher, and don't wait.

    Nobody ends the other ranks where one dies, as a launcher would; `end` does.

    Args:
        arguments: the command line.
        world_size: number of ranks.
        folder: an existing one, for what each rank prints: `<rank>.log`, emptied first.
        local_size: as in run_ranks.
        environment: more variables, for all ranks.
        fresh: as in run_ranks.
    """
    return [
        start(
            "tests.ranks:program", {"arguments": list(arguments)}, environment=variables | (environment or {}),
            output=folder / f"{number}.log", fresh=fresh,
        )
        for number, variables in enumerate(rank_environments(world_size, local_size))
    ]  # fmt: skip


def start(
    function: str, arguments: dict[str, Any], *, environment: dict[str, str], output: Path, fresh: bool = False
) -> Rank:
    """Call `module:name` with keyword arguments in a process that has this environment and prints to `output`."""
    if fresh or os.environ.get("FRESH_RANKS") or sys.platform != "linux":
        return Interpreter(function, arguments, environment=environment, output=output)
    return zygote().fork(function, arguments, environment=environment, output=output)


@functools.cache
def zygote() -> Zygote:
    """The process that forks ranks for this one, until its end."""
    made = Zygote(base_environment())
    atexit.register(made.close)
    return made


def wait_for(ranks: Sequence[Rank], timeout: float) -> str | None:
    """Wait until all have ended, one has failed or time is up; say what happened if that is not the first."""
    deadline = time.monotonic() + timeout
    while any(rank.poll() is None for rank in ranks):
        failed = [k for k, rank in enumerate(ranks) if rank.poll() not in (None, 0)]
        if failed:
            return f"rank {failed[0]} ended with code {ranks[failed[0]].returncode}"
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.send_signal(signal.SIGUSR1)
            time.sleep(2)  # they print their stacks
            return f"no end after {timeout:.0f} s; stacks below"
        time.sleep(0.02)
    codes = [rank.returncode for rank in ranks]
    return f"exit codes {codes}" if any(codes) else None


def end(ranks: Sequence[Rank]) -> None:
    """Kill those that still run, with all that they have started."""
    for rank in ranks:
        if rank.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


def worker(function: str, arguments: dict[str, Any], result: str, seconds: float) -> None:
    """One rank of run_ranks."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    faulthandler.dump_traceback_later(seconds)
    module, name = function.split(":")
    try:
        value = getattr(importlib.import_module(module), name)(**arguments)
        Path(result).write_text(json.dumps(value))
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for threads of the process group, which may wait for a rank that is gone.
    os._exit(code)


def program(arguments: list[str]) -> None:
    """One rank of start_program: what `python -m training.main` does."""
    from training.main import leave, main

    sys.argv = [str(ROOT / "training" / "main.py"), *arguments]
    leave(main())


if __name__ == "__main__":
    call(sys.argv[1], json.loads(sys.argv[2]))
