"""export/: what other software loads, written once at the end of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipeline.encoding.tokenizer import Tokenizer
from monteclora import save_peft
from monteclora.fingerprint import base_fingerprint, frozen_weights
from monteclora.merge import check_mergeable, merged_weight
from training.config import Config
from training.engine import Engine


def export(engine: Engine, tokenizer: Tokenizer, config: Config) -> Path:
    """Write a PEFT adapter, or the full model in Hugging Face format, with the tokenizer beside it (a collective).

    The folder appears under its name only when it is complete.
    """
    adapter = engine.adapter
    if adapter is None:
        tensors = _on_rank_0(engine.full_parameters())
        return _publish(engine, tokenizer, config, lambda folder: _save_model(engine, folder, tensors))
    names = _live_names(engine, adapter.named_parameters())
    found = _on_rank_0(engine.full_parameters(sorted(names.values())))
    values = {name: found[live] for name, live in names.items() if live in found}
    frozen = {live: name for name, live in _live_names(engine, frozen_weights(adapter)).items()}
    # One at a time: together they are most of the model.
    weights = engine.full_parameters(sorted(frozen))
    fingerprint = base_fingerprint((frozen[live], weight) for live, weight in weights if weight is not None)
    return _publish(
        engine, tokenizer, config, lambda folder: _save_adapter(engine, folder, config, values, fingerprint)
    )


def export_merged(engine: Engine, tokenizer: Tokenizer, config: Config) -> Path:
    """Write the model with its adapter merged in Hugging Face format, and the adapter in `adapter/` (a collective).

    Each W + scaling * B A is summed in fp32 and rounded once. Like the export of a full model it gathers weights one by
    one and holds them all on rank 0's CPU only; the live model stays as it is.

    Raises:
        AdapterError: an adapted weight is another module's too.
    """
    adapter = engine.adapter
    assert adapter is not None, "without an adapter there is nothing to merge"
    check_mergeable(engine.model)
    tensors = _on_rank_0(engine.full_parameters())
    names = _live_names(engine, adapter.named_parameters())
    frozen = _live_names(engine, frozen_weights(adapter))

    def write(folder: Path) -> None:
        values = {name: tensors[live] for name, live in names.items()}
        fingerprint = base_fingerprint((name, tensors[live]) for name, live in frozen.items())
        _save_adapter(engine, folder / "adapter", config, values, fingerprint)
        for name, layer in adapter.layers.items():
            weight = tensors[frozen[f"{name}.weight"]]
            low_rank = values[f"{name}.lora_A"], values[f"{name}.lora_B"]
            tensors[frozen[f"{name}.weight"]] = merged_weight(weight, *low_rank, layer.scaling)
        beside = {live for name, live in names.items() if name not in adapter.saved}
        _save_model(engine, folder, {live: value for live, value in tensors.items() if live not in beside})

    return _publish(engine, tokenizer, config, write)


def _on_rank_0(parameters: Iterable[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    """Exhaust what `Engine.full_parameters` yields; empty on the other ranks."""
    return {name: value for name, value in parameters if value is not None}


def _live_names(engine: Engine, parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """The names by which the engine knows these parameters: a tied one has only its first."""
    live = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    return {name: live[id(parameter)] for name, parameter in parameters.items()}


def _save_model(engine: Engine, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    model: Any = engine.model
    # A copy, because save_pretrained removes entries.
    model.save_pretrained(folder, state_dict=dict(tensors), max_shard_size="5GB")
    # safetensors writes for its user alone; these are for whoever may read the rest.
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode & 0o777)


def _save_adapter(engine: Engine, folder: Path, config: Config, values: Mapping[str, Tensor], fingerprint: str) -> None:
    assert engine.adapter is not None
    save_peft(
        engine.adapter,
        folder,
        config.model.base or "",
        tensors=values,
        base_fingerprint=fingerprint,
    )


def _publish(engine: Engine, tokenizer: Tokenizer, config: Config, write: Callable[[Path], None]) -> Path:
    """Have rank 0 write the folder and the tokenizer under a temporary name, then give it its own."""
    final = config.run.dir / "export"
    if engine.world.rank == 0:
        folder = final.with_name(".export.unfinished")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        for path in tokenizer.files:
            shutil.copy2(path, folder / path.name)
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    engine.barrier()
    return final
