"""An adapter added to the frozen weights, which leaves a plain model, and taken out of them again.

::

    W' = W + scaling * B A

The sum is taken in fp32 (or fp64) and rounded once, to the weight's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monteclora.adapter import Adapter, replace_module
from monteclora.errors import AdapterError
from monteclora.fingerprint import is_whole
from monteclora.lora import LoRALinear
from monteclora.posterior import BlockPosterior


def merge_adapter(model: nn.Module) -> None:
    """Add every layer's update to its frozen weight and put plain layers back, in place; MonteCLoRA's is its mean.

    The model is then what it was before `attach_adapter`, but for its values and for `requires_grad`, which stays as
    the adapter set it. Save the adapter before merging: the fingerprint in its files is that of the frozen weights.

    Raises:
        AdapterError: the model has no adapter, another module uses an adapted weight too, or weights are sharded. The
            model is then as it was.
    """
    check_mergeable(model)
    places = _places(model)
    for layer, names in places.items():
        _check_whole(names[0], layer)
    for layer, names in places.items():
        _add(layer, layer.scaling)
        plain = layer.plain()
        for name in names:
            replace_module(model, name, plain)
    for name, module in list(model.named_modules()):
        if isinstance(module, BlockPosterior):
            module.detach(model.get_submodule(name.rpartition(".")[0]))


def unmerge_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Take back `merge_adapter`: put the adapter's layers back, in place, and subtract their updates.

    The frozen weights are again what they were to within one rounding to their dtype before and one after, at the size
    of the merged values. A and B must not have changed in between; load the base again where every bit counts.

    Raises:
        AdapterError: the model is not merged, or was not merged with this adapter, or weights are sharded. The model is
            then as it was.
    """
    by_weight: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LoRALinear):
            raise AdapterError(f"{name} has an adapter; only a model that merge_adapter has changed can be unmerged")
        if isinstance(module, nn.Linear):
            by_weight.setdefault(id(module.weight), []).append(name)
    for name, layer in adapter.layers.items():
        if id(layer.weight) not in by_weight:
            raise AdapterError(
                f"no layer of the model holds the weight that {name} of this adapter was merged into; give the model "
                "and the adapter that were merged, or load the base and the saved adapter again"
            )
        _check_whole(name, layer)
    for layer in adapter.layers.values():
        names = by_weight[id(layer.weight)]
        # The model may have been moved or switched to evaluation without them.
        layer.to(layer.weight.device).train(model.get_submodule(names[0]).training)
        _add(layer, -layer.scaling)
        for name in names:
            replace_module(model, name, layer)
    for posterior in adapter.posteriors.values():
        block = model.get_submodule(posterior.block)
        posterior.attach(block)
        posterior.to(adapter.layers[posterior.layers[0]].weight.device).train(block.training)


def merged_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """Compute weight + scaling * lora_B lora_A [out, in], rounded once to the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), lora_B.to(wide), lora_A.to(wide), alpha=scaling).to(weight.dtype)


def check_mergeable(model: nn.Module) -> None:
    """Refuse a model without an adapter, and one in which merging would change more than the adapted layers.

    Raises:
        AdapterError: names the layer and, for a tied weight, the other module that uses it.
    """
    places = _places(model)
    if not places:
        raise AdapterError("the model has no adapter to merge; attach or load one first")
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(name)
    for layer, names in places.items():
        if others := [name for name in users[id(layer.weight)] if name not in names]:
            raise AdapterError(
                f"{names[0]} shares its weight with {others[0]}, which merging would change too; give it a weight of "
                "its own before attaching the adapter, or keep the adapter beside the model"
            )


def _places(model: nn.Module) -> dict[LoRALinear, list[str]]:
    """The adapted layers and all their names; a layer that two parents share has two."""
    places: dict[LoRALinear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LoRALinear):
            places.setdefault(module, []).append(name)
    return places


def _check_whole(name: str, layer: LoRALinear) -> None:
    if not all(is_whole(parameter) for parameter in (layer.weight, layer.lora_A, layer.lora_B)):
        raise AdapterError(f"{name} is sharded and holds no values here; gather the full weights first")


def _add(layer: LoRALinear, scaling: float) -> None:
    with torch.no_grad():
        layer.weight.copy_(merged_weight(layer.weight, layer.lora_A, layer.lora_B, scaling))
