"""What all benchmarks share: options, turns, claims (a ratio taken within repetitions, its spread, its goal), and the JSON they are kept in.

The JSON of every script has

  schema, script, size      the shape, which script, and at which of its sizes it was run
  command, date, seconds    how it was started, when it ended (UTC), and how long it took, imports included
  commit, is_tree_clean     what was measured; null where there is no git
  machine, versions         processor, cores, memory, Python; packages of the environment that ran the script
  claims                    one object each: claim, ratio (the median), min, max, n, goal, peer

and beside that whatever the script measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLE = ROOT / "benchmarks" / "RESULTS.md"
SCHEMA = 2
T = TypeVar("T")
SIZES = ("quick", "bench", "full")
"""Does it work; what `make bench` runs; everything."""
PACKAGES = (
    "torch", "deepspeed", "transformers", "accelerate", "peft", "datasets", "lm_eval", "tokenizers", "sentencepiece",
    "gigatoken", "safetensors", "numpy", "pyarrow", "zstandard",
)  # fmt: skip


def options(description: str | None, *, quick: str, bench: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have: `size` (one of SIZES) and `json`.

    Args:
        description: the script's docstring.
        quick: what --quick leaves out.
        bench: what --bench leaves out.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", help=quick)
    sizes.add_argument("--bench", dest="size", action="store_const", const="bench", help=f"as in make bench: {bench}")
    parser.add_argument("--json", type=new_file, help="file to write the results to")
    parser.set_defaults(size="full")
    return parser


def new_file(text: str) -> Path:
    """A file that can be written once everything is measured.

    Raises:
        argparse.ArgumentTypeError: it can't; said before anything is measured.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written in {path.parent}")
    return path


def turns(contenders: Iterable[T], rounds: int) -> list[list[T]]:
    """The order of every round, in which each contender comes equally often first, second, ... and last.

    Args:
        contenders: who takes part.
        rounds: how many at least; so many more are made that each order comes equally often. A single round, which only shows
            that everything works, stays one.
    """
    first = list(contenders)
    count = rounds if rounds == 1 else -(-rounds // len(first)) * len(first)
    return [first[turn % len(first) :] + first[: turn % len(first)] for turn in range(count)]


def claim(name: str, over: list[float], under: list[float], goal: str, peer: str) -> dict[str, Any]:
    """Compare two contenders repetition by repetition.

    Args:
        name: of the claim.
        over: figures of the one contender, one per repetition.
        under: figures of the other, in the same repetitions.
        goal: what the ratio over / under is to be, e.g. ">=2"; "none" where it is for information.
        peer: name and version of the other.
    """
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "claim": name,
        "ratio": statistics.median(ratios),
        "goal": goal,
        "min": min(ratios),
        "max": max(ratios),
        "n": len(ratios),
        "peer": peer,
    }


def show(claims: list[dict[str, Any]]) -> None:
    """Print one line per claim."""
    for line in claims:
        print(
            f"claim={line['claim']} ratio={line['ratio']:.3f} goal={line['goal']} "
            f"spread={line['min']:.3f}..{line['max']:.3f} peer={line['peer']}"
        )


def is_met(ratio: float, goal: str) -> bool | None:
    """Whether a ratio reaches a goal such as ">=2"; None for the goal "none".

    Raises:
        ValueError: the goal is neither.
    """
    if goal == "none":
        return None
    number = float(goal[2:])
    if goal.startswith("<="):
        return ratio <= number
    if goal.startswith(">="):
        return ratio >= number
    raise ValueError(f"the goal {goal!r} begins with neither <= nor >=")


def write_json(path: Path, size: str, content: dict[str, Any]) -> None:
    """Keep what this script has measured at a size, with how and where: see the head of this file."""
    head, is_clean = commit()
    about = {
        "schema": SCHEMA, "script": Path(sys.argv[0]).stem, "size": size, "command": command(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - psutil.Process().create_time(), 1),
        "commit": head, "is_tree_clean": is_clean, "machine": machine(), "versions": versions(),
    }  # fmt: skip
    if taken := sorted(about.keys() & content.keys()):
        raise ValueError(f"{', '.join(taken)}: names that every result has; call the script's own something else")
    keep(path, about | content)


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write JSON under a temporary name, make sure it is on disk, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def command(arguments: list[str]) -> list[str]:
    """The command line to repeat it with, from the root of the repository; where the JSON went is left out."""
    left = list(arguments[1:])
    if "--json" in left:
        place = left.index("--json")
        del left[place : place + 2]
    return ["python", f"benchmarks/{Path(arguments[0]).name}", *left]


def commit() -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether the tree is as in it, results aside; None, None where there is no git."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None, None
    own = (f":(exclude){path.relative_to(ROOT)}" for path in (RESULTS, TABLE))
    return head.strip(), _git("status", "--porcelain", "--untracked-files=all", "--", ".", *own) == ""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory, the system's kind and Python."""
    cpus = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _gpu() -> str | None:
    """The name of the GPU of a script that has torch loaded."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def versions() -> dict[str, str | None]:
    """Installed packages; None for what is not."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
