"""Bootstrap intervals of thousands of changes in seconds: all tasks with as many units share their draws.

Independent units (documents; questions where each is its own) are drawn with replacement. How often each is drawn in
each of the draws is a matrix that depends on the number of units alone, so a task's draws are a product with it. The
interval is that of the percentiles (Efron & Tibshirani 1993, section 13.3). For one comparison that matters, use
`evals.arithmetic.bootstrap`, which draws for that one, ten times as often.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.forgetting import Changes

DRAWS = 1000
LEVEL = 0.95
_CACHED = 8
"""Sizes of tasks whose matrix is kept; for 10,042 questions it has 40 MB."""


def draw(paired: Changes, stream: int) -> NDArray[np.float64] | None:
    """[DRAWS] changes of a task, each sum(deltas) / sum(weights) over units drawn; None with a single unit.

    Args:
        paired: the task's changes.
        stream: tasks of one mean are drawn independently of each other: give each its own number.
    """
    deltas, weights = _units(paired)
    if len(deltas) < 2:
        return None
    counts = _counts(len(deltas), stream)
    is_mean = bool((weights == weights[0]).all())
    total = len(weights) * weights[0] if is_mean else counts @ weights.astype(np.float32)
    ratios: NDArray[np.float64] = (counts @ deltas.astype(np.float32)) / total
    return ratios


def percentiles(draws: Sequence[NDArray[np.float64] | None]) -> tuple[float | None, float | None]:
    """The interval of the mean over tasks, from each task's draws; (None, None) where a task has none."""
    known = [each for each in draws if each is not None]
    if len(known) < len(draws) or not known:
        return None, None
    means = sum(known[1:], start=known[0]) / len(known)
    low, high = (place * (len(means) - 1) for place in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    # Only these four have to be in their places.
    parted = np.partition(means, [int(low), int(low) + 1, int(high), int(high) + 1])
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
def _counts(units: int, stream: int) -> NDArray[np.float32]:
    """[DRAWS, units]: how often each unit is drawn."""
    rng = np.random.default_rng((units, stream))
    counts = np.empty((DRAWS, units), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, units, units), minlength=units)
    return counts
