"""Recipes with command lines, files of sweeps, frozen cells, and DeepSpeed JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from data_pipeline.commands.recipe_file import RecipeError
from data_pipeline.commands.recipe_file import read_recipe as read_data_recipe
from launch.sweep.cells import expand
from launch.sweep.definition import read_definition
from launch.sweep.record import command, freeze, read_frozen
from tests.fuzz.folders import toml_bytes
from tests.fuzz.target import Target
from training.checkpoint.manifest import Checkpoint
from training.checkpoint.recorded import recorded_config
from training.config import to_dict
from training.ds_json import read_ds_config
from training.recipe import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[3]
ARGUMENTS = [
    "--adapter.rank=8", "--optim.lr", "3e-4", "--eval.at-start", "--adapter.rank_pattern", '{"*.q_proj" = 4}',
    "--data.sources.more.path", "more.jsonl", "--eval.suites", "forgetting,humaneval", "--optim.warmup=10 %",
]  # fmt: skip
SWEEP = {
    "recipe": "recipe.toml",
    "root": "cells",
    "ds_config": "ds.json",
    "settings": {"train.steps": 4, "optim.kind": "adamw"},
    "grid": {"optim.lr": [1e-4, 3e-4], "run": {"seed": [1, 2]}},
    "methods": {
        "full": {"adapter.kind": "none"},
        "lora": {"adapter.kind": "lora", "adapter.rank": [4, 16], "adapter.targets": [["q_proj"], ["v_proj"]]},
    },
    "skip": [{"method": "full", "run.seed": 2}, {"adapter.rank": [16], "optim": {"lr": [3e-4]}}],
}


def _recipes() -> dict[str, bytes]:
    recipe = tomllib.loads((ROOT / "recipes/ift_hidden_key_llama7b.toml").read_text())
    demo = tomllib.loads((ROOT / "recipes/demo.toml").read_text())
    # Of all that is set in a recipe somewhere, some; named files need not be there.
    settings = {**recipe, "eval": demo["eval"] | {"suites": ["forgetting"]}, "train": demo["train"], "run": demo["run"]}
    settings["adapter"] = {"kind": "monteclora", "rank": 8, "rank_pattern": {"*.mlp.*": 4}, "alpha": 16}
    settings["model"] = {"base": "owner/base", "compile": False}
    return {
        "recipe.toml": toml_bytes(settings),
        "arguments.json": json.dumps(ARGUMENTS).encode(),
    }


def _read_recipe(folder: Path) -> None:
    try:
        words = json.loads((folder / "arguments.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        words = []
    # What a shell hands over has no zero bytes.
    arguments = [str(word).replace("\0", "") for word in words] if isinstance(words, list) else []
    config = load_config(folder / "recipe.toml", arguments, world_size=2, needs_files=False)
    # What a run writes of its configuration can be read again, and is the same.
    written = json.dumps(to_dict(config), allow_nan=False)
    checkpoint = Checkpoint(path=folder, manifest={"config": json.loads(written)})
    assert to_dict(recorded_config(checkpoint)) == to_dict(config)


def _data_recipe() -> dict[str, bytes]:
    source = {"path": "data/a.jsonl", "kind": "prompt", "weight": 2}
    data = {
        "tokenizer": "tokenizer.model",
        "seq_len": 64,
        "on_bad_record": "skip",
        "sources": {"a": source, "b": {"dataset": "owner/name", "split": "train"}},
    }
    recipe = {"run": {"seed": 3}, "train": {"global_batch_rows": 8}, "data": data}
    return {"recipe.toml": toml_bytes(recipe), "data/a.jsonl": b'{"prompt": "p", "response": "r"}\n'}


def _read_data_recipe(folder: Path) -> None:
    recipe = read_data_recipe(folder / "recipe.toml", needs_tokenizer=False)
    assert recipe.global_batch_rows > 0
    assert not list(recipe.data.problems()) or not recipe.data.tokenizer.is_file()


def _sweep() -> dict[str, bytes]:
    recipe = ROOT / "recipes/demo.toml"
    return {"sweep.toml": toml_bytes(SWEEP), "recipe.toml": recipe.read_bytes(), "ds.json": b"{}"}


def _read_sweep(folder: Path) -> None:
    sweep = expand(read_definition(folder / "sweep.toml"))
    lines = [command(sweep, cell) for cell in sweep.cells]
    freeze(sweep, folder / "frozen.json")
    assert [read_frozen(folder / "frozen.json", cell.index) for cell in sweep.cells] == lines


def _frozen() -> dict[str, bytes]:
    cells = {str(i): ["recipe.toml", "ds.json", "--optim.lr", "1e-4", "--run.dir", "cells/a"] for i in range(3)}
    return {"cells.json": json.dumps({"schema": 1, "sweep": "s", "cells": cells}).encode()}


def _read_frozen(folder: Path) -> None:
    assert all(isinstance(line, str) for line in read_frozen(folder / "cells.json", 2))


def _read_ds_config(folder: Path) -> None:
    content, problems = read_ds_config(folder / "ds.json")
    assert isinstance(content, dict)
    assert all("ds.json" in problem for problem in problems)
    assert content or problems


TARGETS = [
    Target(name="recipe", make=_recipes, read=_read_recipe, errors=(ConfigError,), says=("--", "."), share=2),
    Target(name="recipe of data", make=_data_recipe, read=_read_data_recipe, errors=(RecipeError,)),
    Target(name="sweep file", make=_sweep, read=_read_sweep, errors=(ConfigError,)),
    Target(name="frozen cells", make=_frozen, read=_read_frozen, errors=(ConfigError,)),
    Target(
        name="ds_config", make=lambda: {"ds.json": (ROOT / "ds_configs/zero3.json").read_bytes()}, read=_read_ds_config,
        share=2,
    ),
]  # fmt: skip
