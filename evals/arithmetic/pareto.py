"""Learning against forgetting: the checkpoints that no other one beats in both, and the area they cover."""

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


def hypervolume(points: Iterable[Point], *, forgotten: float, learned: float = 0.0) -> float:
    """The area that points dominate and the reference (learned, forgotten) bounds; larger is better.

    That is the integral, over budgets of forgetting up to `forgotten`, of the most that was learned within the budget
    above `learned`. Only areas with the same reference compare. The base model adds nothing at the default.

    Args:
        points: what was measured.
        forgotten: the most forgetting that counts, for instance the largest of all methods compared.
        learned: the least learning that counts; 0 is the base model's.
    """
    within = [p for p in front(points) if p.forgotten < forgotten and p.learned > learned]
    if not within:
        return 0.0
    ends = [*(p.forgotten for p in within[1:]), forgotten]
    return math.fsum((p.learned - learned) * (end - p.forgotten) for p, end in zip(within, ends, strict=True))


def _place(point: Point) -> tuple[float, float]:
    return point.learned, point.forgotten
