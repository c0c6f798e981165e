"""A run against the memory of its devices, before anything is loaded: what cannot fit, and how many layers to recompute."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import Config, Kind, llama_shape, looks_like_path
from training.costs.memory import (
    GiB,
    Memory,
    Placement,
    Setup,
    Trained,
    ZeroOptions,
    estimate,
    layers_to_recompute,
    usable_bytes,
)
from training.costs.shape import Shape
from training.recipe import ConfigError
from training.world import World

if TYPE_CHECKING:
    import torch


def setup_of(
    config: Config, shape: Shape, *, ranks: int, ranks_per_node: int, ds_config: dict[str, Any], device: str = "cuda"
) -> Setup:
    """The configuration as the memory model sees it; without recomputation where that is auto."""
    written = config.model.activation_checkpointing
    recomputed = {"off": 0, "auto": 0, "full": shape.layers}.get(written)
    return Setup(
        model=Trained(shape, config.adapter.build()), placement=config.train.placement, ranks=ranks,
        ranks_per_node=ranks_per_node, micro_batch_rows=config.train.micro_batch_rows, seq_len=config.data.seq_len,
        sequence_parallel=config.train.sequence_parallel,
        recomputed_layers=int(written) if recomputed is None else recomputed, precision=config.train.precision,
        optimizer=config.optim.kind, passes_at_once=config.hidden_key.passes()[1],
        kernels="liger" if config.model.kernels == "liger" else "torch",
        background_saves=config.checkpoint.background, device="cuda" if device == "cuda" else "cpu",
        zero=ZeroOptions.from_ds_config(ds_config),
    )  # fmt: skip


def check_fits(config: Config, ds_config: dict[str, Any], world: World, device: torch.device) -> None:
    """Refuse a placement that can't fit (a collective).

    Raises:
        ConfigError: on all ranks; it says by how much, and what would fit.
    """
    from training.ranks.distributed import from_rank_0

    shape = from_rank_0(lambda: _shape(config), world)
    problems = fit_problems(
        config, ds_config, _least_memory(world, device), ranks=world.size, ranks_per_node=world.local_size,
        shape=shape, device=device.type,
    )  # fmt: skip
    if problems:
        raise ConfigError(problems)


def recomputed_layers(config: Config, ds_config: dict[str, Any], world: World, device: torch.device) -> int:
    """Decoder layers, the first ones, whose activations are recomputed (a collective).

    With `auto` as few as the memory model says a step needs on the smallest device, or all where even those don't do.

    Raises:
        ConfigError: on all ranks, when that depends on a model of unknown shape.
    """
    written = config.model.activation_checkpointing
    if written not in ("full", "auto"):
        return 0 if written == "off" else int(written)
    from training.ranks.distributed import from_rank_0

    shape = from_rank_0(lambda: _shape(config), world)
    if shape is None:
        raise ConfigError(
            [f'model.activation_checkpointing = "{written}": the number of layers of {config.model.base} is not known before '
             "it is loaded; give a number of layers, or off"]
        )  # fmt: skip
    if written == "full":
        return shape.layers
    setup = setup_of(
        config, shape, ranks=world.size, ranks_per_node=world.local_size, ds_config=ds_config, device=device.type
    )
    memory = _least_memory(world, device)
    layers = layers_to_recompute(setup, usable_bytes(memory) if device.type == "cuda" else memory)
    return shape.layers if layers is None else layers


def _shape(config: Config) -> Shape | None:
    """The model's shape; None of another kind of model, and of a hub name that can't be reached."""
    base = config.model.base
    if base is None:
        return config.model.architecture.shape()
    if looks_like_path(base):
        return llama_shape(base)
    from huggingface_hub import hf_hub_download

    try:
        return llama_shape(str(Path(hf_hub_download(base, "config.json", revision=config.model.revision)).parent))
    except (OSError, ValueError):
        # Loading it will say why.
        return None


def _least_memory(world: World, device: torch.device) -> int:
    """Bytes of the smallest device of the run; on a CPU the rank's part of the memory that is free."""
    import torch

    from training.ranks.distributed import gather

    if device.type == "cuda":
        own = torch.cuda.get_device_properties(device).total_memory
    else:
        own = available_memory() // world.local_size
    return min(gather(own, world))


def copy_problem(bytes_per_rank: int, local_size: int) -> str | None:
    """What is wrong with copying the state of this node's ranks to its memory, to write checkpoints in the background.

    Every rank may ask, before any of them has taken the memory.

    Args:
        bytes_per_rank: of a rank's copy.
        local_size: ranks of this node.
    """
    needed, free = bytes_per_rank * local_size, available_memory()
    if needed <= free:
        return None
    return (
        f"checkpoint.background = true: its copies of what is saved need {_readable(needed)} of host memory on {os.uname().nodename} "
        f"({local_size} rank(s), {_readable(bytes_per_rank)} each), and {_readable(free)} are free. Use more nodes, or "
        "checkpoint.background = false: training then waits while a checkpoint is written, and nothing is copied"
    )


