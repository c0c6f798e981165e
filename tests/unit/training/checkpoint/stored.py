"""Checkpoints written without ranks: the files that a run with so many ranks would have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint.image import shard_name, sizes_of, streamed
from training.checkpoint.storage import commit, unfinished_folder, write_file


def store(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    world_size: int = 1,
    states: tuple[str, ...] = (),
    **more: Any,
) -> Path:
    """A checkpoint of whole tensors, cut for some ranks; optimizer states are ones. `more` goes into the manifest."""
    # The run's directory is there when one saves, and not made for it.
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = unfinished_folder(root, step, "made")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = sizes_of(shapes, dict.fromkeys(shapes, states), world_size)
    files = []
    for rank in range(world_size):
        views = [
            (key, slice_of(tensors[key], rank, world_size) if key in tensors else torch.ones(size))
            for key, size in sizes.items()
        ]
        files.append(write_file(folder / shard_name(rank, world_size), streamed(sizes, views), read_back=False))
    content = {
        "step": step,
        "progress": {"step": step, "tokens_seen": 512 * step},
        "world_size": world_size,
        "placement": "zero3",
        "optimizer_steps": {},
        "parameters": {name: list(shape) for name, shape in shapes.items()},
        "states": {name: list(states) for name in shapes},
        "fingerprints": {},
        "config": {},
        "stream": {},
        "written": "2026-05-04T03:02:01+00:00",
        "files": files,
        **more,
    }
    commit(folder, root / str(step), content, [])
    return root / str(step)


def slice_of(tensor: Tensor, rank: int, world_size: int) -> Tensor:
    """Elements [rank n, (rank + 1) n) of the flattened tensor, n = ceil(numel / world size), padded with zeros."""
    size = -(-tensor.numel() // world_size)
    part = tensor.flatten()[rank * size : (rank + 1) * size].float()
    return torch.cat([part, torch.zeros(size - part.numel())])
