"""Run a peer's script in an environment of its own, made from the package registry, and read the JSON it prints.

Every contender of a benchmark, ours too, runs as a process of its own, so that none inherits threads, caches or shared memory of
another, and with one thread each, so that the same number of processes is the same number of cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENDERS = Path(__file__).resolve().parent / "contenders"
DEFAULT_ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "palimpsest" / "peers"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_COMPLETE = "complete"


class PeerError(RuntimeError):
    """A peer cannot be installed, or its script failed; the message has the end of what it wrote."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with, in exact versions: what pip resolves for a user of it."""

    label: str
    requirements: tuple[str, ...]


# mosaicml-streaming 0.13 requires transformers below 5.
PEERS = {
    "mosaicml": Peer(
        "mosaicml-streaming 0.13.0", ("torch==2.13.0", "mosaicml-streaming==0.13.0", "transformers==4.57.6")
    ),
    "datasets": Peer("datasets 5.2.0", ("torch==2.13.0", "datasets==5.2.0", "transformers==5.23.0")),
    "trl": Peer("trl 1.16.0", ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "datasets==5.2.0")),
    "litdata": Peer("litdata 0.2.76", ("torch==2.13.0", "litdata==0.2.76", "transformers==5.23.0")),
}


def reported(main: Callable[[], None]) -> None:
    """Call a script's main; of a peer that fails the message is printed, and the exit code is 1."""
    try:
        main()
    except PeerError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def installed(peer: Peer, folder: Path) -> Path:
    """The Python of an environment that has exactly the peer's requirements, made in `folder` where there is none yet.

    Raises:
        PeerError: pip could not install it.
    """
    key = hashlib.sha256("\n".join((sys.version, *peer.requirements)).encode()).hexdigest()[:12]
    environment = folder / f"{peer.label.replace(' ', '-')}-{key}"
    python = environment / "bin" / "python"
    if (environment / _COMPLETE).exists():
        return python
    print(f"installing {peer.label} into {environment}", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise PeerError(f"pip could not install {', '.join(peer.requirements)}:\n{_end(done.stderr)}")
    (environment / _COMPLETE).touch()
    return python


def run(
    python: Path | str, script: str, *arguments: object, scratch: Path, timeout: float, ranks: int | None = None
) -> dict[str, Any]:
    """Run a script of `contenders` to its end.

    Args:
        python: interpreter of the environment.
        script: file name in `contenders`.
        arguments: its arguments.
        scratch: an existing folder for temporary files, caches and locks.
        timeout: seconds after which it and all processes it started are killed.
        ranks: start it so many times, with torchrun, on CPUs; None starts it once, without a launcher.

    Returns:
        The JSON object in the last line it prints.

    Raises:
        PeerError: it failed, took too long or printed no JSON.
    """
    command = [str(python), *_launcher(ranks), str(CONTENDERS / script), *map(str, arguments)]
    own = {"TMPDIR": scratch, "HF_HOME": scratch / "hf", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if ranks is not None:
        # DeepSpeed compiles its CPU extension once per machine, with the ninja beside the interpreter.
        path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        own |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "PATH": path}
    errors_file = scratch / f"{script}.stderr"
    with (
        errors_file.open("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            env=os.environ | ONE_THREAD | {name: str(value) for name, value in own.items()},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"{script} took more than {timeout:g} s and was killed:\n{_tail(errors_file)}") from error
        finally:
            # Loader processes that outlive their parent would slow down the next contender.
            _kill_group(process)
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        raise PeerError(f"{script} failed with exit code {process.returncode}:\n{_tail(errors_file)}")
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except ValueError as error:
        raise PeerError(f"the last line of {script} is no JSON: {lines[-1][:200]}") from error
    return result


def _launcher(ranks: int | None) -> list[str]:
    """Arguments of Python that start a script on so many ranks of this machine."""
    if ranks is None:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = ["--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return ["-m", "torch.distributed.run", *own]


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(file: Path) -> str:
    return _end(file.read_text(encoding="utf-8", errors="replace"))


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-40:])
