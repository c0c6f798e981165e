"""What runs on several ranks for test_optimizers.py."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.optim import Muon, Slice

SHAPES = {"a": (7, 12), "b": (12, 7), "c": (5, 5), "d": (1, 3), "e": (6, 4)}


def _matrices(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _each_cut(rank: int, size: int) -> list[list[Slice]]:
    """ZeRO-3's way: of every matrix the rank-th part, of equal sizes that are padded at the end."""
    slices, offset = [], 0
    for name, shape in SHAPES.items():
        numel = math.prod(shape)
        part = math.ceil(numel / size)
        start = rank * part
        slices.append(Slice(name=name, shape=shape, start=start, numel=max(0, min(part, numel - start)), offset=offset))
        offset += part
    return [slices]


def _in_two_tensors(rank: int, size: int) -> list[list[Slice]]:
    """The same in two buckets."""
    (slices,) = _each_cut(rank, size)
    return [slices[:2], slices[2:]]


def _all_cut_together(rank: int, size: int) -> list[list[Slice]]:
    """All matrices one after another, of which a rank has the rank-th part; most lie on one rank."""
    slices, first = [], 0
    width = math.ceil(sum(math.prod(shape) for shape in SHAPES.values()) / size)
    for name, shape in SHAPES.items():
        start, end = max(first, rank * width), min(first + math.prod(shape), (rank + 1) * width)
        if start < end:
            offset = start - rank * width
            slices.append(Slice(name=name, shape=shape, start=start - first, numel=end - start, offset=offset))
        first += math.prod(shape)
    return [slices]


def _fill(flat: Tensor, slices: list[Slice], values: dict[str, Tensor]) -> None:
    for each in slices:
        flat[each.offset : each.offset + each.numel] = values[each.name].view(-1)[each.start : each.start + each.numel]


def _differing(tensors: list[list[Slice]]) -> list[str]:
    """Matrices and momenta of which this rank's slice is not that of one process, after steps of which one is called off."""
    flats = [nn.Parameter(torch.full((200,), 3.0)) for _ in tensors]
    whole = {name: nn.Parameter(value) for name, value in _matrices(0).items()}
    one, other = (
        Muon([{"params": ps, "uses_muon": True, "weight_decay": 0.1}], lr=1e-2) for ps in (flats, list(whole.values()))
    )
    for flat, slices in zip(flats, tensors, strict=True):
        _fill(flat.data, slices, _matrices(0))
        one.lay_out(flat, slices)
    for step in range(4):
        is_off = step == 2
        for flat, slices in zip(flats, tensors, strict=True):
            flat.grad = torch.full_like(flat, math.nan if is_off else 1.0)
            if not is_off:
                _fill(flat.grad, slices, _matrices(step + 1))
        for name, gradient in _matrices(step + 1).items():
            whole[name].grad = gradient
        one.found_inf = other.found_inf = torch.tensor(float(is_off))  # type: ignore[attr-defined]
        one.step()
        other.step()
    found = []
    for flat, slices in zip(flats, tensors, strict=True):
        is_padding = torch.ones(200, dtype=torch.bool)
        for each in slices:
            here, there = slice(each.offset, each.offset + each.numel), slice(each.start, each.start + each.numel)
            is_padding[here] = False
            momentum = other.state[whole[each.name]]["momentum_buffer"].view(-1)[there]
            if not torch.equal(flat[here], whole[each.name].view(-1)[there]):
                found.append(each.name)
            if not torch.equal(one.state[flat]["momentum_buffer"][here], momentum):
                found.append(f"momentum of {each.name}")
        if not torch.equal(flat[is_padding], torch.full((int(is_padding.sum()),), 3.0)):
            found.append("padding")
    return found


def muon_in_slices() -> dict[str, Any]:
    """All ways to cut matrices, how often a step exchanges, and a cut that leaves something out."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    exchanges, all_to_all = [0], dist.all_to_all_single

    def counted(*arguments: Any, **keywords: Any) -> Any:
        exchanges[0] += 1
        return all_to_all(*arguments, **keywords)

    dist.all_to_all_single = counted
    found: dict[str, Any] = {"exchanges": {}, "differing": {}}
    for cut in (_each_cut, _in_two_tensors, _all_cut_together):
        exchanges[0] = 0
        found["differing"][cut.__name__] = _differing(cut(rank, size))
        found["exchanges"][cut.__name__] = exchanges[0] / 4
    flat = nn.Parameter(torch.zeros(200))
    optimizer = Muon([{"params": [flat], "uses_muon": True}])
    optimizer.lay_out(flat, _each_cut(rank, size + rank)[0])
    flat.grad = torch.zeros(200)
    try:
        optimizer.step()
    except ValueError as error:
        found["message"] = str(error)
    dist.destroy_process_group()
    return found
