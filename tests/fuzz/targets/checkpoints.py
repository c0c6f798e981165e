"""Checkpoints: manifests, also such as no run writes but whose hash is right; their files; what a run begins with."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path

import torch

from tests.fuzz.folders import read
from tests.fuzz.target import Target
from tests.fuzz.targets.configurations import ROOT
from tests.unit.training.checkpoint.stored import store
from training.checkpoint.commands import entries_of, find, list_checkpoints
from training.checkpoint.manifest import candidates, first_damage, open_checkpoint, seal
from training.checkpoint.recorded import recorded_config
from training.checkpoint.slices import read_state
from training.config import to_dict
from training.errors import CheckpointError
from training.recipe import load_config

STEP = 7
TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.arange(5.0)}
STATES = ("exp_avg", "exp_avg_sq")
CONTENT = "content.json"


@functools.cache
def _checkpoint() -> dict[str, bytes]:
    """checkpoints/7 of two ranks, and the content of its manifest as a document."""
    config = to_dict(load_config(ROOT / "recipes/demo.toml", needs_files=False))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        store(
            root,
            STEP,
            TENSORS,
            world_size=2,
            states=STATES,
            config=config,
            stream={"schema": 2},
            fingerprints={"base": "x"},
        )
        files = read(Path(folder))
    content = json.loads(files[f"checkpoints/{STEP}/MANIFEST.json"])
    return {**files, "run.json": json.dumps({"schema": 1, "status": "running", "config": config, "last_checkpoint": STEP}).encode(),
            "evals/7.json": b'{"tasks": {"t": {"score": 0.5}}}', CONTENT: json.dumps({k: v for k, v in content.items() if k not in ("schema", "sha256")}).encode()}  # fmt: skip


def _read_checkpoint(folder: Path) -> None:
    """Of a checkpoint that is said to be whole, every tensor is what was written."""
    checkpoint_folder = folder / "checkpoints" / str(STEP)
    content = folder / CONTENT
    # A document that was altered becomes a manifest whose hash is right.
    if content.is_file() and content.read_bytes() != _checkpoint()[CONTENT]:
        with contextlib.suppress(ValueError, RecursionError, OSError):
            if isinstance(altered := json.loads(content.read_bytes()), dict) and altered:
                (checkpoint_folder / "MANIFEST.json").write_bytes(seal(altered))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert list_checkpoints([folder], as_json=True) in (0, 1, 2)
        assert list_checkpoints([folder], as_json=False) in (0, 1, 2)
    entries_of(find(folder))
    list(candidates(folder / "checkpoints"))
    checkpoint = open_checkpoint(checkpoint_folder)
    if first_damage(checkpoint) is not None:
        return
    recorded_config(checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    found = dict(read_state(checkpoint, dict.fromkeys(TENSORS, STATES), shapes, 0, 1))
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor.flatten())


TARGETS = [Target(name="checkpoint", make=_checkpoint, read=_read_checkpoint, errors=(CheckpointError,), share=2)]
