"""Numbers as people read them, the same in the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.arithmetic.estimators import Z_95

UNKNOWN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def count(value: float | None) -> str:
    """2600000 -> 2.60 M; counts below a thousand as they are."""
    if value is None:
        return UNKNOWN
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    """Seconds as s, min or h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def signed(value: float, unit: str) -> str:
    """A difference with its sign: bits per byte with 3 decimals, accuracy in percentage points."""
    return (f"{100 * value:+.1f} points" if unit == "accuracy" else f"{value:+.3f}").replace("-", MINUS)


def effect(estimate: Mapping[str, Any] | None) -> str:
    """A difference with the half-width of its 95 % interval."""
    if not estimate:
        return UNKNOWN
    unit = estimate["unit"]
    text = signed(estimate["value"], unit).removesuffix(" points")
    if estimate["stderr"] is not None:
        half = Z_95 * estimate["stderr"]
        text += f" \N{PLUS-MINUS SIGN} {100 * half:.1f}" if unit == "accuracy" else f" \N{PLUS-MINUS SIGN} {half:.3f}"
    return f"{text} points" if unit == "accuracy" else text


def score(result: Mapping[str, Any] | None) -> str:
    """A task's score: accuracy in percent, anything else with 3 decimals."""
    if not result or result.get("score") is None:
        return UNKNOWN
    value = result["score"]
    return f"{100 * value:.1f} %" if result.get("metric") == "accuracy" else f"{value:.3f}"


def nats(value: float | None) -> str:
    """A loss or an uncertainty in nats, with 3 decimals."""
    return UNKNOWN if value is None else f"{value:.3f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.123 -> 12.3 %."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f} %".replace("-", MINUS)


def trainable(entry: Mapping[str, Any]) -> str:
    """Trainable parameters of a run and their share of all."""
    part, whole = entry.get("trainable_parameters"), entry.get("total_parameters")
    if part is None:
        return UNKNOWN
    return f"{count(part)} ({100 * part / whole:.3g} %)" if whole else count(part)
