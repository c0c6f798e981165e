"""HiddenCut: parts of the feed-forward output are zeroed (arXiv 2106.00149; patterns of arXiv 2403.00812)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from monteclora.hidden_key.config import Pattern
from monteclora.hidden_key.patterns import draw_features


def hidden_cut(
    hidden: Tensor, rate: float, pattern: Pattern, rescale: bool = True, position_ids: Tensor | None = None
) -> Tensor:
    """Zero a random part of hidden [batch, tokens, features], and divide the rest by 1 - rate if `rescale`.

    Args:
        hidden: output of the feed-forward block, before the residual sum.
        rate: probability of each element to be zeroed, in [0, 1).
        pattern: what is zeroed together, see `draw_features`.
        rescale: keep the mean.
        position_ids: positions [batch or 1, tokens] that restart in every document, for `span`.
    """
    if pattern == "element" and rescale:
        return F.dropout(hidden, rate)
    kept = hidden.masked_fill(draw_features(pattern, rate, hidden, position_ids), 0.0)
    return kept / (1 - rate) if rescale else kept
