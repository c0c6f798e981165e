"""Find the layers of a transformers model: their attention, and where the feed-forward output comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from monteclora.errors import AdapterError

SITES = {
    ("self_attn", "mlp"): "LLaMA",
    ("attn", "mlp"): "GPT-2",
    ("attention.self", "output.dropout"): "BERT, RoBERTa",
    ("attention", "ffn"): "DistilBERT",
}
"""Paths inside a layer, of the attention module and of the module whose output is the feed-forward output before the
residual sum, and where they are found."""


@dataclass(frozen=True, kw_only=True)
class LayerSites:
    """The two modules of one layer at which HiddenKey acts."""

    attention: Any
    """A module that asks transformers' AttentionInterface for its function, with the `config` that names it."""

    feed_forward: nn.Module
    """The module whose output [batch, tokens, features] is the feed-forward output before the residual sum."""


def find_layers(model: PreTrainedModel) -> list[LayerSites]:
    """The layers of the only stack in `model`, in order.

    Raises:
        AdapterError: no stack of layers with the known module names, or more than one.
    """
    stacks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            layers = [sites for layer in module if (sites := _sites(layer)) is not None]
            if layers and len(layers) == len(module):
                stacks[name] = layers
    if len(stacks) > 1:
        raise AdapterError(
            f"{type(model).__name__} has several stacks of layers ({', '.join(stacks)}); attach HiddenKey to the part of "
            "the model that holds one"
        )
    if not stacks or not model._can_set_attn_implementation():
        known = "; ".join(f"{attention} and {output} ({family})" for (attention, output), family in SITES.items())
        raise AdapterError(
            f"{type(model).__name__} has no stack of layers that HiddenKey knows; it looks for a ModuleList whose layers "
            f"hold {known}, with attention that goes through transformers' AttentionInterface"
        )
    return next(iter(stacks.values()))


def _sites(layer: nn.Module) -> LayerSites | None:
    for attention_path, output_path in SITES:
        attention, output = _submodule(layer, attention_path), _submodule(layer, output_path)
        # A hook on a linear would be lost when an adapter takes its place.
        if attention is not None and output is not None and not isinstance(output, nn.Linear):
            return LayerSites(attention=attention, feed_forward=output)
    return None


def _submodule(layer: nn.Module, path: str) -> nn.Module | None:
    try:
        return layer.get_submodule(path)
    except AttributeError:
        return None
