"""Adapters saved in the layout that PEFT and everything built on it reads, and loaded from it.

For anybody else a MonteCLoRA adapter is the LoRA it is in evaluation, its posterior mean; `load_peft` restores all of it.
Nothing in the files (see `monteclora.stored_adapter`) depends on how layers are grouped into blocks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monteclora.adapter import Adapter, linear_names, refuse_second_adapter, wrap_linears
from monteclora.config import LoRAConfig, MonteCLoRAConfig, is_inside
from monteclora.errors import AdapterError
from monteclora.fingerprint import Gather, adapter_fingerprint, is_whole
from monteclora.fingerprint import base_fingerprint as fingerprint_of
from monteclora.peft_config import to_peft
from monteclora.stored_adapter import OWN_CONFIG, StoredAdapter, read_adapter, write_adapter


def save_peft(
    adapter: Adapter,
    directory: str | Path,
    base_model_name: str = "",
    *,
    tensors: Mapping[str, Tensor] | None = None,
    base_fingerprint: str | None = None,
) -> None:
    """Write the adapter to `directory`, each file under a temporary name first.

    Args:
        adapter: what to save, before it is merged into its model.
        directory: made if it is not there; files of an earlier adapter are replaced.
        base_model_name: name or path of the frozen model, for readers that fetch it themselves.
        tensors: full values by the names of `adapter.named_parameters()`. Give them when the parameters are sharded,
            and the adapter's own hold nothing; the default is the adapter's own.
        base_fingerprint: `monteclora.fingerprint.base_fingerprint` of the adapted layers' frozen weights. Not given: it
            is computed, unless they are sharded, and then left out.

    Raises:
        AdapterError: an adapter that is merged, or tensors that are missing, unknown or empty.
    """
    adapter.check_in_place()
    tensors = adapter.named_parameters() if tensors is None else tensors
    _check_given(adapter, tensors)
    in_full = {name: tensors[name] for name in adapter.saved}
    # PEFT needs an entry for every name of a weight that is tied to others.
    names = _parameter_names(adapter.model)
    for name, parameter in adapter.saved.items():
        in_full |= {other: tensors[name] for other in names.get(parameter, ())}
    stored = StoredAdapter(
        config=adapter.config,
        low_rank=_low_rank(adapter, tensors),
        in_full=in_full,
        variational=_variational(adapter, tensors),
        base_fingerprint=base_fingerprint or adapter_fingerprint(adapter),
        is_ours=True,
    )
    peft_config = to_peft(
        adapter.config,
        adapter.layers,
        in_full,
        base_model_name=base_model_name,
        model_class=type(adapter.model).__name__,
        model_library=type(adapter.model).__module__,
    )
    write_adapter(Path(directory), stored, peft_config)


def load_peft(
    model: nn.Module, directory: str | Path, *, dtype: torch.dtype | None = None, check_base: bool = True
) -> Adapter:
    """Put the adapter saved in `directory` on `model`, whose other parameters are frozen, and return it.

    Reads LoRA adapters of PEFT as well as what `save_peft` wrote.

    Args:
        model: the base the adapter was trained on, nothing merged into it.
        directory: of the adapter's files.
        dtype: of the adapter's parameters, as in `attach_adapter`.
        check_base: refuse a base whose fingerprint differs from the saved one. False is for weights that differ from
            the right ones in rounding only, in fp16 for example.

    Raises:
        AdapterError: files missing or damaged, an adapter that is more than a LoRA, one made for another model, or a
            model that has an adapter. The model is then as it was.
    """
    refuse_second_adapter(model)
    linears = linear_names(model)
    stored = read_adapter(Path(directory), linears, [name for name, _ in model.named_modules() if name])
    if foreign := [name for name in stored.layers if name not in linears]:
        raise AdapterError(
            f"{directory} adapts {foreign[0]} ({len(foreign)} of {len(stored.layers)} layers), which is not a linear "
            "layer of this model; load the model it was trained on"
        )
    # In the model's order, as attach_adapter has them.
    layers = [name for name in linears if name in set(stored.layers)]
    weights: dict[str, Tensor] = {name: model.get_parameter(f"{name}.weight") for name in layers}
    in_full = _in_full(model, stored, directory)
    found = stored.low_rank | _without_copies(stored.in_full, in_full, model, directory) | stored.variational
    expected = _expected(stored.config, weights, in_full, has_posterior=isinstance(stored.config, MonteCLoRAConfig))
    _check_tensors(found, expected, directory, "load the model it was trained on")
    if check_base and all(map(is_whole, weights.values())):
        _check_base(stored, fingerprint_of((f"{name}.weight", weight) for name, weight in weights.items()), directory)
    # A layer that two parents share is saved under one of its names.
    adapted = {model.get_submodule(name) for name in layers}
    aliases = [name for name in linears if model.get_submodule(name) in adapted and name not in weights]
    adapter = wrap_linears(model, layers + aliases, stored.config, dtype=dtype)
    _copy(found, adapter)
    return adapter


def load_weights(
    adapter: Adapter,
    directory: str | Path,
    base_fingerprint: str | None = None,
    *,
    check_base: bool = True,
    gather: Gather | None = None,
) -> None:
    """Set the values of an attached adapter to those saved in `directory`, as the start of another training.

    The saved adapter must have the same layers, ranks and alphas, and the same modules in full. Variational values are
    set where both are MonteCLoRA; a MonteCLoRA adapter that starts from a LoRA keeps its own.

    Args:
        adapter: attached with settings of its own; its low-rank and variational parameters are whole.
        directory: of the saved adapter's files, ours or PEFT's.
        base_fingerprint: of the frozen weights. Not given: it is computed, unless they are sharded and `gather` is not
            given; then a wrong base is not found out.
        check_base: as in `load_peft`.
        gather: makes parameters of a sharded base whole, one at a time, to look at and, those of `modules_to_save`, to
            write to; for DeepSpeed `lambda parameter: GatheredParameters([parameter], modifier_rank=0)`. All ranks call
            this function then.

    Raises:
        AdapterError: files missing or damaged, or what is saved does not fit. The adapter is then as it was.
    """
    for name, parameter in adapter.named_parameters().items():
        if not is_whole(parameter) and (gather is None or name not in adapter.saved):
            raise AdapterError(f"{name} is sharded and cannot be set; load weights before that, or give `gather`")
    stored = read_adapter(Path(directory), adapter.layers, ())
    found = stored.low_rank | _without_copies(stored.in_full, adapter.saved, adapter.model, directory)
    # Between a LoRA and a MonteCLoRA, either way round, A and B are what they share.
    has_posterior = bool(stored.variational) and bool(adapter.posteriors)
    if has_posterior:
        found |= stored.variational
    weights = {name: layer.weight for name, layer in adapter.layers.items()}
    expected = _expected(adapter.config, weights, adapter.saved, has_posterior=has_posterior)
    _check_tensors(found, expected, directory, "give the new adapter the settings of the saved one")
    for name in adapter.layers:
        was, is_now = stored.config.scaling_of(name), adapter.config.scaling_of(name)
        if not math.isclose(was, is_now):
            raise AdapterError(
                f"{name} in {directory} is scaled by {was:g}, in this adapter by {is_now:g}, so that the same values "
                "would be another update; set alpha (and rslora) as they were"
            )
    if check_base and (fingerprint := base_fingerprint or adapter_fingerprint(adapter, gather)):
        _check_base(stored, fingerprint, directory)
    _copy(found, adapter, gather)


def _check_given(adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    wanted = adapter.named_parameters()
    if missing := [name for name in wanted if name not in tensors]:
        raise AdapterError(f"the tensors to save: {len(missing)} adapter tensors are missing, first {missing[0]}")
    if unknown := [name for name in tensors if name not in wanted]:
        raise AdapterError(
            f"the tensors to save: {len(unknown)} tensors are not part of the adapter, first {unknown[0]}"
        )
    if empty := [name for name, value in tensors.items() if not is_whole(value)]:
        raise AdapterError(
            f"{len(empty)} tensors hold nothing, first {empty[0]}: they are sharded; gather the full values and pass "
            "them as `tensors`"
        )


def _expected(
    config: LoRAConfig, weights: Mapping[str, Tensor], in_full: Mapping[str, Tensor], *, has_posterior: bool
) -> dict[str, list[int]]:
    """Names and shapes of what an adapter of these settings on these frozen weights stores."""
    shapes = {name: _shape(parameter) for name, parameter in in_full.items()}
    for name, weight in weights.items():
        fan_out, fan_in = _shape(weight)
        rank = config.rank_of(name)
        shapes |= {f"{name}.lora_A": [rank, fan_in], f"{name}.lora_B": [fan_out, rank]}
        if has_posterior and isinstance(config, MonteCLoRAConfig):
            shapes |= {f"{name}.log_std": [rank], f"{name}.log_concentration": [config.num_samples]}
    return shapes


def _check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, list[int]], directory: str | Path, advice: str
) -> None:
    if missing := [name for name in expected if name not in found]:
        raise AdapterError(
            f"{directory}: {len(missing)} tensors of the adapter are missing, first {missing[0]}; {advice}"
        )
    if unknown := [name for name in found if name not in expected]:
        raise AdapterError(
            f"{directory}: {len(unknown)} tensors are not part of the adapter, first {unknown[0]}: neither the update "
            f"of an adapted linear layer nor in a module of modules_to_save; {advice}"
        )
    for name, shape in expected.items():
        if _shape(found[name]) != shape:
            raise AdapterError(
                f"{name} in {directory} has shape {_shape(found[name])}, here it needs {shape}; {advice}"
            )


def _check_base(stored: StoredAdapter, fingerprint: str, directory: str | Path) -> None:
    if stored.base_fingerprint not in (None, fingerprint):
        raise AdapterError(
            f"{Path(directory) / OWN_CONFIG}: the adapter was trained on another base, with fingerprint "
            f"{str(stored.base_fingerprint)[:12]}, where this one has {fingerprint[:12]}; load the model it was "
            "trained on, nothing merged into it, or pass check_base=False if only rounding differs"
        )


def _in_full(model: nn.Module, stored: StoredAdapter, directory: str | Path) -> dict[str, nn.Parameter]:
    """The parameters of the stored adapter's modules_to_save, each under the first of its names in there."""
    found: dict[str, nn.Parameter] = {}
    for parameter, names in _parameter_names(model).items():
        chosen = [name for name in names if is_inside(name.rpartition(".")[0], stored.config.modules_to_save)]
        if not chosen:
            continue
        found[chosen[0]] = parameter
        if not stored.is_ours and (apart := [name for name in names if name not in stored.in_full]):
            raise AdapterError(
                f"{directory} holds {chosen[0]} but not {apart[0]}, which this model ties to it: PEFT has trained it "
                "apart; give the model a weight for each before loading"
            )
    return found


