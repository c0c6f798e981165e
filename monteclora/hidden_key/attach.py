"""Put HiddenKey on a model of transformers, and take it off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from monteclora.errors import AdapterError
from monteclora.hidden_key.compensation import bidirectional_kl, one_sided_js
from monteclora.hidden_key.config import HiddenKeyConfig
from monteclora.hidden_key.interface import DENSE, PREFIX, inner_attention, register
from monteclora.hidden_key.layer import ATTRIBUTE, LayerDropout, Switch
from monteclora.hidden_key.stack import LayerSites, find_layers


@dataclass(kw_only=True)
class HiddenKey:
    """A handle on the dropping of a model, and its part of the loss.

    With a second pass (`config.has_compensation`), the loss of a classifier is::

        logits = model(**inputs).logits
        with hidden_key.second_pass():
            second = model(**inputs).logits
        loss = cross_entropy(logits, labels) + hidden_key.compensation(logits, second) / len(labels)

    That of a language model, whose labels [batch, tokens] are -100 at padding and prompt, is a mean over targets, and so
    is its divergence::

        targets = labels[:, 1:]
        is_target = targets != -100
        logits = model(**inputs).logits[:, :-1][is_target]
        with hidden_key.second_pass():
            second = model(**inputs).logits[:, :-1][is_target]
        loss = cross_entropy(logits, targets[is_target]) + hidden_key.compensation(logits, second) / len(logits)

    With `both_branches` the two passes are best one forward of the rows repeated, `logits, second = outputs.chunk(2)`:
    masks are independent over rows. MonteCLoRA's noise is then one draw for both halves, and its penalty joins the
    gradients once; in two forwards it joins them in each, so that it needs `Adapter.set_penalty_weight(1 / 2)`.
    """

    model: PreTrainedModel = field(repr=False)
    """The model it is attached to."""

    config: HiddenKeyConfig
    """What is dropped."""

    layers: tuple[int, ...]
    """Indices of the layers that drop."""

    switch: Switch = field(repr=False)
    """Shared by all layers."""

    # What `detach` needs to restore the model.
    attentions: list[Any] = field(repr=False)
    hooks: list[RemovableHandle] = field(repr=False)
    other_rates: list[tuple[nn.Dropout, float]] = field(repr=False)
    inner_name: str = field(repr=False)
    own_name: str = field(repr=False)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch HiddenKey's dropping off in the forwards inside, and nothing else: the model's own dropout (`kept`) and
        an adapter's dropout and noise stay on. A backward that recomputes activations belongs inside, too.
        """
        was_on, self.switch.is_on = self.switch.is_on, False
        try:
            yield
        finally:
            self.switch.is_on = was_on

    @contextlib.contextmanager
    def second_pass(self) -> Iterator[None]:
        """Where the second pass of the compensation is run.

        For `kl` it is a pass like the first, with gradients for `both_branches` only. For `js` it is without gradients
        and with the model in evaluation mode, so without dropout of any kind and without an adapter's noise; afterwards
        every module is in the mode it was in.
        """
        with contextlib.ExitStack() as stack:
            if not self.config.both_branches:
                stack.enter_context(torch.no_grad())
            if self.config.compensation == "js":
                stack.enter_context(_evaluation_mode(self.model))
            yield

    def compensation(self, logits: Tensor, second: Tensor) -> Tensor:
        """compensation_weight times the divergence of two passes, summed over rows, in nats: a scalar.

        It is the divergence of whatever noise the passes have. With both rates 0 and other dropout or an adapter's noise
        on, `kl` is R-Drop (arXiv 2106.14448) on that noise; without any noise it is 0.

        Args:
            logits: [..., classes] of the pass that is trained; rows at padding or prompt tokens are the caller's to
                leave out. For regression the paper takes the output of the last layer.
            second: the same of the second pass; a constant unless `both_branches`.
        """
        if not self.config.both_branches:
            second = second.detach()
        if not self.config.has_compensation:
            return torch.zeros((), device=logits.device)
        divergence = bidirectional_kl if self.config.compensation == "kl" else one_sided_js
        return self.config.compensation_weight * divergence(logits, second)

    def detach(self) -> None:
        """Take HiddenKey off the model: attention, hooks and the model's own dropout are what they were.

        An attention implementation that was set since then stays.
        """
        for hook in self.hooks:
            hook.remove()
        for attention in self.attentions:
            delattr(attention, ATTRIBUTE)
            if attention.config._attn_implementation == self.own_name:
                attention.config._attn_implementation = self.inner_name
        for dropout, rate in self.other_rates:
            dropout.p = rate
        self.hooks, self.attentions, self.other_rates = [], [], []


