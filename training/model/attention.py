"""Attention of packed rows: every query sees the keys of its own document up to itself, and no S x S mask is made for it.

Importing this module makes the implementation known to transformers as `ATTENTION`. It is deliberately not among the
AttentionMaskInterface: for an implementation without masks transformers makes none, and does not look for documents in
the positions, which would make the host wait for the device. The boundaries come with the call instead, as
`cu_seq_lens_q`: int32 (documents + 1,), where documents begin in the flattened rows * seq_len tokens, and where the last
one ends. Ends of rows are boundaries, too.

On CUDA that is one kernel (torch.nn.attention.varlen). On the CPU it is one call of scaled_dot_product_attention per run
of equally long documents: fused, and proportional to the sum of squared document lengths.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from monteclora import HiddenKeyConfig
from training.errors import ModelError

ATTENTION = "palimpsest"
"""Name of the implementation, for `attn_implementation`. It is a setting of a process: no file names it."""

KERNEL_DTYPES = (torch.bfloat16, torch.float16)
MAX_KERNEL_DIM = 256
"""What the CUDA kernel takes: half precision, heads of a multiple of 8 and at most 256 channels."""

_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Arguments with which models other than LLaMA change who sees whom, or the weights."""

_KERNEL_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether the kernel shares key heads among query heads; not yet in torch 2.11."""


def attention_for(hidden_key: HiddenKeyConfig | None) -> str:
    """The attention implementation to train with: ours, or `sdpa` where HiddenKey needs a mask of queries x keys."""
    needs_mask = hidden_key is not None and hidden_key.key_rate > 0 and hidden_key.key_pattern == "element"
    return "sdpa" if needs_mask else ATTENTION


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention, as transformers calls it.

    Without `cu_seq_lens_q` a row is one document, padded on the right if at all; its queries are the last of the keys,
    so that a key-value cache works.

    Args:
        module: the attention module.
        query: [rows, heads, queries, dim].
        key: [rows, key heads, keys, dim]; key heads divides heads.
        value: like key; its dim may differ.
        attention_mask: None, or [rows, 1 or heads, queries, keys], boolean or additive, which then says everything.
        scaling: factor on the products of queries and keys; 1 / sqrt(dim) if None.
        dropout: rate of dropout on attention weights.
        cu_seq_lens_q: boundaries of the documents.
        max_length_q: tokens of the longest document, for the CUDA kernel; the number of queries if None.
        position_ids: positions of the queries, to see rows that need `cu_seq_lens_q` and come without.
        kwargs: anything else the model has for its attention.

    Returns:
        Output [rows, queries, heads, dim], and no weights.

    Raises:
        ModelError: the model's attention has what LLaMA's does not.
        ValueError: packed rows, or rows padded on the left, without `cu_seq_lens_q`.
    """
    if found := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise ModelError(f"{type(module).__name__} uses {found[0]}, which attention {ATTENTION!r} does not have")
    if attention_mask is not None:
        output = _dense(query, key, value, attention_mask, scaling, dropout)
    elif cu_seq_lens_q is None:
        if getattr(module, "layer_idx", 0) == 0:
            _check_whole_rows(position_ids, query.shape[2])
        output = _whole_rows(query, key, value, scaling, dropout)
    elif query.device.type == "cpu":
        output = _documents(query, key, value, cu_seq_lens_q, scaling, dropout)
    elif fits_kernel(query, value, dropout):
        output = _kernel(query, key, value, cu_seq_lens_q, max_length_q or query.shape[2], scaling)
    else:
        mask = document_mask(cu_seq_lens_q, query.shape[0], query.shape[2])
        output = _dense(query, key, value, mask, scaling, dropout)
    return output, None


def fits_kernel(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the CUDA kernel can do it; else a mask is made, without waiting for the device."""
    dim = query.shape[-1]
    return query.dtype in KERNEL_DTYPES and dim == value.shape[-1] <= MAX_KERNEL_DIM and dim % 8 == 0 and dropout == 0


def document_mask(cu_seqlens: Tensor, rows: int, seq_len: int) -> Tensor:
    """What each query sees, as a boolean mask [rows, 1, queries, keys]; for the few cases without a kernel."""
    index = torch.arange(rows * seq_len, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    document = torch.bucketize(index, cu_seqlens, right=True).view(rows, 1, seq_len)
    return (document.unsqueeze(-1) == document.unsqueeze(-2)).tril()


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scaling: float | None
) -> Tensor:
    if not _KERNEL_HAS_GQA:
        key, value = _per_query_head(query, key), _per_query_head(query, value)
    options: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    # The window (-1, 0) is causal: all keys before the query, none behind it.
    output: Any = varlen_attn(
        _flattened(query), _flattened(key), _flattened(value), cu_seqlens, cu_seqlens, max_length, max_length,
        scale=scaling, window_size=(-1, 0), **options,
    )  # fmt: skip
    result: Tensor = output.unflatten(0, (query.shape[0], query.shape[2]))
    return result


@torch.compiler.disable
def _documents(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """Documents one after the other; a run of equally long ones, such as rows of one document each, is a batch."""
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    runs = [(len(list(group)), length) for length, group in itertools.groupby(lengths)]
    # Not slices: the backward of each would fill a tensor of all tokens.
    parts = (_flattened(x).split([count * length for count, length in runs]) for x in (query, key, value))
    outputs = []
    for run, *part in zip(runs, *parts, strict=True):
        q, k, v = (x.unflatten(0, run).transpose(1, 2) for x in part)
        outputs.append(_whole_rows(q, k, v, scaling, dropout).flatten(0, 1))
    return torch.cat(outputs).unflatten(0, (query.shape[0], query.shape[2]))


def _flattened(x: Tensor) -> Tensor:
    """[rows, heads, seq_len, dim] as [rows * seq_len, heads, dim]."""
    return x.transpose(1, 2).flatten(0, 1)


def _whole_rows(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if 1 < queries < keys:
        # is_causal would let the first query see the first key only.
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return _dense(query, key, value, mask, scaling, dropout, is_causal=queries == keys > 1)


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    is_causal: bool = False,
) -> Tensor:
    if mask is not None:
        # Fused kernels that take a mask do not share key heads.
        key, value = _per_query_head(query, key), _per_query_head(query, value)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output.transpose(1, 2)


def _per_query_head(query: Tensor, x: Tensor) -> Tensor:
    """Keys or values once per query head."""
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _check_whole_rows(position_ids: Tensor | None, queries: int) -> None:
    """Refuse what would be computed wrong in silence; outside training the host may wait."""
    if position_ids is None or queries < 2 or torch.compiler.is_compiling():
        return
    if bool((position_ids.diff(dim=-1) != 1).any()):
        raise ValueError(
            f"attention {ATTENTION!r} got rows whose positions restart: packed rows need cu_seq_lens_q, and rows padded on "
            'the left another implementation (model.set_attn_implementation("sdpa"))'
        )


AttentionInterface.register(ATTENTION, attend)
