"""Put an adapter on a model: choose the linear layers, freeze the rest, keep a handle on what is trained."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from monteclora.config import (
    LoRAConfig,
    MonteCLoRAConfig,
    adapted,
    count_adapter_parameters,
    is_inside,
    model_problems,
)
from monteclora.controls import Controls
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.monteclora import MonteCLoRALinear
from monteclora.penalty import Draw, variational_penalty
from monteclora.posterior import POSTERIOR, BlockPosterior


@dataclass(kw_only=True)
class Adapter:
    """A handle on the adapted layers of a model."""

    model: nn.Module = field(repr=False)
    """The model they are in."""

    config: LoRAConfig
    """What the layers were made from."""

    layers: dict[str, LoRALinear] = field(repr=False)
    """The adapted layers by their name in the model."""

    posteriors: dict[str, BlockPosterior] = field(repr=False)
    """MonteCLoRA's variational parameters by their name in the model; empty for plain LoRA."""

    saved: dict[str, nn.Parameter] = field(repr=False)
    """The parameters of `modules_to_save`, by their name in the model."""

    num_trainable: int
    """Number of trainable parameters, counted before anything shards them."""

    controls: Controls = field(repr=False)
    """What all layers read in forward; written by the methods below."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All trainable parameters by their name in the model, for example `model.layers.0.mlp.up_proj.lora_A`."""
        low_rank = {
            f"{name}.{own}": parameter
            for name, layer in self.layers.items()
            for own, parameter in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
        }
        variational = {
            f"{name}.{own}": parameter
            for name, posterior in self.posteriors.items()
            for own, parameter in posterior.named_parameters(recurse=False)
        }
        return low_rank | variational | self.saved

    def parameters(self) -> Iterator[nn.Parameter]:
        """All trainable parameters."""
        yield from self.named_parameters().values()

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, each with params, name, lr and weight_decay.

        `low_rank_A` and `low_rank_B` decay; so do the matrices of `modules_to_save` (`saved`), but not their biases and
        norms (`saved_no_decay`), nor the variational parameters (`variational`). Empty groups are left out. The learning
        rates are those of the first step; `begin_step` sets those of others.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters().items():
            groups.setdefault(self._group_of(name, parameter), []).append(parameter)
        return [
            {
                "name": name,
                "params": parameters,
                "lr": lr * self.lr_ratio(name),
                "weight_decay": 0.0 if name in ("variational", "saved_no_decay") else weight_decay,
            }
            for name, parameters in groups.items()
        ]

    def lr_ratio(self, group: str) -> float:
        """Factor on the learning rate of a group of `parameter_groups` in the step that `begin_step` began.

        LoRA+'s ratio for B, MonteCLoRA's ratio in the cooperative phase, and 0 for what a post-hoc phase leaves as it
        is: an optimizer with momentum would go on moving it.
        """
        if group not in _GROUPS:
            raise AdapterError(f"{group!r} is no group of the adapter's parameters; those are {', '.join(_GROUPS)}")
        ratio = self.config.loraplus_ratio if group == "low_rank_B" else 1.0
        if isinstance(self.config, MonteCLoRAConfig) and self.controls.is_random:
            ratio *= self.config.coop_lr_ratio
            if self.controls.freezes_low_rank and group != "variational":
                ratio = 0.0
        return ratio

    def begin_step(self, step: int, optimizer: Any = None, lr: float | None = None) -> None:
        """Say which optimizer step (from 0) comes next; MonteCLoRA is plain LoRA before `start_step`.

        Args:
            step: number of the step.
            optimizer: one that was made from `parameter_groups`. Its learning rates become `lr` times each group's
                `lr_ratio`; whoever leaves it out sets them.
            lr: the learning rate of the step.
        """
        if (optimizer is None) != (lr is None):
            raise AdapterError("begin_step needs both optimizer and lr to set the learning rates, or neither")
        if optimizer is not None and any("name" not in group for group in optimizer.param_groups):
            raise AdapterError(
                "begin_step cannot tell which learning rate a group of this optimizer has, because it has no name; make "
                "the optimizer from adapter.parameter_groups(lr)"
            )
        if isinstance(self.config, MonteCLoRAConfig):
            self.controls.is_scheduled = True
            _set_phase(self.controls, self.config, step)
        if optimizer is not None and lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr * self.lr_ratio(group["name"])

    def set_penalty_weight(self, weight: float) -> None:
        """From the next forward on, let backward produce the gradients of loss + weight * `penalty()`; at first it is 1.

        The penalty gradient is a constant of the graph: it is not multiplied by the gradient that comes from the loss,
        and every training forward adds it. So a weight for k forwards per step, as with k micro-batches, is 1 / k, and a
        scaled loss needs a scaled weight.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise AdapterError(f"the weight of the penalty is {weight}; give 0 (off) or a positive number")
        self.controls.penalty_weight = weight / len(self.layers)

    def penalty(self) -> Tensor:
        """Mean over the layers of the penalty in their latest training forward: a detached scalar on their device.

        Layers that have not run yet count as 0; plain LoRA has no penalty, so its mean is 0.
        """
        drawn = [(p.last_draw, p.sizes(p.last_draw.std).rank) for p in self.posteriors.values() if p.last_draw]
        if not drawn or not isinstance(self.config, MonteCLoRAConfig) or not self.controls.is_random:
            return torch.zeros(())
        draw = Draw(*(torch.cat(parts) for parts in zip(*(draw for draw, _ in drawn), strict=True)))
        rank = torch.cat([rank for _, rank in drawn])
        return variational_penalty(draw, rank, self.config) / len(self.layers)

    @contextlib.contextmanager
    def sampled(self, index: int, seed: int = 0) -> Iterator[None]:
        """Within this, evaluation uses draw number `index` from the posterior in place of its mean.

        Every forward uses the same draw, a function of (seed, index, name of the block) alone: the same for all batches
        and on all ranks. The average of several draws' predictions is the predictive mean; how much they differ says how
        sure the model is.

        Raises:
            AdapterError: the adapter is a plain LoRA, which has no posterior, or it is merged.
        """
        if not self.posteriors:
            raise AdapterError("a plain LoRA has no posterior to sample from; train a MonteCLoRAConfig adapter")
        self.check_in_place()
        before, self.controls.sample = self.controls.sample, (seed, index)
        try:
            yield
        finally:
            self.controls.sample = before

    def check_in_place(self) -> None:
        """Refuse an adapter whose layers are not in the model any more.

        Raises:
            AdapterError: the adapter is merged.
        """
        if any(self.model.get_submodule(name) is not layer for name, layer in self.layers.items()):
            raise AdapterError(
                "the adapter is merged into its model, whose layers are plain ones with other weights now; do this "
                "before merging, or unmerge it first (unmerge_adapter)"
            )

    def _group_of(self, name: str, parameter: nn.Parameter) -> str:
        if name in self.saved:
            # ZeRO-3 keeps the shape of a sharded parameter under another name.
            return "saved" if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else "saved_no_decay"
        last = name.rpartition(".")[2]
        return {"lora_A": "low_rank_A", "lora_B": "low_rank_B"}.get(last, "variational")


_GROUPS = ("low_rank_A", "low_rank_B", "variational", "saved", "saved_no_decay")


def attach_adapter(model: nn.Module, config: LoRAConfig, seed: int = 0, *, dtype: torch.dtype | None = None) -> Adapter:
    """Freeze `model` and replace, in place, every linear layer that `config.targets` name by an adapted one.

    The first values of a layer's adapter are a function of (seed, name of the layer) alone: the same on every rank, for
    every world size and for every choice of the other targets. Base weights may be sharded already.

    Args:
        model: any module with linear layers.
        config: a `LoRAConfig` or a `MonteCLoRAConfig`.
        seed: of the first values.
        dtype: of the adapter's parameters. None means fp32 beside a base in half precision, in which small updates
            would be lost; beside weights that ZeRO-3 has sharded it means theirs, since DeepSpeed keeps fp32 copies.

    Raises:
        AdapterError: settings of a wrong type or out of range, a pattern that matches nothing, a rank too large for a
            layer, a weight both frozen and trained in full, or a model that has an adapter.
    """
    _check(config)
    refuse_second_adapter(model)
    _check_model(model, config)
    return wrap_linears(model, adapted(linear_names(model), config), config, seed, dtype=dtype)


def wrap_linears(
    model: nn.Module, names: Collection[str], config: LoRAConfig, seed: int = 0, *, dtype: torch.dtype | None = None
) -> Adapter:
    """Freeze `model` and put an adapter on exactly the linear layers with these names (see `attach_adapter`)."""
    _check(config)
    refuse_second_adapter(model)
    linears = linear_names(model)
    if missing := [name for name in names if name not in linears]:
        raise AdapterError(f"no linear layers named {', '.join(missing[:3])} to adapt; {_describe(linears)}")
    # A layer that two parents share is found under both names, adapted once and replaced in both places.
    bases: dict[nn.Linear, list[str]] = {}
    for name in names:
        bases.setdefault(_linear(model, name), []).append(name)
    shapes = {places[0]: (base.in_features, base.out_features) for base, places in bases.items()}
    _check_tied(model, bases, config.modules_to_save)

    model.requires_grad_(False)
    saved = _unfreeze(model, config.modules_to_save)
    # At first, the penalty has the weight 1.
    controls = Controls(penalty_weight=1 / len(bases), is_scheduled=not _has_schedule(config))
    for parameter in saved.values():
        # Zeros where a post-hoc phase leaves them as they are, so that they don't count in a norm to clip by.
        parameter.register_hook(lambda grad: torch.zeros_like(grad) if controls.freezes_low_rank else grad)
    if isinstance(config, MonteCLoRAConfig):
        _set_phase(controls, config, 0)
    places = {places[0]: places for places in bases.values()}
    layers: dict[str, LoRALinear]
    posteriors: dict[str, BlockPosterior] = {}
    if isinstance(config, MonteCLoRAConfig):
        layers, posteriors = _monteclora_layers(model, list(places), config, controls, seed, dtype)
    else:
        layers = {name: _lora_layer(model, name, config, seed, dtype) for name in places}
    for name, layer in layers.items():
        for place in places[name]:
            replace_module(model, place, layer)
    for posterior in posteriors.values():
        posterior.attach(model.get_submodule(posterior.block))
    return Adapter(
        model=model,
        config=config,
        layers=layers,
        posteriors=posteriors,
        saved=saved,
        num_trainable=count_adapter_parameters(shapes, config)
        + sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in saved.values()),
        controls=controls,
    )


def refuse_second_adapter(model: nn.Module) -> None:
    """Refuse a model that has an adapter.

    Raises:
        AdapterError: it has one.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise AdapterError("the model has an adapter already; merge it first (merge_adapter), or start from the base")


