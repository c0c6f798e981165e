"""`export`: an adapter or a model for other software, from the files of a checkpoint alone.

The model of the run is built without memory for its parameters. Each is then read, computed and written before the next one: in
memory is the largest of them, a few times over, whatever the size of the model. (All of an adapter is, when that is what is
exported.) There is no process group, no GPU and no DeepSpeed here, and the world size of the training does not matter.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from data_pipeline import load_tokenizer
from data_pipeline.commands.progress import ProgressReporter
from data_pipeline.errors import PipelineError
from monteclora import save_peft
from monteclora.errors import AdapterError
from monteclora.fingerprint import base_fingerprint, frozen_weights
from monteclora.merge import check_mergeable, merged_weight
from training.checkpoint.commands import damages_of, find
from training.checkpoint.image import header
from training.checkpoint.manifest import Checkpoint, open_checkpoint
from training.checkpoint.recorded import recorded_config
from training.checkpoint.storage import write_file
from training.checkpoint.weights import Weights, check_base, with_base
from training.config import Config
from training.errors import CheckpointError, ModelError
from training.files import sync_folder, write_json

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""That can be written."""
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
    """What is done about it, as far as it is known before any weight is read."""

    checkpoint: Checkpoint
    config: Config
    """Of the run, with the base where it is now."""
    base: Path | None
    """Folder of the base; None of a run that drew its weights."""
    tokenizer_files: list[Path]
    format: str
    """adapter, merged or full."""
    dtype: torch.dtype | None
    """Of what is written; None: as the run has it."""
    max_shard_size: int
    """Bytes."""
    out: Path


def export_checkpoint(request: Request) -> int:
    """Export as asked, and tell how it goes; return the exit code."""
    try:
        with ProgressReporter(sys.stderr, unit="bytes") as reporter:
            plan = _verified_plan(request, reporter)
            if plan.base is not None:
                check_base(plan.base, plan.checkpoint)
            _publish(plan, reporter)
    except (CheckpointError, ModelError, AdapterError, PipelineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'export'}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"exported step {plan.checkpoint.step} ({plan.format}) to {plan.out}")
    return 0


def _verified_plan(request: Request, reporter: ProgressReporter) -> Plan:
    """What is to be done with the newest undamaged checkpoint."""
    for folder in find(request.checkpoint).folders:
        try:
            checkpoint = open_checkpoint(folder)
        except CheckpointError as error:
            damages = [str(error)]
        else:
            # Whatever is wrong with the request is told before everything is read.
            plan = make_plan(checkpoint, request)
            if not (damages := damages_of(folder, reporter)):
                return plan
        for damage in damages:
            print(f"damaged: {damage}", file=sys.stderr)
    raise CheckpointError(f"{request.checkpoint}: there is no undamaged checkpoint, so nothing is exported")


def make_plan(checkpoint: Checkpoint, request: Request) -> Plan:
    """Settle what is written, where, and from which files.

    Raises:
        CheckpointError: it can't be done; says why, and with which option it could.
    """
    config = recorded_config(checkpoint)
    root = checkpoint.path.parent
    default = (root.parent if root.name == "checkpoints" else root) / f"export-{checkpoint.step}"
    # A link to an empty folder can't be replaced by one that is ready, the folder can.
    out = Path(os.path.realpath(request.out or default))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(
            f"--out {request.out or default}: is there already; name a new or empty folder, or remove it"
        )
    config, base = with_base(config, request.base)
    return Plan(
        checkpoint=checkpoint,
        config=config,
        base=base,
        tokenizer_files=_tokenizer_files(checkpoint, request.tokenizer or config.data.tokenizer),
        format=_format(config, request.format),
        dtype=DTYPES.get(request.dtype),
        max_shard_size=request.max_shard_size,
        out=out,
    )


def _format(config: Config, wanted: str) -> str:
    kind = config.adapter.kind
    if wanted == "auto":
        return "full" if kind == "none" else "merged" if config.checkpoint.export_merged else "adapter"
    if wanted == "model":
        return "full" if kind == "none" else "merged"
    if kind == "none" and wanted != "full":
        raise CheckpointError(f"--format {wanted}: the run trained no adapter (adapter.kind is none); use full")
    if kind != "none" and wanted == "full":
        raise CheckpointError(
            f"--format full: the run trained an adapter ({kind}); use merged for a model with it in, or adapter"
        )
    return wanted


