"""Start a run on this machine, through DeepSpeed's launcher, and wait for it; Ctrl-C lets it save first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from training.world import free_port

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the packages: what `python -m` is started in."""


def environment() -> dict[str, str]:
    """This process's environment, with the interpreter's own tools (ninja, deepspeed) found first."""
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        env.setdefault("DS_ACCELERATOR", "cpu")
    return env


def run_module(module: str, *arguments: str) -> int:
    """Run `python -m module` in the foreground and return its exit code."""
    return wait([sys.executable, "-m", module, *arguments])


def train(recipe: Path, ds_config: Path, ranks: int, overrides: Sequence[str] = ()) -> int:
    """Train a recipe on `ranks` local ranks and return its exit code."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(ranks)]
    # Another run on this machine may be using the default port.
    launcher += ["--master_port", str(free_port())]
    script = [str(ROOT / "training/main.py"), "--ds_config", str(ds_config), "--recipe", str(recipe)]
    return wait([*launcher, *script, *overrides])


class Terminated(KeyboardInterrupt):
    """SIGTERM, to be treated like Ctrl-C, except that nobody has sent it to the child."""


def wait(command: Sequence[str]) -> int:
    """Run a command and return its exit code; Ctrl-C and SIGTERM let it save and end, and are then passed on."""
    process = subprocess.Popen(command, env=environment())
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            code = process.wait()
        except Terminated as signalled:
            process.terminate()
            interruption = signalled
        except KeyboardInterrupt as signalled:
            # The terminal has sent Ctrl-C to the child too.
            interruption = signalled
        else:
            if interruption is not None:
                raise interruption
            return code if code >= 0 else 128 - code


def terminate_like_interrupt() -> None:
    """Make SIGTERM end this process the way Ctrl-C does, so that children are waited for."""

    def interrupt(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, interrupt)
