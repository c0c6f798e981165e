"""A pretrained base, read from its files straight to where its parameters live.

Host memory of a rank while it loads: a buffer of READ_BYTES and the headers of the files, beside what stays where the device
is the CPU, too: the rank's share of the model under ZeRO-3, the model when it is replicated. No rank holds or sends what
another one needs: under ZeRO-3 each reads its own slices, so that all of them together read the base once.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from training.config import ModelConfig, looks_like_path
from training.errors import ModelError
from training.model import base_files
from training.model.base_files import StoredTensor

READ_BYTES = 2**24
"""Bytes of a tensor that are read at once, before they go where they belong."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Weights(Protocol):
    """The stored tensors of a base."""

    def __contains__(self, name: str) -> bool: ...

    def misfits(self, wanted: dict[str, tuple[int, ...]]) -> list[str]:
        """Everything in which they are not the tensors wanted."""

    def copy(self, name: str, start: int, target: Tensor) -> None:
        """Set 1-D `target` to the elements from `start` on of the flattened tensor, rounded to its type.

        Raises:
            ModelError: there are no more so many.
        """


class Safetensors:
    """`Weights` in safetensors, read and not mapped: a mapping's pages would count as memory of the rank."""

    def __init__(self, folder: Path) -> None:
        """Read the headers."""
        self._tensors, damaged = base_files.read_tensors(folder)
        if damaged:
            raise ModelError(f"its safetensors can't be used:{base_files.listing(damaged)}")
        self._buffer = torch.empty(READ_BYTES, dtype=torch.uint8)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def misfits(self, wanted: dict[str, tuple[int, ...]]) -> list[str]:
        """Compare; see `Weights`."""
        return base_files.misfits(self._tensors, wanted)

    def copy(self, name: str, start: int, target: Tensor) -> None:
        """Read a part; see `Weights`."""
        stored = self._tensors[name]
        dtype = DTYPES[stored.dtype]
        buffer = self._buffer.view(dtype)
        with stored.file.open("rb") as file:
            file.seek(stored.offset + start * dtype.itemsize)
            for piece in target.split(len(buffer)):
                values = buffer[: len(piece)]
                if file.readinto(values.view(torch.uint8).numpy().data) != values.nbytes:
                    raise ModelError(f"{stored.file.name} ends within {name}")
                piece.copy_(values)


class Pickled:
    """`Weights` in pickles, which torch's restricted unpickler maps: only the parts that are used are read."""

    def __init__(self, folder: Path) -> None:
        """Open the files."""
        self._tensors: dict[str, Tensor] = {}
        for path in base_files.pickled_files(folder):
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # of many kinds, and none of ours
                reason = str(error).strip().partition("\n")[0]
                raise ModelError(f"{path.name} can't be read as a dictionary of tensors: {reason}") from error
            if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
                raise ModelError(f"{path.name} is no dictionary of tensors")
            self._tensors |= found

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def misfits(self, wanted: dict[str, tuple[int, ...]]) -> list[str]:
        """Compare; see `Weights`."""
        # Only type and shape count here.
        names = {dtype: name for name, dtype in DTYPES.items()}
        tensors = {
            name: StoredTensor(
                file=Path(), dtype=names.get(value.dtype, str(value.dtype)), shape=tuple(value.shape), offset=0
            )
            for name, value in self._tensors.items()
        }
        return base_files.misfits(tensors, wanted)

    def copy(self, name: str, start: int, target: Tensor) -> None:
        """Copy a part; see `Weights`."""
        target.copy_(self._tensors[name].detach().reshape(-1)[start : start + len(target)])


Place = Callable[[tuple[int, ...], Callable[[int, Tensor], None]], nn.Parameter]
"""Makes a parameter of a shape where it belongs; calls the given function with an index in the flattened tensor and the
1-D tensor to be filled from there on."""


def replicated(dtype: torch.dtype, device: torch.device) -> Place:
    """Every parameter whole on the device."""

    def place(shape: tuple[int, ...], fill: Callable[[int, Tensor], None]) -> nn.Parameter:
        whole = torch.empty(shape, dtype=dtype, device=device)
        fill(0, whole.view(-1))
        return nn.Parameter(whole)

    return place


