"""Bootstrap intervals of thousands of changes in seconds: all tasks with as many units share their draws.

Independent units (documents; questions where each is its own) are drawn with replacement. How often each is drawn in
each of the draws is a matrix that depends on the number of units alone, so a task's draws are a product with it. The
interval is that of the percentiles (Efron & Tibshirani 1993, section 13.3). For one comparison that matters, use
`evals.arithmetic.bootstrap`, which draws for that one, ten times as often.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.forgetting import Changes

DRAWS = 1000
LEVEL = 0.95
_CACHED = 8
"""Sizes of tasks whose matrix is kept; for 10,042 questions it has 40 MB."""


def interval(paired: Changes) -> tuple[float | None, float | None]:
    """The interval of a task's change, sum(deltas) / sum(weights) over units drawn; (None, None) with a single unit."""
    deltas, weights = _units(paired)
    if len(deltas) < 2:
        return None, None
    counts = _counts(len(deltas))
    is_mean = bool((weights == weights[0]).all())
    total = len(weights) * weights[0] if is_mean else counts @ weights.astype(np.float32)
    drawn: NDArray[np.float64] = (counts @ deltas.astype(np.float32)) / total
    low, high = (place * (len(drawn) - 1) for place in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    # Only these four have to be in their places.
    parted = np.partition(drawn, [int(low), int(low) + 1, int(high), int(high) + 1])
    return _between(parted, low), _between(parted, high)


def _between(parted: NDArray[np.float64], place: float) -> float:
    """The value at a fractional place, interpolated linearly."""
    left = int(place)
    return float(parted[left] + (place - left) * (parted[left + 1] - parted[left]))


def _units(paired: Changes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of deltas and of weights of each group."""
    if paired.groups is paired.ids:
        return paired.deltas, paired.weights
    codes = {group: code for code, group in enumerate(dict.fromkeys(paired.groups))}
    index = np.array([codes[group] for group in paired.groups])
    deltas, weights = (np.bincount(index, weights=each).astype(np.float64) for each in (paired.deltas, paired.weights))
    return deltas, weights


@functools.lru_cache(maxsize=_CACHED)
def _counts(units: int) -> NDArray[np.float32]:
    """[DRAWS, units]: how often each unit is drawn."""
    rng = np.random.default_rng(units)
    counts = np.empty((DRAWS, units), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, units, units), minlength=units)
    return counts
