"""export/: what other software loads, written once at the end of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from data_pipeline.encoding.tokenizer import Tokenizer
from monteclora import save_peft
from training.config import Config
from training.engine import Engine


def export(engine: Engine, tokenizer: Tokenizer, config: Config) -> Path:
    """Write a PEFT adapter, or the full model in Hugging Face format, with the tokenizer beside it (a collective).

    The folder appears under its name only when it is complete.
    """
    final = config.run.dir / "export"
    folder = final.with_name(".export.unfinished")
    wanted = None if engine.adapter is None else set(engine.adapter.parameters())
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in engine.full_parameters(None if wanted is None else sorted(wanted)):
        if tensor is not None:
            tensors[name] = tensor
    if engine.world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if engine.adapter is None:
            # A copy, because save_pretrained removes entries.
            model: Any = engine.model
            model.save_pretrained(folder, state_dict=dict(tensors), max_shard_size="5GB")
        else:
            save_peft(engine.adapter, folder, base_model_name=config.model.base or "", tensors=tensors)
        for path in tokenizer.files:
            shutil.copy2(path, folder / path.name)
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    engine.barrier()
    return final
