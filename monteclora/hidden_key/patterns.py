"""What is dropped: random masks in three patterns, for keys of attention and for hidden features.

Masks are True where something is dropped. They are drawn from torch's default generator of the device at the moment of
use: whoever seeds it decides the draw, and recomputation of activations, which restores it, replays the draw. No
function here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monteclora.hidden_key.config import Pattern


def draw_keys(
    pattern: Pattern, rate: float, query: Tensor, num_keys: int, position_ids: Tensor | None = None
) -> Tensor:
    """Keys to drop, independent over samples and query heads, for queries [batch, heads, queries, dim].

    Args:
        pattern: `column` and `span` give [batch, heads, 1, keys], the same for all queries; `element` gives
            [batch, heads, queries, keys].
        rate: probability of each key to be dropped, in [0, 1).
        query: says batch, heads, queries and device.
        num_keys: number of keys.
        position_ids: positions [batch or 1, keys] that restart in every document of a row, for `span`. Without them, or
            where they do not fit the keys, a row is one document.
    """
    batch, heads, num_queries, _ = query.shape
    if pattern == "span":
        return draw_spans(batch, heads, num_keys, rate, position_ids, query.device).unsqueeze(2)
    rows = 1 if pattern == "column" else num_queries
    return torch.rand(batch, heads, rows, num_keys, device=query.device) < rate


def draw_features(pattern: Pattern, rate: float, hidden: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Parts of hidden [batch, tokens, features] to drop, as a mask that broadcasts to it.

    `element`: [batch, tokens, features]. `column`: [batch, 1, features], the same features for all tokens of a row.
    `span`: [batch, tokens, 1], one run of tokens per document (see `draw_keys` for position_ids).
    """
    batch, tokens, features = hidden.shape
    if pattern == "span":
        return draw_spans(batch, 1, tokens, rate, position_ids, hidden.device).transpose(1, 2)
    rows = 1 if pattern == "column" else tokens
    return torch.rand(batch, rows, features, device=hidden.device) < rate


def draw_spans(
    batch: int, heads: int, length: int, rate: float, position_ids: Tensor | None, device: torch.device
) -> Tensor:
    """One run of neighbouring tokens per document and head, as a mask [batch, heads, length].

    In a document of n tokens the run has floor(n * rate) or one more token, at random so that the mean is n * rate, and
    every place for it is equally likely.
    """
    first, size = document_bounds(length, position_ids, device)
    first, size = first.expand(batch, length), size.expand(batch, length)
    # A document uses the draw that lies at its first token.
    draws = torch.rand(2, batch, heads, length, device=device).gather(-1, first[None, :, None].expand(2, -1, heads, -1))
    first, size = first.unsqueeze(1), size.unsqueeze(1)
    width = (size * rate + draws[0]).floor()
    start = (draws[1] * (size - width + 1)).floor()
    place = torch.arange(length, device=device) - first
    return (place >= start) & (place < start + width)


def document_bounds(length: int, position_ids: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index of the first token, and number of tokens, of every token's document: two [batch or 1, length].

    A document begins wherever a position is not the previous one plus 1, as in transformers' masks of packed rows.
    """
    index = torch.arange(length, device=device)
    begins = (index == 0).unsqueeze(0)
    if position_ids is not None and position_ids.ndim == 2 and position_ids.shape[-1] == length:
        begins = torch.diff(position_ids, prepend=position_ids[:, :1], dim=-1) != 1
    ends = begins.roll(-1, dims=-1)
    first = torch.where(begins, index, 0).cummax(dim=-1).values
    last = torch.where(ends, index, length).flip(-1).cummin(dim=-1).values.flip(-1)
    return first, last - first + 1
