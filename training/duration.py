"""Times of a recipe, such as "90s", "10min", "2h" and "1.5 days", as seconds."""

from __future__ import annotations

import re

GRAMMAR = 'write a number and its unit, such as "90s", "10min", "2h" or "1 day"'
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "second": 1, "minute": 60, "hour": 3600, "day": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|seconds?|minutes?|hours?|days?)")


def parse_duration(text: str) -> float:
    """The seconds that `text` means.

    Raises:
        ValueError: it means none; the message shows what does.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is no time; {GRAMMAR}")
    unit = match[2] if match[2] in _SECONDS else match[2].removesuffix("s")
    return float(match[1]) * _SECONDS[unit]
