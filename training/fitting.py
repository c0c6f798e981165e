"""Whether the run fits its devices, and how many layers must be recomputed so that it does."""

from __future__ import annotations

from typing import Any

import torch

from training.config import Config
from training.world import World


def check_fits(config: Config, ds_config: dict[str, Any], world: World, device: torch.device) -> None:
    """Refuse what cannot fit."""


def recomputed_layers(config: Config, ds_config: dict[str, Any], world: World, device: torch.device) -> int:
    """Decoder layers whose activations are recomputed, the first ones of the model."""
    written = config.model.activation_checkpointing
    if written in ("off", "auto"):
        return 0
    return 2 if written == "full" else int(written)
