"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from training.config import OptimConfig


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Fraction of the peak learning rate used by step `step` (0-based) of `steps`.

    Linear warm-up reaches 1 at `warmup_steps`; then the chosen shape runs to `final_lr_fraction` at `steps`.
    The trapezoid is flat and falls linearly over its last `cooldown_steps`.
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    final = config.final_lr_fraction
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "trapezoid":
        left = steps - step
        return final + (1 - final) * min(1.0, left / config.cooldown_steps)
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    shape = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (1 - final) * shape
