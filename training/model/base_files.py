"""The files of a base model: what their headers say they hold, and everything in that which does not fit the model.

Nothing here imports torch: a login node can tell that a base is damaged, incomplete or another model.
Safetensors: 8 bytes with the length n of the header (little-endian), n bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.costs.shape import EMBEDDING, Shape
from training.files import read_json

FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Types of safetensors that can be trained, and bytes per element."""

HEAD = "lm_head.weight"

SHOWN_PROBLEMS = 20
"""Problems of one base that are listed; of more the number is told."""

MAX_HEADER_BYTES = 100_000_000
"""No header is longer in safetensors' own readers, either."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies."""

    file: Path
    dtype: str
    """As safetensors call it, such as BF16."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file to its first element."""


class DamagedFile(ValueError):
    """A safetensors file whose header can't be read, or that ends before its tensors do; says why, without the name."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of the model in `folder`, there or not: those its index names, else model.safetensors, else all."""
    index = read_json(folder / "model.safetensors.index.json")
    if index is not None and isinstance(index.get("weight_map"), dict):
        return sorted({folder / str(name) for name in index["weight_map"].values()})
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def pickled_files(folder: Path) -> list[Path]:
    """The pickled weights of the model in `folder`."""
    return sorted(folder.glob("pytorch_model*.bin"))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; only its header is read.

    Raises:
        DamagedFile: the header is none, or the file is shorter or longer than the header says.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise DamagedFile(f"is damaged or no safetensors file: its {size:,} bytes hold no whole header")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _stored_tensor(path, 8 + length, entry) for name, entry in header.items()}
        end = max((8 + length + entry["data_offsets"][1] for entry in header.values()), default=8 + length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"is damaged: its header can't be read ({error})") from error
    if size < end:
        raise DamagedFile(f"is cut off: it has {size:,} bytes, and its tensors end at byte {end:,}")
    if size > end:
        raise DamagedFile(f"is damaged: it has {size - end:,} bytes more than its tensors")
    return tensors


def _stored_tensor(path: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    """One entry of a header, checked in itself."""
    shape, (start, stop) = tuple(int(side) for side in entry["shape"]), entry["data_offsets"]
    element = FLOAT_BYTES.get(entry["dtype"])
    if not 0 <= start <= stop or min(shape, default=0) < 0:
        raise ValueError("a tensor with a negative size")
    if element is not None and stop - start != element * math.prod(shape):
        raise ValueError(f"{stop - start} bytes for a tensor of shape {list(shape)} in {entry['dtype']}")
    return StoredTensor(file=path, dtype=entry["dtype"], shape=shape, offset=data_start + start)


def read_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of all weight files of a folder by name, and every file that can't be used, with the reason."""
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for path in weight_files(folder):
        try:
            found = read_header(path)
        except FileNotFoundError:
            problems.append(f"{path.name} is missing, and model.safetensors.index.json names it")
            continue
        except OSError as error:
            problems.append(f"{path.name} can't be read: {error.strerror or error}")
            continue
        except DamagedFile as error:
            problems.append(f"{path.name} {error}")
            continue
        except ValueError as error:
            problems.append(f"model.safetensors.index.json names {path.name!r}, which is no file: {error}")
            continue
        for name in sorted(tensors.keys() & found.keys()):
            problems.append(f"{name} is in {tensors[name].file.name} and in {path.name}")
        tensors |= found
    return tensors, problems


def differences(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield every tensor of another shape than wanted, every one too many and every one missing.

    The rotary frequencies that old checkpoints hold are not too many: they are computed.
    """
    for name in found.keys() & wanted.keys():
        if tuple(found[name]) != tuple(wanted[name]):
            yield f"{name} is {_sides(found[name])}, and must be {_sides(wanted[name])}"
    for name in found.keys() - wanted.keys():
        if not name.endswith("rotary_emb.inv_freq"):
            yield f"{name} is unexpected"
    for name in wanted.keys() - found.keys():
        yield f"{name} is missing"


def _sides(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def unusable_types(tensors: Mapping[str, StoredTensor], wanted: Collection[str]) -> Iterator[str]:
    """Yield every wanted tensor that is not stored as floating-point numbers, which a quantized base is not."""
    for name, tensor in tensors.items():
        if name in wanted and tensor.dtype not in FLOAT_BYTES:
            yield f"{name} is stored as {tensor.dtype}; only {', '.join(FLOAT_BYTES)} can be trained"


def in_order(problems: Iterable[str]) -> list[str]:
    """Problems by name, layer 2 before layer 10."""
    return sorted(
        problems, key=lambda text: [(len(part), part) if part.isdigit() else (0, part) for part in text.split(".")]
    )


def problems(folder: Path, shape: Shape | None) -> list[str]:
    """Everything that keeps the safetensors of a folder from being the LLaMA of this shape, which its config.json describes.

    Of another kind of model, whose shape is None, only damaged files are known here.
    """
    tensors, damaged = read_tensors(folder)
    if shape is None or not weight_files(folder):
        return damaged
    wanted = shape.tensors()
    if shape.is_tied and HEAD in tensors:
        # One weight under two names, of which either may be stored, or both.
        wanted[HEAD] = wanted[EMBEDDING] if EMBEDDING in tensors else wanted.pop(EMBEDDING)
    wrong = misfits(tensors, wanted)
    if damaged:
        # What a file that can't be read would hold is not missing as well.
        wrong = [text for text in wrong if not text.endswith(" is missing")]
    return [*damaged, *wrong]


def misfits(tensors: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Everything in which stored tensors are not those wanted, by name."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    return in_order([*unusable_types(tensors, wanted), *differences(found, wanted)])


def permission_problems(folder: Path, *, allow_pickled_weights: bool, allow_remote_code: bool) -> Iterator[str]:
    """Yield what a base needs to have allowed by name, or has not at all."""
    if not any(folder.glob("*.safetensors")) and not (folder / "model.safetensors.index.json").is_file():
        if not pickled_files(folder):
            yield "the folder has no *.safetensors, so no weights to load"
        elif not allow_pickled_weights:
            yield (
                "the folder has only pickled weights (*.bin), no *.safetensors; convert them, or set "
                "model.allow_pickled_weights = true if you trust where they come from"
            )
    if not allow_remote_code and (read_json(folder / "config.json") or {}).get("auto_map"):
        yield (
            "brings Python code of its own (auto_map in its config.json), which would run with your rights; set "
            "model.allow_remote_code = true if you have read it"
        )


def listing(problems: list[str]) -> str:
    """Problems as one text, a line each, the first of them when there are many."""
    lines = problems[:SHOWN_PROBLEMS]
    if len(problems) > SHOWN_PROBLEMS:
        lines = [*lines, f"... and {len(problems) - SHOWN_PROBLEMS:,} more"]
    return "".join(f"\n    {line}" for line in lines)
