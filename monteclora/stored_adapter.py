"""The files of an adapter: written whole, read with all checks that need no model.

::

    adapter_config.json          PEFT's own description: a LoRA
    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight [r, in] and .lora_B.weight [out, r],
                                 and base_model.model.<parameter> of the modules that train in full
    palimpsest.json              ours: the method, all its settings, the fingerprint of the base
    variational.safetensors      MonteCLoRA only: <layer>.log_std [r] and <layer>.log_concentration [N]
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.errors import AdapterError
from monteclora.peft_config import from_peft, more_than_lora

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OWN_CONFIG, OWN_WEIGHTS = "palimpsest.json", "variational.safetensors"
SCHEMA = 1

_METHODS: dict[str, type[LoRAConfig]] = {"lora": LoRAConfig, "monteclora": MonteCLoRAConfig}
_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """What the files hold. Layers and parameters have the names they have in the model."""

    config: LoRAConfig
    """Settings of the adapter."""

    low_rank: dict[str, Tensor]
    """`<layer>.lora_A` [r, in] and `<layer>.lora_B` [out, r]."""

    in_full: dict[str, Tensor]
    """The parameters that trained in full."""

    variational: dict[str, Tensor]
    """`<layer>.log_std` [r] and `<layer>.log_concentration` [N]; empty for a LoRA."""

    base_fingerprint: str | None
    """Of the frozen weights; None where it is not known."""

    is_ours: bool
    """Whether `save_peft` wrote them; else PEFT did."""

    @property
    def layers(self) -> list[str]:
        """Names of the adapted layers."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.low_rank))


def write_adapter(directory: Path, stored: StoredAdapter, peft_config: Mapping[str, Any]) -> None:
    """Write the files of an adapter, each under a temporary name first, in place of those of an earlier one."""
    directory.mkdir(parents=True, exist_ok=True)
    low_rank = {f"{_PREFIX}{name}.weight": value for name, value in stored.low_rank.items()}
    in_full = {f"{_PREFIX}{name}": value for name, value in stored.in_full.items()}
    _write_tensors(directory / PEFT_WEIGHTS, low_rank | in_full)
    if stored.variational:
        _write_tensors(directory / OWN_WEIGHTS, stored.variational)
    else:
        (directory / OWN_WEIGHTS).unlink(missing_ok=True)
    own = {
        "schema": SCHEMA,
        "method": next(name for name, kind in _METHODS.items() if type(stored.config) is kind),
        "base_fingerprint": stored.base_fingerprint,
        "settings": asdict(stored.config),
    }
    _write_json(directory / OWN_CONFIG, own)
    _write_json(directory / PEFT_CONFIG, peft_config)


def read_adapter(directory: Path, linears: Collection[str], modules: Collection[str]) -> StoredAdapter:
    """Read the files of an adapter, ours or PEFT's.

    Args:
        directory: of the files.
        linears: names of the linear layers of the model it is for.
        modules: names of all its modules.

    Raises:
        AdapterError: files missing or damaged, or an adapter that is more than a LoRA on linear layers.
    """
    path = directory / PEFT_CONFIG
    peft = _read_json(path)
    if peft.get("peft_type") != "LORA":
        raise AdapterError(f"{path} holds a {peft.get('peft_type')} adapter; only LORA can be read")
    for setting in more_than_lora(peft):
        raise AdapterError(
            f"{path} sets {setting}, which is more than a plain LoRA; "
            "merge it into its base model with PEFT and load the result as a model"
        )
    low_rank, in_full = {}, {}
    for key, value in _read_tensors(directory / PEFT_WEIGHTS).items():
        name = key.removeprefix(_PREFIX)
        if name == key:
            raise AdapterError(f"{directory / PEFT_WEIGHTS} holds {key}, which is not part of a LoRA on linear layers")
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            low_rank[name.removesuffix(".weight")] = value
        else:
            in_full[name] = value
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in low_rank))
    try:
        config = from_peft(peft, layers, linears, modules)
    except ValueError as error:
        raise AdapterError(f"{path} is of no use: {error}") from error
    base, variational, is_ours = None, {}, os.path.lexists(directory / OWN_CONFIG)
    if is_ours:
        own = _read_json(directory / OWN_CONFIG)
        config = _agreed(_own_config(directory / OWN_CONFIG, own), config, layers, directory)
        base = own.get("base_fingerprint")
        if isinstance(config, MonteCLoRAConfig):
            variational = _read_tensors(directory / OWN_WEIGHTS)
    return StoredAdapter(
        config=config,
        low_rank=low_rank,
        in_full=in_full,
        variational=variational,
        base_fingerprint=base,
        is_ours=is_ours,
    )


def _own_config(path: Path, own: Mapping[str, Any]) -> LoRAConfig:
    if own.get("schema") != SCHEMA or own.get("method") not in list(_METHODS):
        raise AdapterError(
            f"{path} has schema {own.get('schema')}, method {own.get('method')}; this version reads schema {SCHEMA}, "
            f"{' or '.join(_METHODS)}; use the version that wrote it"
        )
    kind = _METHODS[own["method"]]
    known = {field.name for field in fields(kind)}
    try:
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in own["settings"].items()
            if key in known
        }
        config = kind(**settings)
        problems = [f"{name} {message}" for name, message in config.problems()]
    except (KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path} has no usable settings ({error}); save the adapter again") from error
    if problems:
        raise AdapterError(f"{path}: " + "; ".join(problems))
    return config


def _agreed(own: LoRAConfig, peft: LoRAConfig, layers: Iterable[str], directory: Path) -> LoRAConfig:
    """Our settings, if PEFT's file describes the same update of every layer."""
    for name in layers:
        if (own.rank_of(name), own.scaling_of(name)) != (peft.rank_of(name), peft.scaling_of(name)):
            raise AdapterError(
                f"{OWN_CONFIG} and {PEFT_CONFIG} in {directory} give {name} different ranks or alphas, so other software "
                f"has changed the adapter; delete {OWN_CONFIG} to read the LoRA that is there"
            )
    return own


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; give the directory of a saved adapter") from None
    except OSError as error:
        raise AdapterError(f"{path} can't be read ({error.strerror}); give the directory of a saved adapter") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); save the adapter again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} holds no JSON object; save the adapter again")
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; save the adapter again, in safetensors format") from None
    except OSError as error:
        raise AdapterError(f"{path} can't be read ({error}); save the adapter again") from None
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged ({error}); save the adapter again") from error
    for name, value in tensors.items():
        # fp8 has no isfinite.
        if not (value.float() if value.is_floating_point() and value.itemsize == 1 else value).isfinite().all():
            raise AdapterError(
                f"{path} holds NaN or infinite values in {name}: the training that saved it diverged; take an earlier "
                "checkpoint of it"
            )
    return tensors


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _publish(temporary, path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    # Copies, as safetensors refuses tensors that share their storage.
    own = {
        name: value.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    # safetensors writes for its user alone; others may read this as any new file.
    temporary.touch()
    mode = temporary.stat().st_mode & 0o777
    save_file(own, temporary, metadata={"format": "pt"})
    temporary.chmod(mode)
    _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    """Make sure the bytes are on disk, then give the file its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
