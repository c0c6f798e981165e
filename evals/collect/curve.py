"""A run's training loss from its metrics.jsonl: some lines of it, however long it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

POINTS = 100
WHOLE = 1 << 17
"""Bytes up to which a file is read whole; of a longer one, POINTS pieces, evenly spaced."""
PIECE = 1 << 13
"""Bytes of a piece: several lines."""


def read_curve(path: Path) -> dict[str, Any]:
    """The loss over tokens, and how far the run is.

    Returns:
        `loss`: [tokens seen, nats] of at most about POINTS lines; `step` and `tokens_seen` of the last line, None
        where there is none; `is_diverged`: the last line's loss is not a finite number.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        lines = _whole(file) if size <= WHOLE else _pieces(file, size)
        entries = {entry["step"]: entry for line in lines if (entry := _entry(line)) is not None}
    logged = [entries[step] for step in sorted(entries)]
    last = logged[-1] if logged else {}
    curve = [[e["tokens_seen"], round(e["loss"], 5)] for e in logged if _is_number(e["loss"], e.get("tokens_seen"))]
    return {
        "loss": curve,
        "step": last.get("step"),
        "tokens_seen": last.get("tokens_seen"),
        "is_diverged": bool(last) and not _is_number(last["loss"]),
    }


def _whole(file: BinaryIO) -> list[bytes]:
    """Some lines, evenly spaced, the last ones for sure: the very last may be half-written."""
    lines = [line for line in file.read().splitlines() if line]
    if len(lines) <= POINTS:
        return lines
    return [*(lines[place * len(lines) // POINTS] for place in range(POINTS)), *lines[-2:]]


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """A line from each of POINTS places, and those at the end."""
    for place in range(POINTS):
        file.seek(place * (size - PIECE) // POINTS)
        lines = file.read(PIECE).splitlines()
        # What comes before the first line break is the rest of a line, except at the beginning.
        yield from lines[min(place, 1) :][:1]
    file.seek(size - PIECE)
    yield from file.read(PIECE).splitlines()[1:]


def _entry(line: bytes) -> dict[str, Any] | None:
    """A whole line with a step and a loss; None for any other."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_step = isinstance(entry, dict) and isinstance(entry.get("step"), int) and "loss" in entry
    return entry if is_step else None


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
