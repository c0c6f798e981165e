"""What all optimizers here have in common: states that are made before the first step, and steps that can be called off."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class HasStates(Protocol):
    """An optimizer that says which states a tensor has beside its `step`."""

    def states_of(self, tensor: Tensor) -> tuple[str, ...]:
        """Names of the element-wise states, each of the tensor's shape."""


def materialised(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a tensor; made where it has not stepped yet, as its first step would: zeros.

    Beside the element-wise states it has `step`, a float32 scalar: the number of updates.
    """
    state: dict[str, Tensor] = optimizer.state[tensor]
    if not state:
        names = optimizer.states_of(tensor) if isinstance(optimizer, HasStates) else ("exp_avg", "exp_avg_sq")
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
        state.update({name: torch.zeros_like(tensor, memory_format=torch.preserve_format) for name in names})
    return state


def flag_of(optimizer: torch.optim.Optimizer, tensor: Tensor) -> Tensor | None:
    """Whether the step is called off: the attribute `found_inf` as a boolean scalar on the tensor's device, or None."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(tensor.device) > 0
