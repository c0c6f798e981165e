"""Numbers with the unit that people would choose."""

from __future__ import annotations

from training.costs.memory import GiB


def decimal(size: float) -> str:
    """Bytes on a wire or on a disk, such as 205 kB or 13.5 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{_short(size / scale)} {unit}"
    return f"{size:.0f} B"


def binary(size: float) -> str:
    """Bytes of memory, such as 56 MiB or 69.3 GiB."""
    return f"{size / GiB:,.1f} GiB" if size >= GiB else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """A time, such as 30 ms, 40 s, 12 min or 9.1 h."""
    if seconds >= 3600:
        return f"{_short(seconds / 3600)} h"
    if seconds >= 100:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def gpu_hours(hours: float) -> str:
    """Hours of all GPUs together."""
    return f"{_short(hours)} GPU-hours" if hours >= 0.1 else "less than 0.1 GPU-hours"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
