"""Learning against forgetting: the checkpoints that no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run at a step: how much it learned (up is good) and forgot (down is good) relative to the base model.

    The base model itself is the point (0, 0).
    """

    run: str
    step: int
    learned: float
    forgotten: float


def front(points: Iterable[Point]) -> list[Point]:
    """The points that are not dominated, from the least to the most forgotten.

    A point dominates another that learned no more and forgot no less, when at least one of the two differs. Points in
    the same place do not dominate each other: all of them stay, in the order given. A point with a value that is not
    finite (a run that diverged) is left out. O(n log n).
    """
    known = [point for point in points if math.isfinite(point.learned) and math.isfinite(point.forgotten)]
    best: list[Point] = []
    for point in sorted(known, key=lambda p: (p.forgotten, -p.learned)):
        if not best or point.learned > best[-1].learned or _place(point) == _place(best[-1]):
            best.append(point)
    return best


def _place(point: Point) -> tuple[float, float]:
    return point.learned, point.forgotten
