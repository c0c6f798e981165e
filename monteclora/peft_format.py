"""Adapters on disk, in the layout that PEFT and everything built on it reads, and adapters merged into the weights.

::

    adapter_config.json          PEFT's own description: a plain LoRA
    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight [r, in] and .lora_B.weight [out, r]
    monteclora.json              MonteCLoRA only: its settings
    variational.safetensors      MonteCLoRA only: <layer>.log_std [r] and <layer>.log_concentration [N]

For anybody else a MonteCLoRA adapter is thus the LoRA it is in evaluation, its posterior mean; `load_peft` restores all
of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from monteclora.adapter import Adapter, linear_names, replace_module, wrap_linears
from monteclora.config import LoRAConfig, MonteCLoRAConfig, is_target
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OWN_CONFIG, OWN_WEIGHTS = "monteclora.json", "variational.safetensors"
SCHEMA = 1

_PREFIX = "base_model.model."
_PLAIN_LORA = {
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
}
"""Settings of PEFT that change what a LoRA computes, and the values at which they do not."""


def save_peft(
    adapter: Adapter,
    directory: str | Path,
    base_model_name: str = "",
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter to `directory`, each file under a temporary name first.

    Args:
        adapter: what to save.
        directory: made if it is not there; files of an earlier adapter are replaced.
        base_model_name: name or path of the frozen model, for readers that fetch it themselves.
        tensors: full values by the names of `adapter.parameters()`. Give them when the parameters are sharded, and the
            adapter's own hold nothing; the default is the adapter's own.

    Raises:
        AdapterError: tensors that are missing, unknown or empty.
    """
    values = _full_tensors(adapter, adapter.parameters() if tensors is None else tensors)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lora = {f"{_PREFIX}{name}.weight": value for name, value in values.items() if _is_lora(name)}
    variational = {name: value for name, value in values.items() if not _is_lora(name)}
    _write_tensors(directory / PEFT_WEIGHTS, lora)
    if variational:
        _write_tensors(directory / OWN_WEIGHTS, variational)
        _write_json(directory / OWN_CONFIG, {"schema": SCHEMA, "method": "monteclora", **asdict(adapter.config)})
    else:
        (directory / OWN_WEIGHTS).unlink(missing_ok=True)
        (directory / OWN_CONFIG).unlink(missing_ok=True)
    _write_json(directory / PEFT_CONFIG, _peft_config(adapter, base_model_name))


def load_peft(model: nn.Module, directory: str | Path) -> Adapter:
    """Put the adapter saved in `directory` on `model`, whose other parameters are frozen, and return it.

    Reads plain LoRA adapters of PEFT as well as what `save_peft` wrote.

    Raises:
        AdapterError: files missing or damaged, a kind of adapter other than LoRA, or one made for another model.
    """
    directory = Path(directory)
    peft = _read_json(directory / PEFT_CONFIG)
    tensors = _from_peft(directory, peft)
    own = _read_json(directory / OWN_CONFIG) if (directory / OWN_CONFIG).exists() else None
    if own is not None:
        tensors |= _read_tensors(directory / OWN_WEIGHTS)
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    linears = linear_names(model)
    if foreign := [name for name in names if name not in linears]:
        raise AdapterError(
            f"{directory} adapts {foreign[0]} ({len(foreign)} of {len(names)} layers), which is not a linear layer of "
            "this model; load the model it was trained on"
        )
    config = _own_config(directory, own) if own is not None else _lora_config(directory, peft, names, linears)
    adapter = wrap_linears(model, names, config)
    parameters = adapter.parameters()
    _check_same_names(directory, parameters, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise AdapterError(
                    f"{name} in {directory} has shape {list(tensors[name].shape)}, this model needs "
                    f"{list(parameter.shape)}; load the model it was trained on"
                )
            parameter.copy_(tensors[name])
    return adapter


def merge_adapter(model: nn.Module) -> None:
    """Add every adapter's update to its frozen weight, W + (alpha / r) B A, and put the plain layer back, in place.

    The sum is taken in fp32 and rounded once to the weight's dtype.

    Raises:
        AdapterError: the model has no adapter, or its weights are sharded.
    """
    layers = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, LoRALinear)
    }
    if not layers:
        raise AdapterError("the model has no adapter to merge; attach or load one first")
    for name, layer in layers.items():
        if not all(p.numel() for p in (layer.base.weight, layer.lora_A, layer.lora_B)):
            raise AdapterError(f"{name} is sharded and holds no values here; gather the full weights before merging")
    with torch.no_grad():
        for layer in dict.fromkeys(layers.values()):
            update = layer.scaling * (layer.lora_B.float() @ layer.lora_A.float())
            layer.base.weight.copy_(layer.base.weight.float() + update)
    for name, layer in layers.items():
        replace_module(model, name, layer.base)


