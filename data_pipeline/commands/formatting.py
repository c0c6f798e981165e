"""Sizes, shares and times as people read them."""

from __future__ import annotations

_BYTES_OF = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def format_bytes(size: float) -> str:
    """A size as "812 B", "1.5 MB"."""
    name = next((name for name in ("GB", "MB", "kB") if size >= _BYTES_OF[name]), None)
    return f"{size / _BYTES_OF[name]:.1f} {name}" if name else f"{size:.0f} B"


def format_time(seconds: float) -> str:
    """A duration as 0:42 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_share(share: float) -> str:
    """A share as "12.3 %"; nothing and everything are told from almost nothing and almost everything."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return f"{min(100 * share, 99.99):.2f} %"
    return f"{100 * share:.1f} %"


def format_amounts(done: int, total: int, unit: str) -> str:
    """How much of how much: "3/100", "1,000/2,000 documents", "1.5/20.0 GB"."""
    if unit != "bytes":
        return f"{done:,}/{total:,}{' ' + unit if unit else ''}"
    name = next((name for name in ("GB", "MB") if total >= _BYTES_OF[name]), "kB")
    return f"{done / _BYTES_OF[name]:.1f}/{total / _BYTES_OF[name]:.1f} {name}"


def format_pace(done: int, left: int, seconds: float, unit: str) -> str:
    """How fast, and how long it takes from here: "120 MB/s, 0:42 left"; empty while nothing is known."""
    if done <= 0 or seconds < 0.5:
        return ""
    speed = done / seconds
    shown = f"{speed / 1e6:.1f} MB/s" if unit == "bytes" else f"{speed:,.0f}/s"
    return f"{shown}, {format_time(left / speed)} left" if left else f"{shown}, took {format_time(seconds)}"
