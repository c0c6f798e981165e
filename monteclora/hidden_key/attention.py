"""DropKey and DropAttention as arithmetic on queries, keys, values and masks (arXiv 2403.00812).

With logits g, weights w = softmax(g) and m = 0 for a dropped key, 1 for a kept one::

    DropKey         w' = softmax(g + ln m)
    DropAttention   w' = m w / NoGrad(sum m w)         the same values, other gradients: `dropkey` sends none to dropped logits

A pattern that all queries share needs no matrix of queries x keys. It travels in additional channels of the heads, so
that any attention kernel can be used::

    DropKey         q' = [q, e / scale], k' = [k, b]   logits q' k' scale = g + b, with b = -OFFSET for a dropped key
    DropAttention   v' = [m v, m]                      the last channel of the output is the sum to divide by

Masks differ per query head also where several query heads share a key head: k' has one channel for each of them, and e
selects one. A query all of whose visible keys are dropped gets its undropped weights, with their gradients: a constant on
all its logits does not change a softmax, and a common factor does not change a normalised weight. So there is no row
without a visible key at any rate or length.

Shapes: query [batch, heads, queries, dim], key and value [batch, key heads, keys, dim], dropped [batch, heads, 1, keys]
(or [batch, heads, queries, keys] in the dense forms), True where dropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monteclora.distributions import wide

OFFSET = 256.0
"""What DropKey in channels takes off the logit of a dropped key. Its weight is exactly 0 in fp32 as long as its logit is
not more than 150 above those of the kept keys. A larger offset would cost precision in a row that is dropped
altogether: its logits are rounded at the size of the offset, to 2e-5 in fp32. A power of two, exact in all formats."""

FAINT = 2.0**-80
"""The m of a dropped key in normalised DropAttention: it vanishes beside a kept key of any weight that matters, and bf16
and fp32 have the range for it and for its inverse, which multiplies gradients of rows that are dropped altogether."""

HIDDEN_BELOW = -1e4
"""An additive mask of this or less hides the key."""


def with_key_bias(
    query: Tensor, key: Tensor, value: Tensor, dropped: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of an attention whose logits have `OFFSET` taken off where a key is dropped.

    The number of channels is a multiple of 8 and the same for all three, as fused kernels want it; the additional output
    channels are to be cut off. Give the kernel `scale` explicitly: it is not that of the larger number of channels.
    """
    batch, heads, _, dim = query.shape
    key_heads, num_keys = key.shape[1:3]
    group = heads // key_heads
    width = _multiple_of_8(max(dim + group, value.shape[-1]))
    extra = width - dim
    bias = key.new_zeros(batch, key_heads, num_keys, extra)
    bias[..., :group] = -OFFSET * dropped.view(batch, key_heads, group, num_keys).transpose(-1, -2)
    selector = query.new_zeros(heads, 1, extra)
    selector[..., :group] = torch.eye(group, device=query.device).repeat(key_heads, 1).unsqueeze(1) / scale
    query = torch.cat([query, selector.expand(*query.shape[:3], extra)], dim=-1)
    return query, torch.cat([key, bias], dim=-1), _padded(value, width)


def with_weighted_values(
    query: Tensor, key: Tensor, value: Tensor, dropped: Tensor, rescale: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of an attention whose output is sum m w v, with sum m w in the channel after that if `rescale`.

    Keys and values come out once per query head, fp16 as fp32, whose range is needed. The number of channels is a
    multiple of 8 and the same for all three; `normalized` makes the result from the output.
    """
    if query.dtype == torch.float16:
        query, key, value = query.float(), key.float(), value.float()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    m = kept_share(dropped, rescale).to(value.dtype).transpose(-1, -2)
    channels = [value * m, m] if rescale else [value * m]
    weighted = torch.cat(channels, dim=-1)
    width = _multiple_of_8(max(query.shape[-1], weighted.shape[-1]))
    return _padded(query, width), _padded(key, width), _padded(weighted, width)


def normalized(output: Tensor, dim: int, rescale: bool, dtype: torch.dtype) -> Tensor:
    """The first `dim` channels of an output [..., channels], divided by the one that follows if `rescale`."""
    if not rescale:
        return output[..., :dim].to(dtype)
    # A row that a mask hides altogether has the sum 0; a row dropped altogether has FAINT.
    total = wide(output[..., dim : dim + 1].detach()).clamp_min(FAINT / 2)
    return (wide(output[..., :dim]) / total).to(dtype)


def kept_share(dropped: Tensor, rescale: bool) -> Tensor:
    """The m of DropAttention in fp32: 1 for a kept key; for a dropped one 0, or `FAINT` if the sum is divided by."""
    return torch.where(dropped, FAINT if rescale else 0.0, 1.0)


def dropped_from_mask(mask: Tensor | None, dropped: Tensor, query: Tensor, is_causal: bool) -> Tensor:
    """An additive mask in the dtype of `query` that hides what `mask` hides and what is dropped: DropKey, dense form.

    Args:
        mask: [batch, 1 or heads, queries, keys], boolean (True is visible) or additive, or None.
        dropped: keys to drop; nothing is dropped in a row that would be left without a visible key.
        query: says the dtype.
        is_causal: without a mask, let a query see the keys up to its own index only.
    """
    additive = additive_mask(mask, query, dropped.shape[-1], is_causal)
    visible = additive > HIDDEN_BELOW
    has_kept = (visible & ~dropped).any(dim=-1, keepdim=True)
    return torch.where(dropped & has_kept, torch.finfo(query.dtype).min, additive)


def dense_drop_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropped: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    rescale: bool,
    is_causal: bool,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """DropAttention as it is written, with the matrix of weights; softmax and division in fp32.

    `dropout` is the rate of plain dropout on the weights afterwards. Masks are those of `dropped_from_mask`.

    Returns:
        Output [batch, queries, heads, dim] and weights [batch, heads, queries, keys].
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    logits = wide(query @ key.transpose(-1, -2)) * scale
    weights = torch.softmax(logits + additive_mask(mask, query, key.shape[2], is_causal), dim=-1)
    weights = weights * kept_share(dropped, rescale)
    if rescale:
        weights = weights / weights.sum(dim=-1, keepdim=True).detach()
    weights = F.dropout(weights, dropout).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def additive_mask(mask: Tensor | None, query: Tensor, num_keys: int, is_causal: bool) -> Tensor:
    """`mask` as numbers to add to logits, in the dtype of `query`; see `dropped_from_mask`."""
    if mask is None:
        mask = torch.ones(query.shape[2], num_keys, dtype=torch.bool, device=query.device)
        mask = (mask.tril() if is_causal else mask)[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def _multiple_of_8(channels: int) -> int:
    return -(-channels // 8) * 8


def _padded(tensor: Tensor, channels: int) -> Tensor:
    return F.pad(tensor, (0, channels - tensor.shape[-1]))
