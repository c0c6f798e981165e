"""Put an adapter on a model: choose the linear layers, freeze the rest, keep a handle on what is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from monteclora.config import LoRAConfig, MonteCLoRAConfig, count_adapter_parameters, is_target, matches
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.monteclora import MonteCLoRALinear
from monteclora.penalty import PenaltyWeight, variational_penalty


@dataclass(kw_only=True)
class Adapter:
    """A handle on the adapted layers of a model."""

    config: LoRAConfig
    """What the layers were made from."""

    modules: dict[str, LoRALinear]
    """The adapted layers by their name in the model."""

    num_trainable: int
    """Number of trainable parameters in all of them, counted before anything shards them."""

    penalty_weight: PenaltyWeight = field(default_factory=PenaltyWeight)
    """The number all layers read in forward; set it with `set_penalty_weight`."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """All adapter parameters by their name in the model, for example `model.layers.0.mlp.up_proj.lora_A`."""
        return {
            f"{name}.{own}": parameter
            for name, module in self.modules.items()
            for own, parameter in module.named_parameters(recurse=False)
        }

    def set_penalty_weight(self, weight: float) -> None:
        """From the next forward on, let backward produce the gradients of loss + weight * `penalty()`.

        The penalty gradient is a constant of the graph: it is not multiplied by the gradient that comes from the loss.
        So a weight for k micro-batches per step is 1 / k, and a scaled loss needs a scaled weight.
        """
        self.penalty_weight.value = weight / len(self.modules)

    def penalty(self) -> Tensor:
        """Mean over the layers of the penalty in their latest training forward: a detached scalar on their device.

        Layers that have not run yet count as 0; plain LoRA has no penalty, so its mean is 0.
        """
        draws = [
            module.last_draw
            for module in self.modules.values()
            if isinstance(module, MonteCLoRALinear) and module.last_draw is not None
        ]
        if not draws or not isinstance(self.config, MonteCLoRAConfig):
            return torch.zeros(())
        return variational_penalty(torch.stack(draws), self.config).sum() / len(self.modules)


def attach_adapter(model: nn.Module, config: LoRAConfig, seed: int = 0) -> Adapter:
    """Freeze `model` and replace, in place, every linear layer that `config.targets` name by an adapted one.

    The first values of a layer's adapter are a function of (seed, name of the layer) alone: the same on every rank, for
    every world size and for every choice of the other targets. Base weights may be sharded already.

    Raises:
        AdapterError: settings out of range, a pattern that matches no linear layer, or a model that has an adapter.
    """
    _check(config)
    linears = linear_names(model)
    unmatched = [pattern for pattern in config.targets if not any(matches(name, pattern) for name in linears)]
    if unmatched:
        raise AdapterError(f"targets {', '.join(unmatched)} match no linear layer; {_describe(linears)}")
    return wrap_linears(model, [name for name in linears if is_target(name, config.targets)], config, seed)


def wrap_linears(model: nn.Module, names: Collection[str], config: LoRAConfig, seed: int = 0) -> Adapter:
    """Freeze `model` and put an adapter on exactly the linear layers with these names (see `attach_adapter`)."""
    _check(config)
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise AdapterError("the model has an adapter already; merge it first (merge_adapter), or start from the base")
    linears = linear_names(model)
    if missing := [name for name in names if name not in linears]:
        raise AdapterError(f"no linear layers named {', '.join(missing[:3])} to adapt; {_describe(linears)}")
    model.requires_grad_(False)
    penalty_weight = PenaltyWeight()
    bases = {name: model.get_submodule(name) for name in names}
    modules: dict[str, LoRALinear] = {}
    wrapped: dict[nn.Module, LoRALinear] = {}
    # A layer that two parents share is found under both names, adapted once and replaced in both places.
    for name, base in bases.items():
        assert isinstance(base, nn.Linear)
        if base not in wrapped:
            wrapped[base] = modules[name] = _new_layer(base, config, _generator(seed, name), penalty_weight)
        replace_module(model, name, wrapped[base])
    shapes = [(module.in_features, module.out_features) for module in modules.values()]
    return Adapter(
        config=config,
        modules=modules,
        num_trainable=count_adapter_parameters(shapes, config),
        penalty_weight=penalty_weight,
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


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place with this dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _check(config: LoRAConfig) -> None:
    if problems := [f"{name} {message}" for name, message in config.problems()]:
        raise AdapterError("the adapter cannot be built: " + "; ".join(problems))


def _new_layer(
    base: nn.Linear, config: LoRAConfig, generator: torch.Generator, penalty_weight: PenaltyWeight
) -> LoRALinear:
    if isinstance(config, MonteCLoRAConfig):
        return MonteCLoRALinear(base, config, generator, penalty_weight)
    return LoRALinear(base, config, generator)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _describe(linears: Collection[str]) -> str:
    """What linear layers there are, in one short line."""
    if not linears:
        return "the model has no linear layer"
    return "the model's linear layers are called " + ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
