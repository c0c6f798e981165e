"""What is left of a run's time when machines fail and checkpoints take time to be complete.

With k nodes of a mean time between failures M each, something fails every F = M / k on average, at any moment alike. Every T
seconds of steps the run stands still for S, while its state is copied; the copy is complete on storage W later, and the next
save waits for it. So copies are P = S + max(T, W) apart. A start takes T + S + W to its first checkpoint and P to each further
one, reaches the j-th with probability exp(-(T + S + W + (j - 1) P) / F), and lasts F on average, after which a restart takes R.
Each of these checkpoints makes T seconds of steps count, which add up, as a geometric series, to ::

    goodput = T exp(-(T + S + W) / F) / (1 - exp(-P / F)) / (F + R)

As long as T < W it grows with T, up to F: the writer is what sets the pace, and more steps fit between two copies. From W on it
is largest where T = F (1 - exp(-(T + S) / F)), whatever W and R are.

    F long beside the rest    T / (T + S) / (1 + ((T + S) / 2 + W + R) / F): a failure costs half an interval, what was being
                              written, and the restart; the best T is sqrt(2 S F) (Young, Comm. ACM 17, 1974)
    nothing fails             T / P
    a save without a copy     all of it is S, and W = 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How often and how long, in seconds."""

    between: float
    """Mean time between failures of the whole cluster."""
    stall: float
    """That a checkpoint holds the run up."""
    write: float
    """From then until it is complete, while steps are taken."""
    restart: float
    """From a failure until steps are taken again; nothing fails in it."""

    def goodput(self, interval: float) -> float:
        """Part of the time in which steps are taken that count, with a checkpoint after every `interval` seconds of steps."""
        to_first, apart = interval + self.stall + self.write, self.stall + max(interval, self.write)
        reached = math.exp(-to_first / self.between) / -math.expm1(-apart / self.between)
        return interval * reached / (self.between + self.restart)

    def best_interval(self) -> float:
        """Seconds of steps between checkpoints with which the most is left."""
        interval = math.sqrt(2 * self.stall * self.between)
        # Newton's method, which comes down to the zero of a convex function.
        for _ in range(20 if interval else 0):
            survives = math.exp(-(interval + self.stall) / self.between)
            over = interval + self.between * math.expm1(-(interval + self.stall) / self.between)
            interval -= over / (1 - survives)
        return max(interval, min(self.write, self.between))
