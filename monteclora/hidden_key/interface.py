"""HiddenKey as an attention implementation of transformers, around the one a model had before.

`AttentionInterface` is asked for an implementation by its name in the model's config. The name says which one is inside
(`hidden_key_sdpa` around `sdpa`), so models with different ones live side by side and nothing is kept here. What a layer
drops lies on its attention module; a module without it, and one that drops nothing at the moment, is served by the inner
implementation with the arguments as they came.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from monteclora.errors import AdapterError
from monteclora.hidden_key.attention import (
    dense_drop_attention,
    dropped_from_mask,
    normalized,
    with_key_bias,
    with_weighted_values,
)
from monteclora.hidden_key.config import HiddenKeyConfig
from monteclora.hidden_key.layer import ATTRIBUTE, LayerDropout
from monteclora.hidden_key.patterns import draw_keys

PREFIX = "hidden_key_"

DENSE = ("eager", "sdpa")
"""Implementations that take a mask of queries x keys."""

_CHANGES_WEIGHTS = ("softcap", "s_aux", "position_bias")
"""Arguments with which some models change the logits or the sum of the weights."""


def register(inner_name: str) -> str:
    """Make HiddenKey around this implementation known to transformers, with its masks; return the name."""
    name = PREFIX + inner_name
    AttentionInterface.register(name, functools.partial(attend, inner_name))
    masks = AttentionMaskInterface()
    if inner_name in masks:
        AttentionMaskInterface.register(name, masks[inner_name])
    return name


def attend(
    inner_name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with dropped keys while training, by the implementation called `inner_name`.

    Args:
        inner_name: implementation to use.
        module: the attention module; its `hidden_key` says what to drop.
        query: [batch, heads, queries, dim].
        key: [batch, key heads, keys, dim].
        value: [batch, key heads, keys, dim].
        attention_mask: whatever the implementation takes.
        scaling: factor on the products of queries and keys; 1 / sqrt(dim) if None.
        dropout: rate of the model's own dropout on attention weights.
        kwargs: anything else the model has for its attention, `position_ids` for one.

    Returns:
        Output [batch, queries, heads, dim], and the weights if the implementation gives them.

    Raises:
        AdapterError: the model or the implementation does something that dropping keys does not combine with.
    """
    layer: LayerDropout | None = getattr(module, ATTRIBUTE, None)
    if layer is not None:
        layer.position_ids = kwargs.get("position_ids")
        dropout = dropout if layer.config.other_dropout == "kept" else 0.0
    view = Overlay(module, config=Overlay(module.config, _attn_implementation=inner_name))
    inner = functools.partial(inner_attention(module, inner_name), dropout=dropout, **kwargs)
    if layer is None or not (module.training and layer.drops_keys):
        return inner(view, query, key, value, attention_mask, scaling=scaling)

    config = layer.config
    _refuse_unsupported(inner_name, module, query, config, kwargs)
    dim, dtype = value.shape[-1], query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropped = draw_keys(config.key_pattern, config.key_rate, query, key.shape[2], layer.position_ids)
    # `eager` has the dense matrix anyway, and in half precision it would round the logits at the size of the offset.
    is_dense = config.key_pattern == "element" or inner_name == "eager"
    is_causal = inner_name == "sdpa" and query.shape[2] > 1 and _is_causal(module, kwargs)
    if config.key_method == "dropkey" and is_dense:
        mask = dropped_from_mask(attention_mask, dropped, query, is_causal)
        return inner(view, query, key, value, mask, scaling=scale)
    if config.key_method == "dropkey":
        query, key, value = with_key_bias(query, key, value, dropped, scale)
        output, weights = inner(view, query, key, value, attention_mask, scaling=scale)
        return output[..., :dim], weights
    if is_dense:
        return dense_drop_attention(
            query, key, value, dropped, attention_mask,
            scale=scale, rescale=config.rescale, is_causal=is_causal, dropout=dropout,
        )  # fmt: skip
    query, key, value = with_weighted_values(query, key, value, dropped, config.rescale)
    per_query_head = Overlay(view, num_key_value_groups=1)
    output, weights = inner(per_query_head, query, key, value, attention_mask, scaling=scale)
    return normalized(output, dim, config.rescale, dtype), weights


def inner_attention(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function with this name; `eager` is the one beside the class of the module.

    Raises:
        AdapterError: there is none.
    """
    if name != "eager":
        return AttentionInterface()[name]
    for owner in type(module).__mro__:
        if function := getattr(sys.modules.get(owner.__module__), "eager_attention_forward", None):
            return function
    raise AdapterError(
        f"{type(module).__name__} has no eager_attention_forward beside it; use attn_implementation sdpa for this model"
    )


class Overlay:
    """An object seen with some attributes replaced, for functions that read their settings off a module."""

    def __init__(self, target: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_target"] = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _refuse_unsupported(
    inner_name: str, module: nn.Module, query: Tensor, config: HiddenKeyConfig, kwargs: dict[str, Any]
) -> None:
    if found := [name for name in _CHANGES_WEIGHTS if kwargs.get(name) is not None]:
        raise AdapterError(
            f"{type(module).__name__} uses {found[0]}, which dropping keys does not combine with; set key_rate to 0"
        )
    if config.key_method == "dropattention" and query.dtype == torch.float16 and inner_name not in DENSE:
        raise AdapterError(
            f"key_method dropattention needs the range of bf16 or fp32, and {inner_name} computes in fp16; train in bf16, "
            "or use the attention implementation sdpa"
        )


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    is_causal = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