def _tokenizer_files(checkpoint: Checkpoint, path: Path) -> list[Path]:
    if not path.exists():
        raise CheckpointError(f"the tokenizer {path} is not there; say with --tokenizer where it is now")
    tokenizer = load_tokenizer(path, "reference")
    if tokenizer.fingerprint != checkpoint.manifest["fingerprints"].get("tokenizer"):
        raise CheckpointError(f"{path}: is another tokenizer than the run's; say with --tokenizer where that one is")
    return tokenizer.files


def _publish(plan: Plan, reporter: ProgressReporter) -> None:
    """Write everything under a temporary name, then give it its own."""
    folder = plan.out.with_name(f".{plan.out.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        weights = Weights(plan.checkpoint, plan.config, plan.base, is_as_in_run=plan.dtype is None)
        if plan.format == "adapter":
            _write_adapter(weights, plan, folder)
        else:
            _write_model(weights, plan, folder, lambda done, total: reporter.report("writing the model", done, total))
        for path in plan.tokenizer_files:
            shutil.copy2(path, folder / path.name)
        sync_folder(folder)
        folder.rename(plan.out)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            # A write does not say to which file.
            error.filename = str(plan.out)
        raise


def _write_adapter(weights: Weights, plan: Plan, folder: Path) -> None:
    adapter = weights.adapter
    assert adapter is not None
    values = {
        name: _rounded(name, weights.read(parameter), plan.dtype or parameter.dtype)
        for name, parameter in adapter.named_parameters().items()
    }
    frozen = frozen_weights(adapter)
    fingerprint = base_fingerprint((name, weights.read(weight)) for name, weight in frozen.items())
    save_peft(adapter, folder, str(plan.config.model.base), tensors=values, base_fingerprint=fingerprint)


def _write_model(weights: Weights, plan: Plan, folder: Path, report: Callable[[int, int], None]) -> None:
    """Write what transformers loads, with the adapter, where there is one, added to the weights beside which it trained."""
    model, adapter = weights.model, weights.adapter
    adapted, own = {}, set()
    if adapter is not None:
        check_mergeable(model)
        adapted = {layer.weight: layer for layer in adapter.layers.values()}
        own = {parameter for name, parameter in adapter.named_parameters().items() if name not in adapter.saved}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter not in own}

    def make(name: str) -> Tensor:
        parameter = parameters[name]
        value = weights.read(parameter)
        if layer := adapted.get(parameter):
            value = merged_weight(value, weights.read(layer.lora_A), weights.read(layer.lora_B), layer.scaling)
        return _rounded(name, value, plan.dtype or parameter.dtype)

    described = {
        name: torch.empty(parameter.shape, dtype=plan.dtype or parameter.dtype, device="meta")
        for name, parameter in parameters.items()
    }
    _write_configuration(model, folder, plan.dtype or model.dtype)
    _write_tensors(folder, described, make, plan.max_shard_size, report)


def _write_configuration(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """What `save_pretrained` writes beside weights; itself it would import DeepSpeed."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(dtype).removeprefix("torch.")
    if model.is_remote_code():
        custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _write_tensors(
    folder: Path,
    described: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    max_shard_size: int,
    report: Callable[[int, int], None],
) -> None:
    """Write model.safetensors, or several such files and their index, one tensor after the other.

    Args:
        folder: of the files.
        described: type and shape of every tensor by its name.
        make: gives the tensor with a name.
        max_shard_size: most bytes of a file that holds more than one tensor.
        report: is told how many bytes of how many are written.
    """
    split = split_state_dict_into_shards_factory(
        dict(described),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    done, total = 0, int(split.metadata["total_size"])

    def content(names: Sequence[str]) -> Iterator[Any]:
        nonlocal done
        chosen = {name: described[name] for name in names}
        tensors = {name: (STORED_AS[each.dtype], tuple(each.shape), each.nbytes) for name, each in chosen.items()}
        # Some readers want to be told whose tensors they are.
        yield header(tensors, {"format": "pt"})
        for name in names:
            value = make(name).contiguous()
            yield value.view(-1).view(torch.uint8).numpy()
            done += value.nbytes
            report(done, total)

    for file, names in split.filename_to_tensors.items():
        write_file(folder / file, content(sorted(names)), read_back=False)
    if split.is_sharded:
        count = sum(tensor.numel() for tensor in described.values())
        index = {"metadata": {"total_parameters": count, **split.metadata}, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def _rounded(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the type in which it is written.

    Raises:
        CheckpointError: it has values that this type has not.
    """
    rounded = value.to(dtype)
    if not rounded.isfinite().all():
        wide = "" if dtype == torch.float32 else "; try --dtype fp32"
        raise CheckpointError(f"{name} has values that are infinite or no numbers in {STORED_AS[dtype]}{wide}")
    return rounded