def attach_hidden_key(model: PreTrainedModel, config: HiddenKeyConfig) -> HiddenKey:
    """Let `model` drop keys and feed-forward output while it is in training mode.

    Before or after `attach_adapter`, with the same result, but after any `set_attn_implementation`. In evaluation mode
    the model computes what it did before, bit for bit. Weights, files and the config that is saved stay as they are.

    Raises:
        AdapterError: settings out of range, a model whose layers are not known, none of which would drop, or that has
            HiddenKey already, or an attention implementation that the settings do not work with.
    """
    if not isinstance(config, HiddenKeyConfig):
        raise AdapterError(f"HiddenKey needs a HiddenKeyConfig, not {type(config).__name__}; make one of the settings")
    if problems := [f"{name} {message}" for name, message in config.problems()]:
        raise AdapterError("HiddenKey cannot be attached: " + "; ".join(problems))
    if not isinstance(model, PreTrainedModel):
        raise AdapterError(
            f"HiddenKey needs a model of transformers (a PreTrainedModel), not {type(model).__name__}; give the model "
            "inside it"
        )
    layers = find_layers(model)
    inner_name = _inner_name(layers, config)
    chosen = _chosen_layers(layers, config)
    name = register(inner_name)
    switch = Switch()
    hooks, other_rates = [], []
    if config.other_dropout == "off":
        other_rates = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    for index, sites in enumerate(layers):
        layer = LayerDropout(config=config, is_chosen=index in chosen, switch=switch, implementation=name)
        setattr(sites.attention, ATTRIBUTE, layer)
        # Not set_attn_implementation, which would look for a flash kernel of this name; the name is checked above.
        sites.attention.config._attn_implementation = name
        if layer.drops_keys or layer.drops_hidden:
            hooks.append(sites.attention.register_forward_pre_hook(layer.check_implementation))
        if layer.drops_hidden:
            hooks.append(sites.feed_forward.register_forward_hook(layer.cut_hidden))
            if isinstance(sites.feed_forward, nn.Dropout) and config.other_dropout == "kept":
                other_rates.append((sites.feed_forward, sites.feed_forward.p))
    for dropout, _ in other_rates:
        dropout.p = 0.0
    return HiddenKey(
        model=model,
        config=config,
        layers=chosen,
        switch=switch,
        attentions=[sites.attention for sites in layers],
        hooks=hooks,
        other_rates=other_rates,
        inner_name=inner_name,
        own_name=name,
    )


def _inner_name(layers: list[LayerSites], config: HiddenKeyConfig) -> str:
    """The attention implementation to go around, checked against the settings."""
    name: str = layers[0].attention.config._attn_implementation
    if any(hasattr(sites.attention, ATTRIBUTE) for sites in layers):
        raise AdapterError("the model has HiddenKey already; detach it first (HiddenKey.detach)")
    if name.startswith(PREFIX):
        raise AdapterError(
            "the model shares its config object with one that has HiddenKey; build it from a copy (copy.deepcopy)"
        )
    if config.key_rate > 0 and config.key_pattern == "element" and name not in DENSE:
        raise AdapterError(
            f"key_pattern element needs the attention implementation sdpa or eager, the model has {name}; change it "
            "(model.set_attn_implementation), or choose column or span"
        )
    inner_attention(layers[0].attention, name)
    return name


def _chosen_layers(layers: list[LayerSites], config: HiddenKeyConfig) -> tuple[int, ...]:
    """Indices of the layers that drop; a decoder is a model whose attention is causal."""
    is_decoder = getattr(layers[0].attention, "is_causal", False)
    upper_only = config.layers == "upper_half" or (config.layers == "auto" and is_decoder)
    chosen = tuple(index for index in range(len(layers)) if not upper_only or 2 * index >= len(layers))
    if not chosen:
        raise AdapterError(
            f"layers = {config.layers} leaves no layer that drops: the model has {len(layers)}, and the upper half begins "
            f"at index >= {len(layers)} / 2; set layers to all"
        )
    return chosen


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        # Not train(), which gives all modules inside the same mode.
        for module, mode in modes:
            module.training = mode