def _readable(size: float) -> str:
    return f"{size / GiB:.1f} GiB" if size >= GiB else f"{size / 2**20:.0f} MiB"


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process can still have: the least of what the machine and its control groups leave it.

    Args:
        root: where /proc and /sys are.
    """
    return max(0, min([_left_by_machine(root), *_left_by_control_groups(root)]))


def _left_by_machine(root: Path) -> int:
    """Bytes that are free; all of the machine's where the system doesn't say."""
    try:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """Bytes that the limit of each of this process's control groups leaves, of version 2 or 1 (a container, a Slurm job)."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # hierarchy:controllers:path, without controllers in version 2.
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, used, cached = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            limit, used, cached = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # Limits of outer groups hold, too; a container may see its own group as the outermost, whatever the path says.
        own = mount / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(mount):
                break
            try:
                left = int((group / limit).read_text()) - int((group / used).read_text())
                counters = dict(each.split() for each in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                # No such group here, or "max".
                continue
            # Files that were read once count as used, and are dropped when memory is wanted.
            yield left + int(counters.get(cached, 0))


def fit_problems(
    config: Config,
    ds_config: dict[str, Any],
    device_memory_bytes: float,
    *,
    ranks: int,
    ranks_per_node: int,
    shape: Shape | None,
    device: str = "cuda",
) -> list[str]:
    """A placement that can't fit, whatever the batch: weights and states alone are more than a device has.

    Nothing is said when the shape is not known, of a hub name.

    Args:
        config: of the run.
        ds_config: the DeepSpeed configuration.
        device_memory_bytes: of one GPU; on a CPU the memory that is free, divided by the ranks of the machine.
        ranks: of the run.
        ranks_per_node: of them, those of a machine.
        shape: of the model.
        device: cuda or cpu.
    """
    if shape is None:
        return []
    setup = setup_of(config, shape, ranks=ranks, ranks_per_node=ranks_per_node, ds_config=ds_config, device=device)
    need = estimate(setup)
    if need.states <= device_memory_bytes:
        return []
    parts = ", ".join(f"{label} {size / GiB:.1f}" for label, size in _held(need) if size)
    return [
        f'train.placement = "{setup.placement}": can\'t fit. On {ranks} rank(s) each holds {need.states / GiB:.1f} GiB between '
        f"steps ({parts}), and its device has {device_memory_bytes / GiB:.1f} GiB: {(need.states - device_memory_bytes) / GiB:.1f} "
        f"GiB too much. {what_would_fit(setup, config.adapter.kind, config, device_memory_bytes)}"
    ]


def what_would_fit(setup: Setup, kind: Kind, config: Config, bytes_per_device: float) -> str:
    """A sentence on what holds its weights and states in so many bytes."""
    ways = []
    placements: tuple[Placement, ...] = ("zero3", "zero3_offload")
    for placement in placements:
        other = dataclasses.replace(setup, placement=placement)
        if placement != setup.placement and estimate(other).states <= bytes_per_device:
            host = estimate(other).host
            beside = f" (with {host / GiB:.0f} GiB of host memory per rank)" if host else ""
            ways.append(f"--train.placement {placement}{beside}")
    shared = dataclasses.replace(setup, placement="zero3")
    if estimate(shared).states > bytes_per_device and (needed := _ranks_needed(shared, bytes_per_device)) is not None:
        ways.append(f"{needed} ranks with zero3")
    if kind == "none":
        lora = dataclasses.replace(config.adapter, kind="lora").build()
        placements = ("replicated", "zero3")
        for placement in placements:
            # An adapter can't have Muon.
            optimizer = "adamw" if setup.optimizer == "muon" else setup.optimizer
            adapted = dataclasses.replace(
                setup, model=Trained(setup.model.shape, lora), placement=placement, optimizer=optimizer
            )
            if estimate(adapted).states <= bytes_per_device:
                optim = "" if optimizer == setup.optimizer else f" --optim.kind {optimizer}"
                ways.append(f"--adapter.kind lora{optim} --train.placement {placement}")
                break
    return (
        f"What would: {'; '.join(ways)}." if ways else "Nothing would with this model on such devices; use larger ones."
    )


def _ranks_needed(setup: Setup, bytes_per_device: float) -> int | None:
    ranks = setup.ranks
    while ranks <= 8192:
        ranks *= 2
        if estimate(dataclasses.replace(setup, ranks=ranks)).states <= bytes_per_device:
            return ranks
    return None


def _held(need: Memory) -> list[tuple[str, float]]:
    return [
        ("weights", need.weights + need.adapter), ("gradients", need.gradients), ("masters", need.masters),
        ("optimizer", need.optimizer),
    ]  # fmt: skip
