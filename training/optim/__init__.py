"""Optimizers and parameter groups.

`groups` says which parameters share a learning rate and a weight decay, `make_optimizer` makes the optimizer of
`optim.kind` from them, or from flat tensors that they lie in. All states are element-wise, so that checkpoints can cut them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from training.config import OptimConfig
from training.optim.groups import is_muon_matrix, parameter_groups, set_learning_rates
from training.optim.lion import LionW
from training.optim.muon import Muon, Slice
from training.optim.states import materialised

__all__ = [
    "LionW", "Muon", "Slice", "make_optimizer", "materialised", "parameter_groups", "set_learning_rates", "state_names",
]  # fmt: skip


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of `optim.kind` for groups such as `parameter_groups` makes.

    When the attribute `found_inf` of an optimizer (a float32 scalar) is set and 1, a step changes nothing: no parameter, no
    state, no number of updates. The host never waits for its value.
    """
    betas = (config.beta1, config.beta2)
    if config.kind == "lionw":
        return LionW(groups, lr=config.lr, betas=betas)
    if config.kind == "muon":
        return Muon(groups, lr=config.lr, betas=betas, eps=config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def state_names(config: OptimConfig, name: str, shape: Sequence[int]) -> tuple[str, ...]:
    """The element-wise optimizer states of a parameter with this full name and shape; `step` is beside them."""
    if config.kind == "lionw":
        return LionW.STATES
    if config.kind == "muon" and is_muon_matrix(name, len(shape)):
        return Muon.MATRIX_STATES
    return Muon.OTHER_STATES