def _is_lora(name: str) -> bool:
    return name.endswith((".lora_A", ".lora_B"))


def _full_tensors(adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check that these are all of the adapter's values, and copy them to contiguous CPU tensors."""
    _check_same_names("the tensors to save", adapter.parameters(), tensors)
    if empty := [name for name, value in tensors.items() if value.numel() == 0]:
        raise AdapterError(
            f"{len(empty)} tensors hold nothing, first {empty[0]}: they are sharded; gather the full values and pass "
            "them as `tensors`"
        )
    return {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}


def _check_same_names(where: str | Path, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    if missing := [name for name in wanted if name not in got]:
        raise AdapterError(f"{where}: {len(missing)} adapter tensors are missing, first {missing[0]}")
    if unknown := [name for name in got if name not in wanted]:
        raise AdapterError(f"{where}: {len(unknown)} tensors are not part of the adapter, first {unknown[0]}")


def _peft_config(adapter: Adapter, base_model_name: str) -> dict[str, Any]:
    config = adapter.config
    # PEFT reads a plain name as the last component of a layer's name, as we do; it knows no wildcards.
    plain = not any(c in pattern for pattern in config.targets for c in "*?[.")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets if plain else adapter.modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _from_peft(directory: Path, peft: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read PEFT's tensors under our names, refusing every adapter that is not a plain LoRA on linear layers."""
    if peft.get("peft_type") != "LORA":
        raise AdapterError(f"{directory / PEFT_CONFIG} holds a {peft.get('peft_type')} adapter; only LORA can be read")
    for setting, plain in _PLAIN_LORA.items():
        if setting in peft and peft[setting] not in plain:
            raise AdapterError(
                f"{directory / PEFT_CONFIG} sets {setting} to {peft[setting]!r}, which is more than a plain LoRA; "
                "merge it into its base model with PEFT and load the result as a model"
            )
    tensors: dict[str, Tensor] = {}
    for key, value in _read_tensors(directory / PEFT_WEIGHTS).items():
        name = key.removeprefix(_PREFIX).removesuffix(".weight")
        if not (key.startswith(_PREFIX) and key.endswith(".weight") and _is_lora(name)):
            raise AdapterError(f"{directory / PEFT_WEIGHTS} holds {key}, which is not part of a LoRA on linear layers")
        tensors[name] = value
    return tensors


def _lora_config(directory: Path, peft: Mapping[str, Any], names: list[str], linears: list[str]) -> LoRAConfig:
    try:
        rank, alpha, dropout = int(peft["r"]), float(peft["lora_alpha"]), float(peft.get("lora_dropout", 0.0))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{directory / PEFT_CONFIG} has no usable r, lora_alpha, lora_dropout ({error})") from error
    listed = peft.get("target_modules")
    targets = tuple(listed) if isinstance(listed, list) else ()
    # PEFT accepts other patterns than we do, a regular expression for one; the layers themselves always say it.
    if {name for name in linears if is_target(name, targets)} != set(names):
        targets = tuple(names)
    return LoRAConfig(rank=rank, alpha=alpha, dropout=dropout, targets=targets)


def _own_config(directory: Path, own: Mapping[str, Any]) -> MonteCLoRAConfig:
    if own.get("schema") != SCHEMA:
        raise AdapterError(
            f"{directory / OWN_CONFIG} has schema {own.get('schema')}, this version reads {SCHEMA}; "
            "use the version that wrote it"
        )
    known = {field.name for field in fields(MonteCLoRAConfig)}
    settings: dict[str, Any] = {key: value for key, value in own.items() if key in known}
    return MonteCLoRAConfig(**settings | {"targets": tuple(own.get("targets", ()))})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; give the directory of a saved adapter") from None
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON ({error}); save the adapter again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} holds no JSON object; save the adapter again")
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; save the adapter again, in safetensors format") from None
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged ({error}); save the adapter again") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _publish(temporary, path)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    """Make sure the bytes are on disk, then give the file its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
