"""Low-rank adapters for a frozen model: LoRA and MonteCLoRA, and the distributions they rest on.

    adapter = attach_adapter(model, MonteCLoRAConfig(rank=16, alpha=32, num_samples=4))

The names below are loaded on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monteclora.adapter import Adapter, attach_adapter
    from monteclora.config import LoRAConfig, MonteCLoRAConfig
    from monteclora.peft_format import load_peft, merge_adapter, save_peft

_HOME = {
    "Adapter": "monteclora.adapter",
    "LoRAConfig": "monteclora.config",
    "MonteCLoRAConfig": "monteclora.config",
    "attach_adapter": "monteclora.adapter",
    "load_peft": "monteclora.peft_format",
    "merge_adapter": "monteclora.peft_format",
    "save_peft": "monteclora.peft_format",
}

__all__ = ["Adapter", "LoRAConfig", "MonteCLoRAConfig", "attach_adapter", "load_peft", "merge_adapter", "save_peft"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
