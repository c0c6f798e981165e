"""A rank's file of a checkpoint, in memory: what was copied between two steps is what is written.

The file is a safetensors file: 8 bytes of length, a JSON header, and the tensors one after the other. Names and sizes are
the same in every checkpoint of a run, so header and places are made once, in memory that the writing process sees, too.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from training.checkpoint.storage import CHUNK_BYTES

log = logging.getLogger("palimpsest")

Views = Iterable[tuple[str, torch.Tensor]]
"""Names in the file, and 1-D fp32 tensors on any device."""


def shard_name(rank: int, world_size: int) -> str:
    """File name of one rank's slices."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a safetensors file: of each tensor its type as safetensors calls it, its shape and its bytes.

    https://github.com/huggingface/safetensors#format
    """
    ends = list(itertools.accumulate((size for _, _, size in tensors.values()), initial=0))
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    described |= {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        for (name, (dtype, shape, _)), begin, end in zip(tensors.items(), ends, ends[1:], strict=False)
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def flat_header(sizes: Mapping[str, int]) -> bytes:
    """The header of a rank's file, of fp32 slices with so many elements."""
    return header({name: ("F32", (size,), 4 * size) for name, size in sizes.items()})


class Copying:
    """A copy that was begun; on a GPU the host does not wait for it."""

    def __init__(self, event: torch.cuda.Event | None = None) -> None:
        self._event = event

    def is_complete(self) -> bool:
        """Whether everything has arrived."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Have the host wait until it has."""
        if self._event is not None:
            self._event.synchronize()

    def hold(self) -> None:
        """Have what is put into the current stream from now on happen after the copy."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)


class ShardImage:
    """Memory with a rank's whole file in it, made once for a run and filled for every checkpoint."""

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        """Reserve memory for slices with so many elements, page-locked where they come from a GPU."""
        start = flat_header(sizes)
        self.bytes = len(start) + 4 * sum(sizes.values())
        self.descriptor = os.memfd_create("palimpsest-checkpoint")
        os.ftruncate(self.descriptor, self.bytes)
        # All pages at once, now: else the first checkpoint would take several times as long to copy.
        self._memory = mmap.mmap(self.descriptor, self.bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._memory[: len(start)] = start
        places = itertools.accumulate((4 * size for size in sizes.values()), initial=len(start))
        self._tensors = {
            name: torch.frombuffer(self._memory, dtype=torch.float32, count=size, offset=place)
            for (name, size), place in zip(sizes.items(), places, strict=False)
            if size
        }
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._lock_pages()

    def _lock_pages(self) -> None:
        pointer = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        error = torch.cuda.cudart().cudaHostRegister(pointer, self.bytes, 0)
        if int(error) != 0:
            log.warning(
                "the memory for checkpoints can't be page-locked (CUDA error %s): copying will take longer", error
            )

    def fill(self, views: Views) -> Copying:
        """Begin to copy a rank's slices into it; nothing may change them before that is complete."""
        if self._stream is None:
            for name, view in views:
                self._copy(name, view)
            return Copying()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, view in views:
                self._copy(name, view)
            event = torch.cuda.Event()
            event.record()
        return Copying(event)

    def close(self) -> None:
        """Let go of the memory; it is gone when its writer has ended, too."""
        os.close(self.descriptor)
        self._tensors.clear()

    def _copy(self, name: str, view: torch.Tensor) -> None:
        if view.numel():
            self._tensors[name].copy_(view.detach(), non_blocking=True)


def streamed(sizes: Mapping[str, int], views: Views) -> Iterator[Any]:
    """The same file in small pieces, straight from where the slices are: without the memory, and not in the background."""
    yield flat_header(sizes)
    for name, view in views:
        assert view.numel() == sizes[name], name
        for part in view.detach().split(CHUNK_BYTES // 4):
            yield memoryview(part.to("cpu", dtype=torch.float32).contiguous().numpy()).cast("B")


def sizes_of(
    shapes: Mapping[str, tuple[int, ...]], states: Mapping[str, tuple[str, ...]], world_size: int
) -> dict[str, int]:
    """Elements of every slice of a rank, in the order of the file."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        share = math.ceil(math.prod(shape) / world_size)
        sizes |= {key: share for key in (name, *(f"{name}/{state}" for state in states[name]))}
    return sizes
