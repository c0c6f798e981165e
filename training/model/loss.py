"""Cross-entropy as a sum over target tokens, to be divided once by the step's global number of targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE = -100
"""Label of a position that is no target."""


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of -log p(label) in nats, fp32, over positions whose label is not IGNORE.

    Shapes: logits (rows, seq_len, vocab), labels (rows, seq_len), already shifted: labels[:, i] is the target at i.
    Only the target positions are converted to fp32.
    """
    is_target = labels != IGNORE
    return F.cross_entropy(logits[is_target].float(), labels[is_target], reduction="sum")
