"""Bootstrap intervals of paired changes: of a task, of the mean over tasks, of the difference of two runs.

Independent units (documents; questions where each is its own) are drawn with replacement, within each task on its
own; every draw gives the mean over tasks of sum(deltas) / sum(weights). The interval is that of the percentiles of the
draws (Efron & Tibshirani 1993, section 13.3); unlike +- 1.96 standard errors it need not be symmetric.

Why not BCa, which corrects for bias and skew: where only a few of many questions changed, as in a comparison of two
runs that are alike, its corrections are too bold. Of 200 questions of which about four change, to either side alike,
BCa excludes 0 in 9 % of simulations, the percentiles in 4 %. With 60 documents of unequal length and a skewed change
both cover the truth in 91 %, with 300 in 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.forgetting import Changes, Estimate, average, estimate

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 1 << 18
"""Draws at a time: what is drawn stays in the processor's cache."""
_FEW = 64
"""Up to so many kinds of units, how often each kind is drawn is cheaper to draw than the units."""

Floats = NDArray[np.float64]


def estimate_mean(paired: Sequence[Changes], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean improvement over tasks, with its normal and its bootstrap interval.

    Args:
        paired: the changes of each task, or the contrasts of two runs' changes; in the same metric.
        seed: of the draws; the same changes and seed give the same interval.
        resamples: number of draws.
    """
    low, high = interval(paired, seed=seed, resamples=resamples)
    return replace(average([estimate(each) for each in paired]), bootstrap_low=low, bootstrap_high=high)


def interval(
    paired: Sequence[Changes], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float | None, float | None]:
    """Ends of the interval of the mean over tasks; (None, None) where a task has a single unit."""
    units = [_units(each) for each in paired]
    if any(len(y) < 2 for y, _ in units):
        return None, None
    value = math.fsum(y.sum() / x.sum() for y, x in units) / len(units)
    draws = np.zeros(resamples)
    for index, (y, x) in enumerate(units):
        draws += _resample(y, x, resamples, np.random.default_rng((seed, index)))
    draws /= len(units)
    if math.isclose(draws.min(), draws.max(), rel_tol=1e-12, abs_tol=1e-15):
        return value, value
    low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _units(paired: Changes) -> tuple[Floats, Floats]:
    """Sums of deltas and of weights of each group."""
    codes = {group: code for code, group in enumerate(dict.fromkeys(paired.groups))}
    index = np.array([codes[group] for group in paired.groups])
    sums = [np.bincount(index, weights=each).astype(np.float64) for each in (paired.deltas, paired.weights)]
    return sums[0], sums[1]


def _resample(y: Floats, x: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """[resamples] ratios sum(y) / sum(x) over as many units as there are, drawn with replacement."""
    kinds, counts = np.unique(np.stack([y, x]), axis=1, return_counts=True)
    if len(counts) <= _FEW:
        sums = rng.multinomial(len(y), counts / len(y), size=resamples) @ kinds.T
        return np.asarray(sums[:, 0] / sums[:, 1])
    has_equal_weights = bool((x == x[0]).all())
    ratios = []
    for start in range(0, resamples, step := max(1, _CHUNK // len(y))):
        drawn = rng.integers(0, len(y), (min(step, resamples - start), len(y)))
        weight = x[0] * len(y) if has_equal_weights else x[drawn].sum(axis=1)
        ratios.append(y[drawn].sum(axis=1) / weight)
    return np.concatenate(ratios)
