"""Keys and values of sequences of different lengths, which join and leave while others are being written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache

from evals.scoring.architecture import MASKED_ATTENTION

GROWTH = 64
"""Positions by which the memory grows at a time."""

ALIGNMENT = 8
"""The keys that a forward sees are a multiple of it; fused kernels want their masks aligned."""

OTHER_TYPES = ("bloom", "mpt", "mamba", "mamba2", "falcon_mamba", "rwkv")
"""Types of model without position ids, or without keys and values."""


def unsupported(config: Any, longest: int) -> list[str]:
    """Why a model with this configuration can't write sequences of up to `longest` tokens with a SlotCache."""
    found = []
    name = getattr(config, "model_type", "the model")
    attention = getattr(config, "_attn_implementation", None)
    if attention not in MASKED_ATTENTION:
        found.append(
            f"attention {attention!r} does not take the masks that writing in batches needs; load the model with "
            'attn_implementation="sdpa"'
        )
    has_window = getattr(config, "use_sliding_window", True)
    windows = [
        getattr(config, "sliding_window", None) if has_window else None,
        getattr(config, "attention_chunk_size", None),
    ]
    for window in windows:
        if window is not None and window < longest:
            found.append(
                f"attention of {name} sees {window} tokens at a time, and sequences of {longest} are to be written; lower "
                f"the model's length to {window} or less"
            )
    kinds = set(getattr(config, "layer_types", None) or ())
    is_other = name in OTHER_TYPES or getattr(config, "alibi", False)
    if is_other or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        found.append(
            f"{name} has layers without keys and values, or without positions, which can't be written in batches"
        )
    return found


def mask_for(attention: str, is_seen: Tensor) -> Tensor:
    """A mask [rows, 1, queries, keys] as an attention implementation takes it: "eager" adds it to its products."""
    if attention != "eager":
        return is_seen
    return torch.zeros_like(is_seen, dtype=torch.float32).masked_fill_(~is_seen, -torch.inf)


Prefix = list[tuple[Tensor, Tensor]]
"""Tokens that the model has read, for any number of sequences: keys and values of every layer, [heads, length, dim]."""


def prefixes(cache: DynamicCache, lengths: Sequence[int]) -> list[Prefix]:
    """What a forward over rows padded on the right has left in its cache.

    These are views; a prefix that outlives the others is to be `detached` from them.
    """
    return [
        [(layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cache.layers]
        for row, length in enumerate(lengths)
    ]


def detached(prefix: Prefix) -> Prefix:
    """A copy in memory of its own."""
    return [(keys.clone(), values.clone()) for keys, values in prefix]


class SlotCache(Cache):
    """The cache of a forward that gives every row one token more, each at a position of its own.

    Key and value of position p of row r are at [r, :, p] of a layer's tensors [rows, heads, capacity, dim], so rows need
    no padding on the left, and which keys a row sees follows from its position: those up to it. What lies behind is
    always finite: a masked NaN would still spoil the sum over values.
    """

    def __init__(self) -> None:
        """Begin without rows."""
        super().__init__(layers=[])
        self._layers: list[list[Tensor]] = []
        self._rows = torch.empty(0, dtype=torch.long)
        self._positions = self._rows
        self._width = 0

    def join(self, joining: Sequence[tuple[Prefix, int]]) -> None:
        """Append rows: each prefix as often as it says."""
        length = max(prefix[0][0].shape[1] for prefix, _ in joining)
        capacity = max(self._capacity, _rounded(length + 1, GROWTH))
        self._grow(capacity)
        for index in range(len(joining[0][0])):
            if index == len(self._layers):
                self._layers.append([])
            self._layers[index] = [
                _stacked([(prefix[index][part], copies) for prefix, copies in joining], capacity, old)
                for part, old in enumerate(self._layers[index] or (None, None))
            ]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        for index, layer in enumerate(self._layers):
            kept = torch.tensor(rows, dtype=torch.long, device=layer[0].device)
            self._layers[index] = [part.index_select(0, kept) for part in layer]

    def place(self, positions: Tensor, longest: int) -> Tensor:
        """Say where the next forward writes: `positions` int64 [rows], `longest` the largest of them.

        Returns:
            What each row sees, a boolean mask [rows, 1, 1, keys].
        """
        self._width = _rounded(longest + 1, ALIGNMENT)
        if self._width > self._capacity:
            self._grow(_rounded(self._width, GROWTH))
        self._positions = positions
        self._rows = torch.arange(len(positions), device=positions.device)
        keys = torch.arange(self._width, device=positions.device)
        return (keys <= positions[:, None])[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, 1, dim] of a layer; return all up to the longest row."""
        keys, values = self._layers[layer_idx]
        keys[self._rows, :, self._positions] = key_states[:, :, 0]
        values[self._rows, :, self._positions] = value_states[:, :, 0]
        return keys[:, :, : self._width], values[:, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Keys that a forward sees."""
        return self._width

    @property
    def _capacity(self) -> int:
        return self._layers[0][0].shape[2] if self._layers else 0

    def _grow(self, capacity: int) -> None:
        more = capacity - self._capacity
        for index, layer in enumerate(self._layers if more > 0 else ()):
            self._layers[index] = [F.pad(part, (0, 0, 0, more)) for part in layer]


def _stacked(parts: Sequence[tuple[Tensor, int]], capacity: int, old: Tensor | None) -> Tensor:
    """`old` [rows, heads, capacity, dim], and behind it each of the parts [heads, length, dim] so many times."""
    sample = parts[0][0]
    before = 0 if old is None else len(old)
    rows = before + sum(copies for _, copies in parts)
    result = sample.new_zeros(rows, sample.shape[0], capacity, sample.shape[2])
    if old is not None:
        result[:before] = old
    for part, copies in parts:
        result[before : before + copies, :, : part.shape[1]] = part
        before += copies
    return result


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
