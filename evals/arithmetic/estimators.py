"""A ratio of sums over independent units, with its standard error; a mean is one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Z_95 = 1.959963984540054
"""Half-width of a 95 % interval in standard errors, by the normal approximation."""


def ratio(
    numerators: ArrayLike, denominators: ArrayLike, groups: Sequence[Hashable] | None = None
) -> tuple[float, float | None]:
    """The ratio estimator R = sum(y) / sum(x) over units (y_i, x_i), and its standard error.

    se(R) = sqrt(n / (n - 1) * sum((y_i - R x_i)^2)) / sum(x), the linearised variance (Cochran, Sampling
    Techniques, 6.2). With all x_i = 1, R is the mean and se(R) its usual standard error, s / sqrt(n).

    Args:
        numerators: y.
        denominators: x, with a positive sum.
        groups: units of the same group (questions about one document) depend on each other; y and x are summed within
            groups, and groups are the independent units. Default: every unit is its own group.

    Returns:
        (R, se). se is None for a single group, whose spread is unknown.
    """
    y = np.asarray(numerators, dtype=np.float64)
    x = np.asarray(denominators, dtype=np.float64)
    assert y.shape == x.shape == (y.size,), (y.shape, x.shape)
    assert y.size > 0, "no units"
    if groups is not None:
        codes = {group: code for code, group in enumerate(dict.fromkeys(groups))}
        index = [codes[group] for group in groups]
        y = np.bincount(index, weights=y).astype(np.float64)
        x = np.bincount(index, weights=x).astype(np.float64)
    value = y.sum() / x.sum()
    if y.size == 1:
        return float(value), None
    residual = y - value * x
    return float(value), float(np.sqrt(y.size / (y.size - 1) * (residual**2).sum()) / x.sum())