def partitioned(dtype: torch.dtype, ds_config: dict[str, Any]) -> Place:
    """Every parameter partitioned by ZeRO-3: rank k keeps [k n, (k + 1) n) of it flattened, n = ceil(numel / ranks).

    What is beyond the end is zero. The node's copy of hpZ is not made here but, as after every step, by the first gathering.
    """
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus

    # Of an empty module: all that partitioning needs, and DeepSpeed's linear, which lets go of gathered weights.
    zero = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=ds_config)

    def place(shape: tuple[int, ...], fill: Callable[[int, Tensor], None]) -> nn.Parameter:
        # Of this shape, and without the memory for it.
        parameter: Any = nn.Parameter(torch.empty((), dtype=dtype, device=zero.local_device).expand(shape))
        zero._convert_to_deepspeed_param(parameter)
        ranks, rank = parameter.ds_zero_partition_world_size, parameter.ds_zero_partition_rank
        per_rank = math.ceil(parameter.numel() / ranks)
        share: Any = torch.zeros(per_rank, dtype=dtype, device=zero.local_device)
        start = rank * per_rank
        if mine := max(0, min(per_rank, parameter.numel() - start)):
            fill(start, share[:mine])
        share.ds_numel, share.status, share.final_location = per_rank, PartitionedParamStatus.AVAILABLE, None
        parameter.ds_tensor, parameter.ds_numel_aligned = share, ranks * per_rank
        # As it has its share, all that this does is to make the parameter empty.
        zero._partition_param(parameter)
        return parameter

    return place


def load_base(
    config: ModelConfig, *, dtype: torch.dtype, place: Place, device: torch.device, attention: str
) -> PreTrainedModel:
    """The pretrained model, in evaluation mode, its parameters made and filled one by one by `place`.

    Buffers are computed as transformers does, in its precision, and put on `device`. Tied weights are one parameter.

    Raises:
        ModelError: the base can't be found, is damaged, of another shape than its config.json says, in no floating-point
            type, or needs something that `config` does not allow.
    """
    try:
        folder = base_folder(config)
        model = empty_model(folder, config, dtype=dtype, attention=attention)
        fill_model(model, open_weights(folder), place)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = str(error).strip()
        if not isinstance(error, ModelError):
            reason = f"can't be loaded: {reason.partition(chr(10))[0]}"
        raise ModelError(f'model.base = "{config.base}": {reason}') from error
    return model.eval()


def base_folder(config: ModelConfig) -> Path:
    """The folder of the base's files, downloaded where it is a hub name and not yet here.

    Raises:
        ModelError: it needs something that `config` does not allow.
        OSError: it is not there.
    """
    base = str(config.base)
    if looks_like_path(base):
        folder = Path(base)
    else:
        code = ("*.py",) if config.allow_remote_code else ()
        folder = snapshot(base, config.revision, ("*.json", "*.safetensors", *code))
        if config.allow_pickled_weights and not base_files.weight_files(folder):
            folder = snapshot(base, config.revision, ("*.json", "pytorch_model*.bin", *code))
    missing = list(
        base_files.permission_problems(
            folder, allow_pickled_weights=config.allow_pickled_weights, allow_remote_code=config.allow_remote_code
        )
    )
    if missing:
        raise ModelError("; ".join(missing))
    return folder


@functools.cache
def snapshot(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The folder of a hub repository's files at one commit, whose name it bears.

    The hub is asked once: of a branch that moves while the run starts, what is loaded is what gets the fingerprint.
    """
    return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def open_weights(folder: Path) -> Weights:
    """The weights in a folder: safetensors, or pickles where there are only those."""
    return Safetensors(folder) if base_files.weight_files(folder) else Pickled(folder)


def empty_model(folder: Path, config: ModelConfig, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model with parameters that have no memory, and with its buffers."""
    trust = {"trust_remote_code": config.allow_remote_code}
    described = AutoConfig.from_pretrained(folder, local_files_only=True, **trust)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            described, dtype=dtype, attn_implementation=attention, **trust
        )
    # What was shared is two parameters now that they have no memory.
    model.tie_weights()
    with contextlib.suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def fill_model(model: PreTrainedModel, weights: Weights, place: Place) -> None:
    """Replace every parameter of the model by one with the stored values.

    Raises:
        ModelError: what is stored is not what the model has, with everything that differs.
    """
    homes = parameter_homes(model)
    # Of the names of a tied weight one may be stored, or all.
    stored = [[name for name in names if name in weights] or names[:1] for _, names in homes]
    shapes = [tuple(parameter.shape) for parameter, _ in homes]
    wanted = {name: shape for names, shape in zip(stored, shapes, strict=True) for name in names}
    if wrong := weights.misfits(wanted):
        raise ModelError(f"its files are not the model that its config.json describes:{base_files.listing(wrong)}")
    for (_, names), read, shape in zip(homes, stored, shapes, strict=True):
        parameter = place(shape, functools.partial(_fill, weights, read))
        for name in names:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._parameters[leaf] = parameter


def _fill(weights: Weights, names: list[str], start: int, target: Tensor) -> None:
    """Set `target` to a part of a parameter that may be stored under several names."""
    weights.copy(names[0], start, target)
    for name in names[1:]:
        other = torch.empty_like(target)
        weights.copy(name, start, other)
        if not torch.equal(target, other):
            raise ModelError(
                f"its config.json ties {name} to {names[0]}, but its files hold other values for it; set "
                f"tie_word_embeddings to false there, or take {name} out of the files"
            )


def parameter_homes(model: nn.Module) -> list[tuple[nn.Parameter, list[str]]]:
    """Every parameter with all the names it has."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), (parameter, []))[1].append(name)
    return list(found.values())
