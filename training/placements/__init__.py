"""Where weights, gradients and optimizer state live: one module per way, all with the methods of `Placement`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from training.config import Config
from training.world import World


class Placement(Protocol):
    """A model on all ranks, with the optimizer of what trains in it."""

    module: nn.Module
    """The model itself. Its parameters may be whole only inside a forward."""
    model: nn.Module
    """What is called for a forward and switched between training and evaluation: the module, or what is around it."""
    device: torch.device
    optimizer: Any
    """Has `param_groups`, whose lr and weight_decay may be set before every step; each group has a name."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients of this rank's micro-batch; those of all micro-batches are averaged over the ranks.

        `is_last` says that it is the step's last micro-batch.
        """

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip and take the optimizer's step (a collective): the global gradient norm before clipping, and whether the step
        was taken, which it is not when the norm is not finite. Scalars on any device; gradients are empty afterwards.
        """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shape of every trainable parameter."""

    def local_views(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's fp32 slices, 1-D, where they are: `<parameter>` and then its `<parameter>/<optimizer state>`.

        Rank k holds elements [k*n, (k+1)*n) of the flattened parameter, n = ceil(numel / world size); the last
        slices are padded with zeros. The same in every placement. `update` changes them.
        """

    def load_local_state(self, state: Iterable[tuple[str, torch.Tensor]], optimizer_steps: dict[str, int]) -> None:
        """Set what local_views and optimizer_steps gave, in that order, the first cut for this world size."""

    def state_names(self) -> dict[str, tuple[str, ...]]:
        """The optimizer states of every trainable parameter."""

    def optimizer_steps(self) -> dict[str, int]:
        """Number of updates each parameter group has had, by its name (AdamW's bias correction depends on it)."""

    def reset_optimizer_steps(self, group: str) -> None:
        """Let a group's optimizer believe that it has made no update yet."""

    def full_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield parameters one by one, whole and in the model's precision, on rank 0's CPU (None on other ranks).

        A collective: every rank must exhaust it. `names` None means all of them, frozen ones included.
        """

    def close(self) -> None:
        """Let go of what it holds."""


def prepare(
    config: Config, ds_config: dict[str, Any], world: World, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Make ready what the placement needs beside the process group; return the DeepSpeed configuration, completed.

    `say` gets a line when that takes long, which it does once per environment.
    """
    if config.train.placement == "replicated":
        return ds_config
    from training.placements.zero3 import complete_ds_config, init_deepspeed

    init_deepspeed(world, say)
    return complete_ds_config(ds_config, config, world)


def place(
    module: nn.Module,
    groups: list[dict[str, Any]],
    config: Config,
    ds_config: dict[str, Any],
    world: World,
    device: torch.device,
) -> Placement:
    """Put the model with its parameter groups (training.optim) where `train.placement` says."""
    if config.train.placement == "replicated":
        from training.placements.replicated import Replicated

        return Replicated(module, groups, config, world, device)
    from training.placements.zero3 import Zero3

    return Zero3(module, groups, config, ds_config, world)
