"""`export`: an adapter or a model for other software, from the files of a checkpoint alone.

The model of the run is built without memory for its parameters. Each is then read, computed and written before the next one: in
memory is the largest of them, a few times over, whatever the size of the model. (All of an adapter is, when that is what is
exported.) There is no process group, no GPU and no DeepSpeed here, and the world size of the training does not matter.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_pipeline import load_tokenizer
from data_pipeline.commands.progress import ProgressReporter
from data_pipeline.errors import PipelineError
from monteclora import Adapter, attach_adapter, save_peft
from monteclora.errors import AdapterError
from monteclora.fingerprint import base_fingerprint, frozen_weights
from monteclora.merge import check_mergeable, merged_weight
from training.checkpoint.commands import damages_of, find
from training.checkpoint.image import shard_name
from training.checkpoint.manifest import Checkpoint, open_checkpoint
from training.checkpoint.recorded import recorded_config
from training.checkpoint.slices import check_parameters, overlaps
from training.checkpoint.storage import write_file
from training.config import Config, looks_like_path
from training.errors import CheckpointError, ModelError
from training.export import live_names
from training.files import sync_file, sync_folder
from training.model.base_files import DamagedFile, read_header
from training.model.build import folder_fingerprint, random_model
from training.model.loading import base_folder, empty_model, fill_model, open_weights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STORED_AS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""What safetensors calls them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; see --help."""

    checkpoint: Path
    out: Path | None = None
    format: str = "auto"
    dtype: str = "auto"
    base: Path | None = None
    tokenizer: Path | None = None
    max_shard_size: int = 5 * 10**9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done about it: everything that is known before weights are read."""

    checkpoint: Checkpoint
    config: Config
    out: Path
    format: str
    """adapter, merged or full."""
    dtype: torch.dtype | None
    """Of what is written; None: as the run has it."""
    max_shard_size: int
    """Bytes."""
    base: Path | None
    """Folder of the base; None of a run that drew its weights."""
    tokenizer_files: list[Path]


def export_checkpoint(request: Request) -> int:
    """Export as asked, telling how it goes; return the exit code."""
    try:
        with ProgressReporter(sys.stderr, unit="bytes") as reporter:
            plan = _verified_plan(request, reporter)
            _write(plan, reporter)
    except (CheckpointError, ModelError, AdapterError, PipelineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or request.checkpoint}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"exported step {plan.checkpoint.step} of {plan.config.run.dir} ({plan.format}) to {plan.out}")
    return 0


def _verified_plan(request: Request, reporter: ProgressReporter) -> Plan:
    """The newest checkpoint that is undamaged, and what to make of it."""
    damaged = []
    for folder in find(request.checkpoint).folders:
        try:
            # All that takes no time first.
            plan = make_plan(open_checkpoint(folder), request)
        ...
    raise CheckpointError


