"""The smallest files that a configuration can name, for tests that look at settings and load nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from training.config import Config, llama_shape
from training.recipe import ConfigError, load_config

RECIPE = """
[run]
dir = "out"

[model]
base = "base"

[data]
tokenizer = "tokenizer.model"
seq_len = 64

[data.sources.text]
path = "train.jsonl"

[train]
steps = 20
global_batch_rows = 12

[optim]
lr = 5e-3

[eval.tasks.old_bits]
kind = "bits_per_byte"
domain = "old"
path = "heldout.jsonl"
"""


def write_base(folder: Path, **shape: object) -> Path:
    """A folder that looks like a Hugging Face LLaMA from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 256, **shape}))
    llama = llama_shape(str(folder))
    write_weights(folder / "model.safetensors", {} if llama is None else llama.tensors())
    return folder


def write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", size: int = 2) -> None:
    """A safetensors file of zeros, which take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_adapter(folder: Path, **settings: object) -> Path:
    """A folder that looks like a saved LoRA from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, **settings}))
    return folder


def write_inputs(folder: Path) -> None:
    """What RECIPE names, beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.jsonl", "heldout.jsonl"):
        (folder / name).write_text('{"id": "0", "text": "a"}\n')
    (folder / "tokenizer.model").write_bytes(b"")
    write_base(folder / "base")


def write_recipe(folder: Path, text: str = RECIPE, more: str = "") -> Path:
    """A recipe and what it names; return the recipe's path."""
    write_inputs(folder)
    path = folder / "recipe.toml"
    path.write_text(text + more)
    return path


def problems_of(recipe: Path | None, *overrides: str, world_size: int | None = None) -> list[str]:
    """All problems of a configuration; [] when it has none."""
    try:
        load_config(recipe, overrides, world_size=world_size)
    except ConfigError as error:
        return error.problems
    return []


def minimal_config(folder: Path, *overrides: str) -> Config:
    """A checked configuration."""
    return load_config(write_recipe(folder), overrides)
