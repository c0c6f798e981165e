"""Reading a rank's slices out of a checkpoint of any world size.

Rank k of n holds elements [k*s, (k+1)*s) of each flattened parameter, s = ceil(numel / n), and the same of its optimizer
states; so what a rank of another world needs are contiguous ranges of some of the files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import torch

from training.checkpoint.image import shard_name
from training.checkpoint.manifest import Checkpoint
from training.errors import CheckpointError
from training.model.base_files import DamagedFile, StoredTensor, read_header


class Shards:
    """The files of a checkpoint, opened when something is read from them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path, self._world = checkpoint.path, int(checkpoint.manifest["world_size"])
        self._stored = functools.cache(self._read_header)

    def _read_header(self, rank: int) -> dict[str, StoredTensor]:
        return read_header(self._path / shard_name(rank, self._world))

    def read(self, key: str, numel: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """One rank's slice of a flattened tensor of `numel` elements in fp32; the whole one by default.

        Raises:
            CheckpointError: a file can't be read, or doesn't have it.
        """
        slice_ = torch.zeros(math.ceil(numel / world_size), dtype=torch.float32)
        for saved_rank, there, here in overlaps(numel, self._world, rank, world_size):
            path = self._path / shard_name(saved_rank, self._world)
            part, share = slice_[here], math.ceil(numel / self._world)
            try:
                stored = self._stored(saved_rank)[key]
                if (stored.dtype, stored.shape) != ("F32", (share,)):
                    raise DamagedFile(f"it is {stored.dtype} {list(stored.shape)} there, and should be F32 [{share}]")
                # Read, not mapped: pages of a mapping would count as memory of the rank.
                with path.open("rb") as file:
                    file.seek(stored.offset + 4 * there.start)
                    if file.readinto(part.numpy().data) != part.nbytes:
                        raise DamagedFile("the file ends within it")
            except KeyError:
                raise CheckpointError(f"{path}: has no {key}") from None
            except (OSError, DamagedFile) as error:
                raise CheckpointError(f"{path}: {key} can't be read: {error}") from error
        return slice_


def read_state(
    checkpoint: Checkpoint,
    states: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    rank: int,
    world_size: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read one rank's slices at any world size, one by one: of every parameter, and of its optimizer states by name.

    Raises:
        CheckpointError: when the checkpoint holds other parameters, shapes or states than the run trains.
    """
    check_parameters(checkpoint, states, shapes)
    shards = Shards(checkpoint)
    for name, shape in shapes.items():
        for key in (name, *(f"{name}/{state}" for state in states[name])):
            yield key, shards.read(key, math.prod(shape), rank, world_size)


def check_parameters(
    checkpoint: Checkpoint, states: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare what a checkpoint holds with what a run trains.

    Raises:
        CheckpointError: naming a parameter or state that differs.
    """
    saved = {name: tuple(shape) for name, shape in checkpoint.manifest["parameters"].items()}
    if saved != dict(shapes):
        different = sorted(name for name in saved.keys() | shapes.keys() if saved.get(name) != shapes.get(name))
        raise CheckpointError(
            f"{checkpoint.path}: holds other trainable parameters than this run, "
            f"for example {different[0]}: {saved.get(different[0])} there, {shapes.get(different[0])} here"
        )
    theirs = {name: tuple(found) for name, found in checkpoint.manifest["states"].items()}
    for name, ours in states.items():
        if set(theirs.get(name, ())) != set(ours):
            raise CheckpointError(
                f"{checkpoint.path}: was trained by another optimizer: of {name} it holds "
                f"{', '.join(theirs.get(name, ())) or 'nothing'}, and optim.kind needs {', '.join(ours) or 'nothing'}"
            )


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
