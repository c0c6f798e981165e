"""The weights in a Hugging Face folder, and opening whatever folder people name: a model, an adapter, or a run with one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evals.errors import EvalError
from evals.json_text import parse_json
from evals.weights.names import plain_name
from evals.weights.spectrum import LowRank

if TYPE_CHECKING:
    from evals.weights.stored import Weights

INDEX = "model.safetensors.index.json"
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HEADS = ("lm_head.weight",)
"""What is tied to the embeddings where config.json says so."""


class Folder:
    """`Weights` of a model in safetensors. Only headers are read until a tensor is asked for."""

    def __init__(self, path: Path) -> None:
        """Read the headers.

        Raises:
            EvalError: files that are missing, damaged or of no use, all of them.
        """
        self.label, self.base = str(path), str(path.resolve())
        self._files = weight_files(path)
        found = read_headers(self._files)
        ties = read_json(path / "config.json").get("tie_word_embeddings") is True
        tied = [name for name in found if plain_name(name) in HEADS] if ties else []
        self.num_tied = len(tied)
        self._places = {plain_name(name): (name, file) for name, (file, _, _) in found.items() if name not in tied}
        if len(self._places) + len(tied) != len(found):
            raise EvalError(
                f"{path}: two of its tensors have the same name without prefixes; it is more than one model"
            )
        self.shapes: Mapping[str, tuple[int, ...]] = {
            plain: found[name][1] for plain, (name, _) in self._places.items()
        }
        self.epsilon = max(torch.finfo(TYPES[found[name][2]]).eps for name, _ in self._places.values())

    @property
    def state(self) -> str:
        """See `Weights`."""
        return state_of(self._files)

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        stored, file = self._places[name]
        return read_tensor(file, stored)

    def update(self, name: str) -> LowRank | None:
        """See `Weights`: the base itself has none."""
        return LowRank.zeros(*self.shapes[name])


def open_folder(path: Path, base: Folder | None = None, otherwise: Folder | None = None) -> Weights:
    """Open a model, a PEFT adapter, or what a run has exported.

    Args:
        path: of a folder with safetensors, or of a run's with export/ in it.
        base: what an adapter is added to; by default the folder that its adapter_config.json names.
        otherwise: what it is added to where that folder is not here.

    Raises:
        EvalError: it is none of them, or can't be used; says what to do.
    """
    from evals.weights.adapter import ADAPTER_CONFIG, AdapterFolder

    if not path.is_dir():
        raise EvalError(
            f"{path}: {'is a file' if path.exists() else 'no such folder'}; name a model, an adapter or a run"
        )
    if (path / "run.json").is_file() or (path / "export").is_dir():
        if not (path / "export").is_dir():
            raise EvalError(
                f"{path}: the run has exported nothing yet; "
                f"`python -m training.checkpoint rank {path}` reads its checkpoints"
            )
        path = path / "export"
    return AdapterFolder(path, base, otherwise) if (path / ADAPTER_CONFIG).is_file() else Folder(path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model: those its index names, else model.safetensors, else all there are.

    Raises:
        EvalError: there are none.
    """
    named = read_json(folder / INDEX).get("weight_map")
    if isinstance(named, dict) and named:
        names = set(map(str, named.values()))
        if outside := sorted(name for name in names if "/" in name or "\0" in name):
            raise EvalError(f"{folder / INDEX}: names {outside[0]!r}, which is no file of the folder; copy it again")
        return sorted(folder / name for name in names)
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise EvalError(f"{folder}: no safetensors there; name the folder of a model or an adapter that has them")
    return files


def read_headers(files: list[Path]) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """File, shape and stored type of every tensor.

    Raises:
        EvalError: names every file that can't be read, and every tensor that is in no floating-point type.
    """
    found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
    problems = []
    for file in files:
        try:
            file.open("rb").close()  # safetensors call whatever they can't open missing
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no dict)
                    part = opened.get_slice(name)
                    found[name] = (file, tuple(part.get_shape()), part.get_dtype())
        except FileNotFoundError:
            namer = "a link" if file.is_symlink() else "the folder's index"
            problems.append(f"{file}: is missing, and {namer} names it")
        except PermissionError as error:
            problems.append(f"{file}: can't be read ({error.strerror})")
        except (OSError, SafetensorError) as error:
            problems.append(f"{file}: can't be read ({error}); copy it again")
    wrong = [f"{name} is {dtype}" for name, (_, _, dtype) in found.items() if dtype not in TYPES]
    if wrong:
        problems.append(
            f"{files[0].parent}: {listing(wrong)}, which is no floating-point type of 16 bits or more; "
            "name the model before it was quantised"
        )
    if not problems and not found:
        problems.append(f"{files[0].parent}: its safetensors hold no tensors")
    if problems:
        raise EvalError("\n  ".join(problems))
    return found


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, in fp32."""
    with ExitStack() as stack:
        try:
            opened: Any = stack.enter_context(safe_open(file, "pt"))
            stored: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise EvalError(f"{file}: {name} can't be read ({error}); copy the file again") from error
        # Not a view of the file's mapping, whose pages would stay.
        return stored.to(torch.float32, copy=True)


def state_of(files: list[Path]) -> str:
    """A hash of names, sizes and times of the files."""
    known = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file.

    Raises:
        EvalError: the file holds something else.
    """
    try:
        if not path.is_file():
            return {}
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"{path}: can't be read as JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise EvalError(f"{path}: holds no JSON object; copy it again")
    return content


def listing(items: list[str], most: int = 8) -> str:
    """The items in a line; of many the first, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
