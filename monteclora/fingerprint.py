"""Which base an adapter belongs to: a hash of the frozen weights it was trained beside."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from monteclora.adapter import Adapter

NUM_VALUES = 256
"""Values of a weight that enter its hash, evenly spaced over it."""

Gather = Callable[[Tensor], contextlib.AbstractContextManager[Any]]
"""Opens a context in which a sharded parameter is whole, and which keeps what is written into it on all ranks."""


def base_fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Hash weights by name, shape and `NUM_VALUES` of their values: SHA-256, in hexadecimal.

    Weights are looked at one at a time and may come in any order. Values are rounded to bf16 first, so that a model in
    fp32 and the same model rounded to bf16 have one fingerprint; fp16 rounds otherwise.

    Args:
        weights: names and whole weights, of any shape and on any device.
    """
    entries = sorted(f"{name} {list(weight.shape)} {_hash_of_values(weight)}" for name, weight in weights)
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def adapter_fingerprint(adapter: Adapter, gather: Gather | None = None) -> str | None:
    """Fingerprint of the frozen weights of the adapted layers; None where they hold no values.

    Args:
        adapter: attached and not merged.
        gather: makes sharded weights whole one at a time; None where they are whole, or nobody can gather them.
    """
    weights = frozen_weights(adapter)
    if gather is None:
        return base_fingerprint(weights.items()) if all(map(is_whole, weights.values())) else None
    return base_fingerprint(_gathered(weights, gather))


def frozen_weights(adapter: Adapter) -> dict[str, Tensor]:
    """The weights of the adapted layers, under the names they have in the model without its adapter."""
    return {f"{name}.weight": layer.weight for name, layer in adapter.layers.items()}


def is_whole(weight: Tensor) -> bool:
    """Whether the values are there: sharded weights are empty, those on the meta device have nothing but a shape."""
    return weight.numel() > 0 and not weight.is_meta


def _gathered(weights: dict[str, Tensor], gather: Gather) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights.items():
        with gather(weight):
            yield name, weight


def _hash_of_values(weight: Tensor) -> str:
    flat = weight.detach().reshape(-1)
    count = min(NUM_VALUES, len(flat))
    chosen = torch.arange(count, device=flat.device) * len(flat) // max(1, count)
    values = flat[chosen].to(device="cpu", dtype=torch.bfloat16)
    return hashlib.sha256(values.view(torch.int16).numpy().astype("<i2").tobytes()).hexdigest()
