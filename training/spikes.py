"""When a loss is a spike: far above the losses before it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def is_spike(loss: float, recent: Sequence[float], *, deviations: float, window: int) -> bool:
    """Whether a loss exceeds the mean of `recent`, the losses before it, by so many of their standard deviations.

    With fewer than `window` losses, and with `deviations` 0, nothing is. Losses are compared in nats; a step of less than
    a thousandth of the mean is never a spike, or a run that has converged would see them in rounding errors.
    """
    if deviations == 0 or len(recent) < window or not math.isfinite(loss):
        return False
    mean = statistics.fmean(recent)
    return loss > mean + max(deviations * statistics.pstdev(recent), 1e-3 * mean)


def remembered(recent: Sequence[float], loss: float, window: int) -> list[float]:
    """The losses to compare the next one with."""
    return [*recent, loss][-window:]
