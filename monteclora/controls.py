"""What the steps of a run decide for all layers of an adapter at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class Controls:
    """Read by every layer in its forward; written through the methods of `Adapter` only."""

    penalty_weight: float = 0.0
    """Factor on the penalty of every layer."""

    is_scheduled: bool = True
    """Whether the step is known, or nothing depends on it."""

    is_random: bool = True
    """Draw A while training; before the cooperative phase training is plain LoRA's."""

    freezes_low_rank: bool = False
    """Give A and B zero gradients, as in the cooperative phase of a post-hoc run."""

    sample: tuple[int, int] | None = None
    """Draw A from the posterior in evaluation too: the seed and the number of the draw."""
