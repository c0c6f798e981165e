"""A run against the memory of its devices, before anything is loaded: what cannot fit, and what "auto" means. No torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.config import Config, Kind
from training.memory import GiB, Memory, Placement, Setup, Trained, ZeroOptions, estimate, layers_to_recompute
from training.shape import Shape


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
        device="cuda" if device == "cuda" else "cpu", zero=ZeroOptions.from_ds_config(ds_config),
    )  # fmt: skip


def recomputed_layers(setup: Setup, config: Config, usable_bytes: float) -> int:
    """The number of layers that model.activation_checkpointing means; with auto all where even those don't fit."""
    if config.model.activation_checkpointing != "auto":
        return setup.recomputed_layers
    layers = layers_to_recompute(setup, usable_bytes)
    return setup.model.shape.layers if layers is None else layers


def fit_problems(
    config: Config,
    ds_config: dict[str, Any],
    device_memory_bytes: float,
    *,
    ranks: int,
    ranks_per_node: int,
    shape: Shape | None,
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
    """
    if shape is None:
        return []
    setup = setup_of(config, shape, ranks=ranks, ranks_per_node=ranks_per_node, ds_config=ds_config)
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
    for placement in dict.fromkeys(("zero3", setup.placement)):
        needed = _ranks_needed(dataclasses.replace(setup, placement=placement), bytes_per_device)
        if needed is not None and needed > setup.ranks:
            ways.append(f"{needed} ranks with {placement}")
            break
    if kind == "none":
        lora = dataclasses.replace(config.adapter, kind="lora").build()
        placements = ("replicated", "zero3")
        for placement in placements:
            adapted = dataclasses.replace(setup, model=Trained(setup.model.shape, lora), placement=placement)
            if estimate(adapted).states <= bytes_per_device:
                ways.append(f"--adapter.kind lora --train.placement {placement}")
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
