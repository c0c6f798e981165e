"""Claims of the data benchmarks: a ratio taken within repetitions, its spread, its goal; and the file they are kept in."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any


def claim(name: str, over: list[float], under: list[float], goal: str, peer: str) -> dict[str, Any]:
    """Compare two contenders repetition by repetition.

    Args:
        name: of the claim.
        over: figures of the one contender, one per repetition.
        under: figures of the other, in the same repetitions.
        goal: what the ratio over / under is to be, e.g. ">=2".
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Add where and how it was measured; write under a temporary name, make sure it is on disk, rename."""
    content = {**content, "machine": machine()}
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def machine() -> dict[str, Any]:
    """The command, the processor, and the versions of what the data pipeline stands on."""
    cpus = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    packages = ("numpy", "pyarrow", "zstandard", "sentencepiece", "tokenizers", "gigatoken")
    return {
        "command": [Path(sys.argv[0]).name, *(argument for argument in sys.argv[1:] if argument.startswith("--"))],
        "cpus": os.cpu_count(),
        "cpu": models[0] if models else platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
