"""Checkpoints: fp32 slices of what trains, as safetensors, and a manifest that is written last.

    checkpoints/<step>/rank-00000-of-00002.safetensors     one per rank: see Engine.local_state
    checkpoints/<step>/MANIFEST.json                        sizes, hashes, layout, stream state, step

A checkpoint exists when its manifest does and every file in it has the size and hash the manifest says. It can be
loaded at any world size: slices are contiguous ranges of the flattened parameters, so a rank reads the ranges that
overlap its own. The frozen base is not in it; its hash is.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from training.errors import CheckpointError
from training.files import read_json, sha256, sync_file, sync_folder, write_json

SCHEMA = 2
MANIFEST = "MANIFEST.json"
MANIFEST_KEYS = {"step", "progress", "world_size", "optimizer_steps", "parameters", "stream", "files"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])


def shard_name(rank: int, world_size: int) -> str:
    """File name of one rank's slices."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def write_shard(folder: Path, state: dict[str, torch.Tensor], rank: int, world_size: int) -> dict[str, Any]:
    """Write one rank's slices into an unfinished checkpoint folder; return the file's manifest entry."""
    path = folder / shard_name(rank, world_size)
    save_file(state, path)
    sync_file(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def unfinished_folder(root: Path, step: int) -> Path:
    """Where a checkpoint is assembled before it gets its name."""
    return root / f".{step}.unfinished"


def start(root: Path, step: int) -> None:
    """Make an empty folder to assemble a checkpoint in (rank 0; other ranks wait)."""
    for leftover in root.glob(".*.unfinished"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished_folder(root, step).mkdir(parents=True)


def finish(root: Path, step: int, manifest: dict[str, Any], keep: int | None) -> Path:
    """Write the manifest, give the checkpoint its name, delete all but the newest `keep` (rank 0); None keeps all."""
    folder, final = unfinished_folder(root, step), root / str(step)
    write_json(folder / MANIFEST, {"schema": SCHEMA, **manifest})
    # Where the step is saved again, the earlier one is gone only when this one is there.
    replaced = root / f".{step}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    folder.rename(final)
    sync_folder(root)
    shutil.rmtree(replaced, ignore_errors=True)
    if keep is None:
        return final
    # Not counted: a later step's folder, which can only be one that was damaged when this run resumed.
    earlier = sorted(
        (int(path.name) for path in root.iterdir() if path.name.isdigit() and int(path.name) < step), reverse=True
    )
    for old in earlier[keep - 1 :]:
        shutil.rmtree(root / str(old), ignore_errors=True)
    return final


def newest_good(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint under `root`, and a message for every newer one that is damaged."""
    damages: list[str] = []
    folders = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
    for folder in sorted(folders, key=lambda path: int(path.name), reverse=True):
        try:
            return verify(folder), damages
        except CheckpointError as error:
            damages.append(str(error))
    return None, damages


def verify(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: naming the first missing, truncated or changed file.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise CheckpointError(f"{folder / MANIFEST}: missing or unreadable, so the checkpoint was never completed")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder / MANIFEST}: schema {manifest.get('schema')} is not the {SCHEMA} read here")
    if absent := MANIFEST_KEYS - manifest.keys():
        raise CheckpointError(f"{folder / MANIFEST}: says nothing about {', '.join(sorted(absent))}")
    try:
        for entry in manifest["files"]:
            check_file(folder / entry["name"], entry)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: its list of files makes no sense ({error})") from error
    return Checkpoint(path=folder, manifest=manifest)


def check_file(path: Path, entry: dict[str, Any]) -> None:
    """Check one file against its manifest entry."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if path.stat().st_size != entry["bytes"]:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes instead of {entry['bytes']}")
    if sha256(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: content differs from what was written (SHA-256)")


def read_state(
    checkpoint: Checkpoint,
    states: Mapping[str, tuple[str, ...]],
    shapes: dict[str, tuple[int, ...]],
    rank: int,
    world_size: int,
) -> dict[str, torch.Tensor]:
    """Read one rank's slices at any world size: of every parameter, and of its optimizer states by name.

    Raises:
        CheckpointError: when the checkpoint holds other parameters or shapes than the model trains.
    """
    saved = {name: tuple(shape) for name, shape in checkpoint.manifest["parameters"].items()}
    if saved != shapes:
        different = sorted(name for name in saved.keys() | shapes.keys() if saved.get(name) != shapes.get(name))
        raise CheckpointError(
            f"{checkpoint.path}: holds other trainable parameters than this run, "
            f"for example {different[0]}: {saved.get(different[0])} there, {shapes.get(different[0])} here"
        )
    saved_world = int(checkpoint.manifest["world_size"])

    @functools.cache
    def shard(saved_rank: int) -> Any:
        return safe_open(checkpoint.path / shard_name(saved_rank, saved_world), framework="pt")

    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        for key in (name, *(f"{name}/{state}" for state in states[name])):
            state[key] = torch.zeros(math.ceil(numel / world_size), dtype=torch.float32)
            for saved_rank, there, here in overlaps(numel, saved_world, rank, world_size):
                state[key][here] = shard(saved_rank).get_slice(key)[there]
    return state


def overlaps(numel: int, saved_world: int, rank: int, world_size: int) -> Iterator[tuple[int, slice, slice]]:
    """The saved slices of a flattened tensor that hold a part of [rank n, (rank + 1) n), n = ceil(numel / world_size).

    Yields:
        who saved it, where the part is in its slice, and where in this rank's. What is beyond the tensor is padding.
    """
    old, new = math.ceil(numel / saved_world), math.ceil(numel / world_size)
    begin, end = rank * new, min((rank + 1) * new, numel)
    position = begin
    while position < end:
        source = position // old
        stop = min(end, (source + 1) * old)
        first = source * old
        yield source, slice(position - first, stop - first), slice(position - begin, stop - begin)
        position = stop
