"""Model FLOPs of a token and the peak of the device, for the fraction of the peak that a run uses (MFU)."""

from __future__ import annotations

from typing import Any

import torch

PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 FLOP/s by a part of the device's name (vendor data sheets)."""


def flops_per_token(
    parameters: dict[str, int], shape: Any, seq_len: int, *, forwards: int = 1, backwards: int = 1
) -> float:
    """FLOPs of one token in so many forward and backward passes, without recomputation; attention counted causal.

    A weight costs 2 FLOPs per token in a forward pass, 2 for the gradient of its input and, if it trains, 2 for its
    own gradient. The input embedding is a lookup. `parameters` has total and trainable, `shape` is the model's config.
    """
    embedding = shape.vocab_size * shape.hidden_size
    in_matmuls = parameters["total"] - (0 if shape.tie_word_embeddings else embedding)
    trained = min(parameters["trainable"], in_matmuls)
    attention = 2 * shape.num_hidden_layers * shape.hidden_size * seq_len
    forward = 2 * in_matmuls + attention
    backward = 2 * in_matmuls + 2 * trained + 2 * attention
    return forwards * forward + backwards * backward


def peak_flops(device: torch.device) -> float | None:
    """bf16 FLOP/s of the device, or None when it isn't a known GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)
