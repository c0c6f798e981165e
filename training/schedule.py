"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from training.config import OptimConfig


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Fraction of the peak learning rate used by step `step` (0-based) of `steps`.

    Linear warm-up reaches 1 at `warmup_steps`. Then `linear` and `cosine` run to `final_lr_fraction` at `steps`, and
    `constant` stays at 1. `trapezoid` stays at 1 and `inverse_sqrt` falls as sqrt(t / (s + t)), s steps after warm-up with
    t = `inverse_sqrt_steps`, each until its last `cooldown_steps`: those go in a line from the value that is reached to
    `final_lr_fraction`. (llm-foundry's InverseSquareRootWithWarmup with alpha_f_decay = 1 is the trapezoid.)
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    since_warmup, final = step - config.warmup_steps, config.final_lr_fraction
    if config.schedule in ("constant", "trapezoid", "inverse_sqrt"):
        cooled = max(0, step - (steps - config.cooldown_steps))
        value = _before_cooldown(since_warmup - cooled, config)
        # So that the last step has exactly the final fraction: a rounding error below 0 would be a negative learning rate.
        part = cooled / config.cooldown_steps if cooled else 0.0
        return value * (1 - part) + final * part
    progress = since_warmup / max(1, steps - config.warmup_steps)
    shape = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (1 - final) * shape


def _before_cooldown(since_warmup: int, config: OptimConfig) -> float:
    """The factor `since_warmup` steps after warm-up, where no cooldown has begun."""
    if config.schedule != "inverse_sqrt":
        return 1.0
    return math.sqrt(config.inverse_sqrt_steps / (since_warmup + config.inverse_sqrt_steps))
