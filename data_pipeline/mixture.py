"""Weights of sources as integers, so that which source is next never depends on rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def integer_inverses(weights: Sequence[float]) -> list[int]:
    """Integers in proportion to 1/weight, of the weights as they are written (0.1 is a tenth)."""
    inverses = [1 / Fraction(repr(float(weight))) for weight in weights]
    common = math.lcm(*(inverse.denominator for inverse in inverses))
    return [int(inverse * common) for inverse in inverses]
