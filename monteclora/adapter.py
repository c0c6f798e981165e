"""Put an adapter on a model: choose the linear layers, freeze the rest, keep a handle on what is trained."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from monteclora.config import (
    LoRAConfig,
    MonteCLoRAConfig,
    count_adapter_parameters,
    is_inside,
    is_target,
    matches,
    rank_problem,
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

    modules: dict[str, LoRALinear]
    """The adapted layers by their name in the model."""

    posteriors: dict[str, BlockPosterior]
    """MonteCLoRA's variational parameters by their name in the model; empty for plain LoRA."""

    saved: dict[str, nn.Parameter]
    """The parameters of `modules_to_save`, by their name in the model."""

    num_trainable: int
    """Number of trainable parameters, counted before anything shards them."""

    controls: Controls = field(default_factory=Controls)
    """What all layers read in forward; written by the methods below."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """All trainable parameters by their name in the model, for example `model.layers.0.mlp.up_proj.lora_A`."""
        low_rank = {
            f"{name}.{own}": parameter
            for name, module in self.modules.items()
            for own, parameter in (("lora_A", module.lora_A), ("lora_B", module.lora_B))
        }
        variational = {
            f"{name}.{own}": parameter
            for name, posterior in self.posteriors.items()
            for own, parameter in posterior.named_parameters(recurse=False)
        }
        return low_rank | variational | self.saved

    def parameter_groups(self, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, each with params, name and weight_decay; see `lr_ratio` for the learning rate.

        `low_rank_A` and `low_rank_B` decay; so do the matrices of `modules_to_save` (`saved`), but not their biases and
        norms (`saved_no_decay`), nor the variational parameters (`variational`). Empty groups are left out.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.parameters().items():
            groups.setdefault(self._group_of(name, parameter), []).append(parameter)
        return [
            {
                "name": name,
                "params": parameters,
                "weight_decay": 0.0 if name in ("variational", "saved_no_decay") else weight_decay,
            }
            for name, parameters in groups.items()
        ]

    def lr_ratio(self, group: str) -> float:
        """Factor on the learning rate of a group of `parameter_groups` in the current step (see `set_step`).

        LoRA+'s ratio for B, MonteCLoRA's ratio in the cooperative phase, and 0 for what a post-hoc phase leaves as it
        is: an optimizer with momentum would go on moving it.
        """
        ratio = self.config.loraplus_ratio if group == "low_rank_B" else 1.0
        if isinstance(self.config, MonteCLoRAConfig) and self.controls.is_random:
            ratio *= self.config.coop_lr_ratio
            if self.controls.freezes_low_rank and group != "variational":
                ratio = 0.0
        return ratio

    def set_step(self, step: int) -> None:
        """Say which optimizer step (from 0) comes next: MonteCLoRA is plain LoRA before `start_step`."""
        if isinstance(self.config, MonteCLoRAConfig):
            self.controls.is_random = step >= self.config.start_step
            self.controls.freezes_low_rank = self.config.posthoc and self.controls.is_random

    def set_penalty_weight(self, weight: float) -> None:
        """From the next forward on, let backward produce the gradients of loss + weight * `penalty()`.

        The penalty gradient is a constant of the graph: it is not multiplied by the gradient that comes from the loss.
        So a weight for k micro-batches per step is 1 / k, and a scaled loss needs a scaled weight.
        """
        self.controls.penalty_weight = weight / len(self.modules)

    def penalty(self) -> Tensor:
        """Mean over the layers of the penalty in their latest training forward: a detached scalar on their device.

        Layers that have not run yet count as 0; plain LoRA has no penalty, so its mean is 0.
        """
        drawn = [(p.last_draw, p.sizes(p.last_draw.std).rank) for p in self.posteriors.values() if p.last_draw]
        if not drawn or not isinstance(self.config, MonteCLoRAConfig) or not self.controls.is_random:
            return torch.zeros(())
        draw = Draw(*(torch.cat(parts) for parts in zip(*(draw for draw, _ in drawn), strict=True)))
        rank = torch.cat([rank for _, rank in drawn])
        return variational_penalty(draw, rank, self.config) / len(self.modules)

    @contextlib.contextmanager
    def sampled(self, index: int, seed: int = 0) -> Iterator[None]:
        """Within this, evaluation uses draw number `index` from the posterior in place of its mean.

        Every forward uses the same draw, a function of (seed, index, name of the block) alone: the same for all batches
        and on all ranks. The average of several draws' predictions is the predictive mean; how much they differ says how
        sure the model is.

        Raises:
            AdapterError: the adapter is a plain LoRA, which has no posterior.
        """
        if not self.posteriors:
            raise AdapterError("a plain LoRA has no posterior to sample from; train a MonteCLoRAConfig adapter")
        before, self.controls.sample = self.controls.sample, (seed, index)
        try:
            yield
        finally:
            self.controls.sample = before

    def _group_of(self, name: str, parameter: nn.Parameter) -> str:
        if name in self.saved:
            # ZeRO-3 keeps the shape of a sharded parameter under another name.
            return "saved" if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else "saved_no_decay"
        last = name.rpartition(".")[2]
        return {"lora_A": "low_rank_A", "lora_B": "low_rank_B"}.get(last, "variational")


def attach_adapter(model: nn.Module, config: LoRAConfig, seed: int = 0, *, dtype: torch.dtype | None = None) -> Adapter:
    """Freeze `model` and replace, in place, every linear layer that `config.targets` name by an adapted one.

    The first values of a layer's adapter are a function of (seed, name of the layer) alone: the same on every rank, for
    every world size and for every choice of the other targets. Base weights may be sharded already.

    Args:
        model: any module with linear layers.
        config: a `LoRAConfig` or a `MonteCLoRAConfig`.
        seed: of the first values.
        dtype: of the adapter's parameters; None means that of each layer's weight. Beside a bf16 base, give
            torch.float32 unless the optimizer keeps fp32 copies (DeepSpeed's does).

    Raises:
        AdapterError: settings out of range, a pattern that matches nothing, a rank too large for a layer, or a model
            that has an adapter.
    """
    _check(config)
    linears = linear_names(model)
    _check_patterns(config, linears, [name for name, _ in model.named_modules() if name])
    names = [
        name for name in linears if is_target(name, config.targets) and not is_inside(name, config.modules_to_save)
    ]
    if not names:
        raise AdapterError(
            "targets match only layers inside modules_to_save, which train in full; take them out of one"
        )
    return wrap_linears(model, names, config, seed, dtype=dtype)


def wrap_linears(
    model: nn.Module, names: Collection[str], config: LoRAConfig, seed: int = 0, *, dtype: torch.dtype | None = None
) -> Adapter:
    """Freeze `model` and put an adapter on exactly the linear layers with these names (see `attach_adapter`)."""
    _check(config)
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise AdapterError("the model has an adapter already; merge it first (merge_adapter), or start from the base")
    linears = linear_names(model)
    if missing := [name for name in names if name not in linears]:
        raise AdapterError(f"no linear layers named {', '.join(missing[:3])} to adapt; {_describe(linears)}")
    # A layer that two parents share is found under both names, adapted once and replaced in both places.
    bases: dict[nn.Linear, list[str]] = {}
    for name in names:
        bases.setdefault(_linear(model, name), []).append(name)
    shapes = {places[0]: (base.in_features, base.out_features) for base, places in bases.items()}
    if problems := [p for name, shape in shapes.items() if (p := rank_problem(name, shape, config))]:
        raise AdapterError(problems[0])

    model.requires_grad_(False)
    saved = _unfreeze(model, config.modules_to_save)
    controls = Controls()
    places = {places[0]: places for places in bases.values()}
    if isinstance(config, MonteCLoRAConfig):
        modules, posteriors = _monteclora_layers(model, list(places), config, controls, seed, dtype)
    else:
        modules, posteriors = {name: _lora_layer(model, name, config, seed, dtype) for name in places}, {}
    for name, module in modules.items():
        for place in places[name]:
            replace_module(model, place, module)
    for posterior in posteriors.values():
        posterior.attach(model.get_submodule(posterior.block))
    return Adapter(
        model=model,
        config=config,
        modules=modules,
        posteriors=posteriors,
        saved=saved,
        num_trainable=count_adapter_parameters(shapes, config)
        + sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in saved.values()),
        controls=controls,
    )


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
    if problems := [f"{name} {message}" for name, message in config.problems()]:
        raise AdapterError("the adapter cannot be built: " + "; ".join(problems))


def _check_patterns(config: LoRAConfig, linears: Collection[str], modules: Collection[str]) -> None:
    """Refuse patterns that match nothing: what they were meant for would silently stay as it is."""
    problems = []
    for setting in ("targets", "rank_pattern", "alpha_pattern"):
        patterns = getattr(config, setting)
        if unmatched := [p for p in patterns if not any(matches(name, p) for name in linears)]:
            problems.append(f"{setting} {', '.join(unmatched)} match no linear layer; {_describe(linears)}")
    if unmatched := [p for p in config.modules_to_save if not any(matches(name, p) for name in modules)]:
        outer = dict.fromkeys(name.partition(".")[0] for name in modules)
        problems.append(
            f"modules_to_save {', '.join(unmatched)} match no module; the model consists of {', '.join(outer)}"
        )
    if problems:
        raise AdapterError("; ".join(problems))


def _unfreeze(model: nn.Module, patterns: Collection[str]) -> dict[str, nn.Parameter]:
    # Under all its names, because a parameter that two modules share (lm_head's, say) would be missed under its second.
    saved: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_inside(name.rpartition(".")[0], patterns):
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
        dtype=dtype,
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
            dtype=dtype or weight.dtype,
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
                dtype=dtype,
            )
    return {name: modules[name] for name in names}, posteriors


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _describe(linears: Collection[str]) -> str:
    """What linear layers there are, in one short line."""
    if not linears:
        return "the model has no linear layer"
    return "the model's linear layers are called " + ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
