"""Whether what a program prints now has the shape of what a document shows: the same lines but for figures, times and paths."""

from __future__ import annotations

import re

MASKS = (
    (r"[\u2500-\u259f]+", " "),  # rules, frames and bars
    (r"\x1b\[[0-9;]*m", ""),
    (r"\b[0-9a-f]{10,64}\b", "HASH"),
    (r"[+-]?\d[\d,]*(\.\d+)?(e-?\d+)?", "N"),
    (r"\bN ?(B|kB|MB|GB|TB|KiB|MiB|GiB)\b", "N bytes"),
    (r"\bN ?(ms|s|min|h|d)\b( ago)?", r"N seconds\2"),
    (r"\b(run|row|problem|damage|cell|leg|file)s?\b", r"\1"),  # one or several
    (r"\s+", " "),
)
"""What differs from run to run, and what stands for it."""


def shape(line: str) -> str:
    """A line without what may differ."""
    for pattern, instead in MASKS:
        line = re.sub(pattern, instead, line)
    return line.strip()


def outdated(shown: tuple[str, ...], printed: str, content: tuple[str, ...]) -> list[str]:
    """The shown lines that are not printed any more; those that match one of `content` are data, and may differ."""
    now = {shape(line) for line in printed.splitlines()}
    return [
        line
        for line in shown
        if shape(line).strip("… ") and not any(re.search(one, line) for one in content) and shape(line) not in now
    ]
