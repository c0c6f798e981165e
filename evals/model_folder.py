"""A model to score: a Hugging Face folder, a PEFT adapter folder, or a run's folder (its export)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import EvalError

MERGE = "python -m training.checkpoint export RUN --format merged"
"""What makes a model folder of an adapter."""

PIECE_BYTES = 64 * 2**10
"""Of a file of weights, what is read at one place."""

PIECE_EVERY_BYTES = 16 * 2**20
"""Of a very large file of weights, how far apart these places are: reading 13 GB in whole would take minutes."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """Where a model's files are."""

    folder: Path
    """What was named: the model or the adapter; where its tokenizer is looked for first."""
    model: Path
    """The folder with config.json and the weights; an adapter's base."""
    adapter: Path | None
    """The folder with adapter_config.json, None for a whole model."""
    config: Mapping[str, Any]
    """The model's config.json."""

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model can read at most, None where its config does not say."""
        known = (self.config.get(key) for key in ("max_position_embeddings", "n_positions"))
        return next((value for value in known if isinstance(value, int)), None)

    def identity(self) -> str:
        """A hash of the model's content, wherever its files are: the configs, and of each file of weights the name, the
        size, the header (names, types and shapes) and pieces of the values (see `_piece_starts`).

        Raises:
            EvalError: one of them cannot be read.
        """
        digest = hashlib.sha256()
        for folder in (self.model, self.adapter):
            for path in sorted(folder.iterdir()) if folder is not None else ():
                try:
                    if path.suffix in (".safetensors", ".bin"):
                        _add_pieces(digest, path)
                    elif path.name in ("config.json", "adapter_config.json"):
                        digest.update(path.read_bytes())
                except OSError as error:
                    raise EvalError(f"{path}: cannot be read ({error.strerror})") from None
        return digest.hexdigest()


def find_model(path: Path, base: Path | None = None) -> ModelFolder:
    """What is in a folder.

    Args:
        path: a model, an adapter, or a run's folder, whose export is meant.
        base: where an adapter's base is now; None = where adapter_config.json says.

    Raises:
        EvalError: no model there, or an adapter whose base is not there.
    """
    path = Path(path)
    folder = path
    if (path / "run.json").is_file() and not (path / "config.json").is_file():
        folder = path / "export"
        if not folder.is_dir():
            raise EvalError(
                f"{path}: the run has no export/ yet; write one of its checkpoints as a model with "
                f"`python -m training.checkpoint export {path}` and give that folder"
            )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        settings = _json(folder / "adapter_config.json", "a PEFT adapter folder")
        model = Path(base) if base is not None else _base(folder, settings)
        return ModelFolder(folder=folder, model=model, adapter=folder, config=_config(model))
    return ModelFolder(folder=folder, model=folder, adapter=None, config=_config(folder))


def load_model(found: ModelFolder, device: str, dtype: Any) -> Any:
    """The model on its device, an adapter merged into it, in eval mode.

    Raises:
        EvalError: it cannot be loaded, or an adapter cannot be applied here.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if found.adapter is not None and importlib.util.find_spec("peft") is None:
        raise EvalError(
            f"{found.adapter}: an adapter, which peft loads; `pip install peft`, or merge it with `{MERGE}`"
        )
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(found.model, dtype=dtype, local_files_only=True)
        if found.adapter is not None:
            model = _merged(model, found.adapter)
        return model.to(device).eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AssertionError) as error:
        # torch asserts that it was built for the device.
        raise EvalError(f"{found.folder}: cannot be loaded as a causal language model on {device} ({error})") from error


def _merged(model: Any, adapter: Path) -> Any:
    import peft

    with warnings.catch_warnings():
        # peft asks transformers by a name that transformers is about to drop.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def _add_pieces(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(repr((path.name, size)).encode())
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            # Eight bytes that say how long the header is, and the header.
            length = file.read(8)
            digest.update(length + file.read(min(int.from_bytes(length, "little"), size)))
        for start in _piece_starts(size):
            file.seek(start)
            digest.update(file.read(PIECE_BYTES))


def _piece_starts(size: int) -> list[int]:
    """Where the pieces of a file begin that are read.

    A file of 4 MiB or less is read in whole, of a larger one 64 evenly spread pieces or, beyond a GiB, one in about every
    16 MiB, so that each large matrix has one.
    """
    if size <= PIECE_BYTES:
        return [0]
    count = min(-(-size // PIECE_BYTES), max(64, size // PIECE_EVERY_BYTES))
    return [(size - PIECE_BYTES) * number // (count - 1) for number in range(count)]


def _base(folder: Path, settings: Mapping[str, Any]) -> Path:
    named = str(settings.get("base_model_name_or_path") or "")
    for candidate in (Path(named), folder / named):
        # os.path asks without an error also for what can be no path.
        if named and os.path.isfile(candidate / "config.json"):
            return candidate
    raise EvalError(f"{folder}: an adapter of {named!r}, which is not a model folder here; name its base with --base")


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json", "a Hugging Face model folder")


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvalError(f"{file.parent}: no readable {file.name} there ({error}); give {what}") from error
    return content if isinstance(content, dict) else {}
