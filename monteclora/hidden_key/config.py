"""The settings of HiddenKey: plain values, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from monteclora.settings import type_problems

KeyMethod = Literal["dropkey", "dropattention"]
Pattern = Literal["element", "column", "span"]
Compensation = Literal["none", "kl", "js"]
Layers = Literal["auto", "all", "upper_half"]
OtherDropout = Literal["off", "kept"]


@dataclass(frozen=True, kw_only=True)
class HiddenKeyConfig:
    """Dropout in attention and on the feed-forward output, with a compensation of the gap between training and
    inference (arXiv 2403.00812). The defaults are HiddenKey: column DropKey, element HiddenCut, bidirectional KL.
    """

    key_rate: float = 0.1
    """Probability of dropping a key in attention while training; 0 switches dropping in attention off."""

    key_method: KeyMethod = "dropkey"
    """`dropkey` takes dropped keys out before the softmax. `dropattention` zeroes their weights after it: the same
    output, other gradients."""

    key_pattern: Pattern = "column"
    """What is dropped together, independently for every sample, query head and layer. `column`: a key for all queries.
    `span`: one run of neighbouring keys per document, for all queries. `element`: each pair of query and key for itself,
    which needs memory for queries x keys and the attention implementation `sdpa` or `eager`."""

    hidden_rate: float = 0.1
    """Probability of dropping a part of the feed-forward output while training; 0 switches HiddenCut off."""

    hidden_pattern: Pattern = "element"
    """What is dropped together. `element`: each feature of each token for itself. `column`: a feature for all tokens of
    a row. `span`: all features of one run of neighbouring tokens per document."""

    rescale: bool = True
    """Make up for what was dropped: 1 / (1 - hidden_rate) on the kept feed-forward output, and attention weights that
    sum to 1 under `dropattention` (`dropkey` always gives such weights)."""

    compensation: Compensation = "kl"
    """Divergence added to the loss. `kl`: symmetric, between two stochastic passes. `js`: from a stochastic pass to one
    in evaluation mode, without any dropout or adapter noise. `none`: no second pass."""

    compensation_weight: float = 1.0
    """Factor on the divergence, which is in nats; the paper tries 0.01 to 10."""

    both_branches: bool = False
    """Back-propagate through both passes of `kl`, best as one forward of the rows repeated: in two forwards an adapter's
    penalty joins the gradients in each, and needs half its weight (`Adapter.set_penalty_weight(1 / 2)`). Off, the second
    pass is a constant and needs no activations, as in the paper."""

    layers: Layers = "auto"
    """Layers that drop. `upper_half`: index >= number of layers / 2. `auto`: the upper half of a decoder, all layers of
    an encoder."""

    other_dropout: OtherDropout = "off"
    """`off` disables the model's own dropout, as the paper does; `kept` leaves it on, except where HiddenCut stands in
    its place. An adapter's `dropout` is a setting of the adapter, which this leaves alone; the paper trains without it."""

    @property
    def has_compensation(self) -> bool:
        """Whether the loss needs a second pass."""
        return self.compensation != "none" and self.compensation_weight > 0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field name, what is wrong and what to do) for every value of a wrong type, else for every one out of range."""
        if wrong := list(type_problems(self)):
            yield from wrong
            return
        for field in ("key_rate", "hidden_rate"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                yield field, f"is {value}; give a probability in [0, 1), 0 switches it off"
        if not (math.isfinite(self.compensation_weight) and self.compensation_weight >= 0):
            yield "compensation_weight", f"is {self.compensation_weight}; give 0 (off) or a positive number"
        for field, choices in _CHOICES.items():
            if (value := getattr(self, field)) not in get_args(choices):
                yield field, f"is {value!r}; choose {' or '.join(f'`{choice}`' for choice in get_args(choices))}"
        if self.both_branches and self.compensation != "kl":
            yield "both_branches", "is on, but only the compensation `kl` has two stochastic passes; switch it off"


_CHOICES = {
    "key_method": KeyMethod,
    "key_pattern": Pattern,
    "hidden_pattern": Pattern,
    "compensation": Compensation,
    "layers": Layers,
    "other_dropout": OtherDropout,
}
