"""How numbers of findings are written."""

from __future__ import annotations

import math

from evals.claims.estimates import Measured
from evals.formatting import MINUS, UNKNOWN


def interval(measured: Measured, unit: str) -> str:
    """A value with the interval that decides."""
    value = number_of(measured.value, unit)
    if not measured.has_interval:
        return value
    return f"{value} [{number_of(measured.low, unit)}, {number_of(measured.high, unit)}]"


def number_of(value: float | None, unit: str) -> str:
    """A number of a unit: points of accuracy with a digit, ratios and ranks without a sign, anything else with 4 digits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = {
        "accuracy": f"{100 * value:+.1f} points",
        "times": f"{value:.2f}",
        "ratio": f"{value:.2f}",
        "rank": f"{value:+.1f}",
    }.get(unit, f"{value:+.4f}")
    return text.replace("-", MINUS)