def linear_names(model: nn.Module) -> list[str]:
    """Names of the layers of `model` that behave as nn.Linear does, in the model's order.

    A subclass with another forward (quantised layers, say) is not one of them, nor is the output projection of
    nn.MultiheadAttention, whose weight is read without calling the layer, nor the model itself.
    """
    return [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if name
        and isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]


def block_of(model: nn.Module, name: str) -> str:
    """Name of the block whose forward runs the layer `name`: the module whose layers are drawn together.

    The nearest element of a module list, which is what a transformer's block is and what activation checkpointing
    recomputes; where there is none, the nearest module that is no container, else the layer itself.
    """
    parts = name.split(".")
    ancestors = [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)]
    for ancestor, outer in itertools.pairwise(ancestors):
        if isinstance(model.get_submodule(outer), nn.ModuleList) and not _is_container(model, ancestor):
            return ancestor
    return next((ancestor for ancestor in ancestors if not _is_container(model, ancestor)), name)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place with this dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _is_container(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _check(config: LoRAConfig) -> None:
    if not isinstance(config, LoRAConfig):
        raise AdapterError(
            f"an adapter is made from a LoRAConfig or a MonteCLoRAConfig, not from {type(config).__name__}"
        )
    if problems := [f"{name} {message}" for name, message in config.problems()]:
        raise AdapterError("the adapter cannot be built: " + "; ".join(problems))


def _check_model(model: nn.Module, config: LoRAConfig) -> None:
    shapes = {
        name: (_linear(model, name).in_features, _linear(model, name).out_features) for name in linear_names(model)
    }
    modules = [name for name, _ in model.named_modules() if name]
    if problems := [f"{name} {message}" for name, message in model_problems(config, shapes, modules)]:
        raise AdapterError("the adapter does not fit the model: " + "; ".join(problems))


def _check_tied(model: nn.Module, bases: Mapping[nn.Linear, list[str]], modules_to_save: Collection[str]) -> None:
    """Refuse to freeze and to train the same weight."""
    in_full = {id(p): name for name, p in _inside(model, modules_to_save)}
    for base, places in bases.items():
        if id(base.weight) in in_full:
            raise AdapterError(
                f"targets freeze the weight of {places[0]}, which is tied to {in_full[id(base.weight)]}, and "
                "modules_to_save train that in full; take one of them out"
            )


def _has_schedule(config: LoRAConfig) -> bool:
    return isinstance(config, MonteCLoRAConfig) and (
        config.start_step > 0 or config.posthoc or config.coop_lr_ratio != 1.0
    )


def _set_phase(controls: Controls, config: MonteCLoRAConfig, step: int) -> None:
    controls.is_random = step >= config.start_step
    controls.freezes_low_rank = config.posthoc and controls.is_random


def _inside(model: nn.Module, patterns: Collection[str]) -> Iterator[tuple[str, nn.Parameter]]:
    # Under all its names, because a parameter that two modules share (lm_head's, say) would be missed under its second.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_inside(name.rpartition(".")[0], patterns):
            yield name, parameter


def _unfreeze(model: nn.Module, patterns: Collection[str]) -> dict[str, nn.Parameter]:
    saved: dict[nn.Parameter, str] = {}
    for name, parameter in _inside(model, patterns):
        parameter.requires_grad_(True)
        saved.setdefault(parameter, name)
    return {name: parameter for parameter, name in saved.items()}


def _lora_layer(model: nn.Module, name: str, config: LoRAConfig, seed: int, dtype: torch.dtype | None) -> LoRALinear:
    return LoRALinear(
        _linear(model, name),
        rank=config.rank_of(name),
        scaling=config.scaling_of(name),
        dropout=config.dropout,
        generator=_generator(seed, name),
        dtype=_dtype(model, name, dtype),
    )


def _monteclora_layers(
    model: nn.Module,
    names: Collection[str],
    config: MonteCLoRAConfig,
    controls: Controls,
    seed: int,
    dtype: torch.dtype | None,
) -> tuple[dict[str, LoRALinear], dict[str, BlockPosterior]]:
    """The layers and, by name, the posteriors of the blocks they are in."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(model, name), []).append(name)
    modules: dict[str, LoRALinear] = {}
    posteriors: dict[str, BlockPosterior] = {}
    for block, members in blocks.items():
        weight = _linear(model, members[0]).weight
        posterior = BlockPosterior(
            block,
            {name: config.rank_of(name) for name in members},
            config,
            controls,
            generators=[_generator(seed, f"{name}:posterior") for name in members],
            device=weight.device,
            dtype=_dtype(model, members[0], dtype),
        )
        posteriors[f"{block}.{POSTERIOR}" if block else POSTERIOR] = posterior
        for index, name in enumerate(members):
            modules[name] = MonteCLoRALinear(
                _linear(model, name),
                posterior,
                index,
                rank=config.rank_of(name),
                scaling=config.scaling_of(name),
                dropout=config.dropout,
                generator=_generator(seed, name),
                dtype=_dtype(model, name, dtype),
            )
    return {name: modules[name] for name in names}, posteriors


def _dtype(model: nn.Module, name: str, dtype: torch.dtype | None) -> torch.dtype:
    weight = _linear(model, name).weight
    if dtype is not None:
        return dtype
    return weight.dtype if hasattr(weight, "ds_id") else torch.promote_types(weight.dtype, torch.float32)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _describe(linears: Collection[str]) -> str:
    """What linear layers there are, in one short line."""
    if not linears:
        return "the model has no linear layer"
    return "the model's linear layers are called " + ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
