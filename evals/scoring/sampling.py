"""The next token of every sequence: the likeliest, or one drawn, by numbers that depend on the sequence alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOT_FINITE = -1
"""Instead of a token id where the logits say nothing: one is NaN or +inf, or all are -inf."""


_FEW = 64
"""Likeliest tokens among which a nucleus is looked for before all are sorted."""


def sequence_key(seed: int, ids: Sequence[int], sample: int) -> int:
    """64 bits that name a sample of a prompt; `uniforms` draws its numbers from them."""
    text = f"{seed} {sample} {' '.join(map(str, ids))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(keys: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """The number in [0, 1) that draws token `positions[i]` of the sequence with `keys[i]`.

    It is output number `position` of SplitMix64 (Steele, Lea, Flood 2014) started at the key: a hash of the two, so that
    no state has to follow a sequence from one batch to another.
    """
    z = np.array(keys, np.uint64) + (np.array(positions, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def choose(logits: Tensor, *, temperature: Tensor, top_p: Tensor, top_k: Tensor, uniform: Tensor) -> Tensor:
    """The next token of each row.

    Where the temperature is 0 it is the likeliest, the first of equals. Elsewhere it is drawn from
    softmax(logits / temperature), restricted to the `top_k` likeliest tokens and, among those, to the smallest set with a
    probability of at least `top_p` (nucleus sampling, arXiv 1904.09751), by inverting the distribution function over token
    ids at `uniform`. In that order rounding hardly ever changes the outcome, as it would among nearly equal tokens
    sorted by probability. Tokens as likely as the last of a set belong to it.

    Args:
        logits: [rows, vocabulary].
        temperature: [rows], 0 for the likeliest token.
        top_p: [rows], in (0, 1].
        top_k: [rows], integers, 0 for all.
        uniform: [rows], fp64 in [0, 1).

    Returns:
        int64 [rows], token ids, NOT_FINITE where logits are not.
    """
    logits = logits.float()
    best, chosen = logits.max(dim=-1)
    drawn = torch.nonzero(temperature > 0).flatten()
    if len(drawn):
        scaled = logits[drawn] / temperature[drawn, None]
        probabilities = torch.softmax(scaled, dim=-1)
        chosen[drawn] = _invert(restrict(probabilities, top_p[drawn], top_k[drawn]), uniform[drawn])
    return chosen.masked_fill(~best.isfinite(), NOT_FINITE)


def restrict(probabilities: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Probabilities [rows, vocabulary] with 0 for the tokens that `top_k` and `top_p` [rows] leave out; not normalized."""
    if not bool(((top_p < 1) | (top_k > 0)).any()):
        return probabilities
    ranked = probabilities.topk(min(_FEW, probabilities.shape[-1]), dim=-1).values
    threshold, is_known = _threshold(ranked, top_p, top_k)
    if not bool(is_known.all()):
        threshold, _ = _threshold(probabilities.sort(dim=-1, descending=True).values, top_p, top_k)
    return probabilities.masked_fill(probabilities < threshold, 0)


def _threshold(ranked: Tensor, top_p: Tensor, top_k: Tensor) -> tuple[Tensor, Tensor]:
    """The least probability that is kept [rows, 1], and whether the likeliest tokens `ranked` [rows, some] are enough to know."""
    some = ranked.shape[-1]
    cumulated = ranked.cumsum(dim=-1, dtype=torch.float64)
    last = torch.where(top_k > 0, top_k, some).clamp(max=some)[:, None] - 1
    wanted = top_p[:, None] * torch.where(top_k[:, None] > 0, cumulated.gather(-1, last), 1.0)
    # A token is in the nucleus as long as those before it do not reach top_p.
    size = (cumulated - ranked < wanted).sum(dim=-1, keepdim=True)
    threshold = ranked.gather(-1, torch.minimum(size - 1, last).clamp(min=0))
    is_all = (top_p >= 1) & (top_k == 0)
    is_known = is_all | ((top_k > 0) & (top_k <= some)) | ((top_k == 0) & (cumulated[:, -1:] >= wanted).squeeze(-1))
    return threshold.masked_fill(is_all[:, None], 0), is_known


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    cumulated = probabilities.cumsum(dim=-1, dtype=torch.float64)
    is_beyond = (cumulated > uniform[:, None] * cumulated[:, -1:]) & (probabilities > 0)
    # The first that is; without one (rounding, NaN) the likeliest.
    return torch.where(is_beyond.any(dim=-1), is_beyond.int().argmax(dim=-1), probabilities.argmax(dim=-1))
