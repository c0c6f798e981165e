"""What is left of a run's time when machines fail: Young's model of checkpoints (Comm. ACM 17, 1974).

With k nodes of a mean time between failures M each, something fails every F = M / k. No step is taken while a checkpoint is
written (training.saving): every T seconds of steps the run stands still for C, until all ranks have copied their slices to
the host, written them to storage and hashed them. A failure costs what was done since the last complete checkpoint,
(T + C) / 2 on average, and a restart R::

    goodput = T / (T + C) / (1 + ((T + C) / 2 + R) / F)            optimal T = sqrt(2 C (F + R) + C^2)

which is Young's sqrt(2 C F) where C and R are short beside F.
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
    """That a checkpoint holds the run up, until it is complete."""
    restart: float
    """From a failure until steps are taken again."""

    def goodput(self, interval: float) -> float:
        """Part of the time in which steps are taken that count, with a checkpoint every `interval` seconds."""
        lost = (interval + self.stall) / 2 + self.restart
        return interval / (interval + self.stall) / (1 + lost / self.between)

    def best_interval(self) -> float:
        """Seconds between checkpoints with which the most is left."""
        return math.sqrt(2 * self.stall * (self.between + self.restart) + self.stall**2)
