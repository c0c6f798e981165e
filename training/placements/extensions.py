"""DeepSpeed's extension for CPUs, which the first start compiles: with which tools, in which folder, and after a killed start.

torch compiles it under a lock that is a mere file: left by a start that was killed, it would have all later ones wait for ever.
And torch's folder is one for all environments of a user: runs of two of them, or on nodes with different CPUs, would each compile it
anew under the feet of the others. So there is a folder for each environment and kind of CPU, unless TORCH_EXTENSIONS_DIR names one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

import torch
import torch.distributed as dist

from training.ranks.agreement import refuse_problems
from training.ranks.distributed import rank_0_first
from training.recipe import ConfigError
from training.world import World

NAME = "deepspeed_shm_comm"
LOCK_SECONDS = 600.0
"""Age from which a lock is one that nobody holds: compiling takes about a minute, and several on a busy machine."""


def prepare_extension(
    world: World, say: Callable[[str], None], environment: MutableMapping[str, str] = os.environ
) -> None:
    """Make sure that the extension can be compiled, or is there, and that no dead start's lock is in the way (a collective).

    Sets PATH and TORCH_EXTENSIONS_DIR. On GPUs nothing is compiled.

    Raises:
        ConfigError: on all ranks, when a node of one lacks what it takes.
    """
    if torch.cuda.is_available():
        return
    problem = None
    try:
        find_ninja(environment)
        folder = choose_folder(environment, say if world.local_rank == 0 else lambda _: None)
        environment["TORCH_EXTENSIONS_DIR"] = str(folder)
        refuse_missing_tools(folder, environment)
    except ConfigError as error:
        problem = error
    refuse_problems(problem, world)
    # On storage that all nodes share, the first rank has done it for the others.
    with rank_0_first(world):
        if world.local_rank == 0:
            clear_lock(folder / NAME / "lock", say)
        if world.rank == 0 and not library(folder).exists():
            say(f"compiling DeepSpeed's CPU extension in {folder}, once per environment: about a minute")
    dist.barrier()


def library(folder: Path) -> Path:
    """Where the compiled extension is, in the folder of extensions."""
    return folder / NAME / f"{NAME}.so"


def find_ninja(environment: MutableMapping[str, str]) -> None:
    """Put the interpreter's own programs on PATH where ninja is not there: in an environment that wasn't activated."""
    programs = sysconfig.get_path("scripts")
    if not shutil.which("ninja", path=environment.get("PATH")) and shutil.which("ninja", path=programs):
        environment["PATH"] = os.pathsep.join(filter(None, [programs, environment.get("PATH")]))


def choose_folder(environment: MutableMapping[str, str], say: Callable[[str], None]) -> Path:
    """The folder that extensions are compiled in: TORCH_EXTENSIONS_DIR, else this environment's in the user's cache.

    Where that can't be written, as with a read-only home, a folder of this user in the temporary one.

    Raises:
        ConfigError: TORCH_EXTENSIONS_DIR names a folder that can't be written.
    """
    if chosen := environment.get("TORCH_EXTENSIONS_DIR"):
        if problem := unwritable(Path(chosen)):
            raise ConfigError(
                [f"TORCH_EXTENSIONS_DIR={chosen}: {problem}; name a folder that can be written, or unset it"]
            )
        return Path(chosen)
    name = f"extensions-{environment_key()}"
    with contextlib.suppress(RuntimeError):  # a user without a home
        folder = Path(environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "palimpsest", name)
        problem = unwritable(folder)
        if problem is None:
            return folder
        say(f"{folder}: {problem}; DeepSpeed's extension is compiled in {tempfile.gettempdir()}")
    own = Path(tempfile.gettempdir(), f"palimpsest-{os.getuid()}")
    own.mkdir(mode=0o700, exist_ok=True)
    # What is compiled is executed: it must not be a folder that another user has made.
    if own.is_symlink() or own.stat().st_uid != os.getuid() or own.stat().st_mode & 0o022:
        raise ConfigError(
            [
                f"{own}: belongs to another user, or others can write to it; set TORCH_EXTENSIONS_DIR to a folder of yours"
            ]
        )
    folder = own / name
    if problem := unwritable(folder):
        raise ConfigError([f"{folder}: {problem}; set TORCH_EXTENSIONS_DIR to a folder that can be written"])
    return folder


def environment_key() -> str:
    """A short name for what compiled code depends on: the environment, torch, and what the CPU can do."""
    cpu = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256("\n".join([sys.prefix, torch.__version__, cpu]).encode()).hexdigest()[:12]


def unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which is made if need be; None when one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"can't be written ({error.strerror})"


def refuse_missing_tools(folder: Path, environment: MutableMapping[str, str]) -> None:
    """Refuse a node that can't compile.

    Raises:
        ConfigError: with what is missing, where the extension isn't there either.
    """
    path, compiler = environment.get("PATH"), environment.get("CXX", "c++")
    # torch asks for ninja even where nothing is to be compiled.
    missing = [] if shutil.which("ninja", path=path) else ["ninja (pip install ninja)"]
    if not library(folder).exists() and not shutil.which(compiler.split()[0], path=path):
        missing.append(f"the C++ compiler {compiler}")
    if missing:
        raise ConfigError(
            [f"DeepSpeed compiles an extension on a machine without GPUs, and this one lacks {' and '.join(missing)}; install that, or "
             "take train.placement = \"replicated\", which needs neither"]
        )  # fmt: skip


def clear_lock(lock: Path, say: Callable[[str], None]) -> None:
    """Wait for whoever compiles; a lock that is too old to be anyone's is removed."""
    is_told = False
    while (age := lock_age(lock)) is not None:
        if age >= LOCK_SECONDS:
            say(f"removed {lock}, left {age / 60:.0f} minutes ago by a start that was killed while it compiled")
            lock.unlink(missing_ok=True)
            return
        if not is_told and age >= LOCK_SECONDS / 10:
            say(
                f"waiting for another start to compile DeepSpeed's extension ({lock}), for at most {LOCK_SECONDS / 60:.0f} minutes"
            )
            is_told = True
        time.sleep(0.2)


def lock_age(lock: Path) -> float | None:
    """Seconds since a lock was made, by the clock of the storage that it is on; None when there is none."""
    try:
        made = lock.stat().st_mtime
        with tempfile.TemporaryFile(dir=lock.parent) as now:
            return max(0.0, os.fstat(now.fileno()).st_mtime - made)
    except FileNotFoundError:
        return None