def _without_copies(
    stored: Mapping[str, Tensor], in_full: Mapping[str, nn.Parameter], model: nn.Module, directory: str | Path
) -> dict[str, Tensor]:
    """What is stored of the parameters in full, less copies under other names that the model has for the same ones."""
    names = _parameter_names(model)
    first = {copy: name for name, parameter in in_full.items() for copy in names.get(parameter, ()) if copy != name}
    for copy, name in first.items():
        if copy in stored and name in stored and not torch.equal(stored[copy], stored[name]):
            raise AdapterError(
                f"{directory} holds other values for {copy} than for {name}, which this model ties to it; give the model "
                "a weight for each before loading"
            )
    return {name: value for name, value in stored.items() if name not in first}


def _copy(tensors: Mapping[str, Tensor], adapter: Adapter, gather: Gather | None = None) -> None:
    values = {name: parameter.detach() for name, parameter in adapter.named_parameters().items()}
    places = _low_rank(adapter, values) | _variational(adapter, values)
    with torch.no_grad():
        for name, value in tensors.items():
            if name in adapter.saved:
                with gather(adapter.saved[name]) if gather else contextlib.nullcontext():
                    adapter.saved[name].copy_(value)
            else:
                places[name].copy_(value)


def _low_rank(adapter: Adapter, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[name] for layer in adapter.layers for name in (f"{layer}.lora_A", f"{layer}.lora_B")}


def _variational(adapter: Adapter, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blocks' variational values, as views of them by layer."""
    views: dict[str, Tensor] = {}
    for name, posterior in adapter.posteriors.items():
        log_std = values[f"{name}.log_std"].split(posterior.ranks)
        log_concentration = values[f"{name}.log_concentration"].unbind()
        for layer, s, t in zip(posterior.layers, log_std, log_concentration, strict=True):
            views |= {f"{layer}.log_std": s, f"{layer}.log_concentration": t}
    return views


def _parameter_names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter: more than one where modules share it."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _shape(tensor: Tensor) -> list[int]:
    # ZeRO-3 keeps the shape of a sharded parameter under another name.
    return list(getattr(tensor, "ds_shape", tensor.shape))
