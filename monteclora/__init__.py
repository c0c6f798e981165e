"""Adapters for a frozen model, LoRA and MonteCLoRA, the distributions they rest on, and HiddenKey's dropout.

    adapter = attach_adapter(model, MonteCLoRAConfig(rank=16, num_samples=4))
    hidden_key = attach_hidden_key(model, HiddenKeyConfig())

The names below are loaded on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monteclora.adapter import Adapter, attach_adapter
    from monteclora.config import LoRAConfig, MonteCLoRAConfig
    from monteclora.hidden_key.attach import HiddenKey, attach_hidden_key
    from monteclora.hidden_key.config import HiddenKeyConfig
    from monteclora.merge import merge_adapter, unmerge_adapter
    from monteclora.peft_format import load_peft, save_peft
    from monteclora.predictive import Predictive, predict

_HOME = {
    "Adapter": "monteclora.adapter",
    "HiddenKey": "monteclora.hidden_key.attach",
    "HiddenKeyConfig": "monteclora.hidden_key.config",
    "LoRAConfig": "monteclora.config",
    "MonteCLoRAConfig": "monteclora.config",
    "Predictive": "monteclora.predictive",
    "attach_adapter": "monteclora.adapter",
    "attach_hidden_key": "monteclora.hidden_key.attach",
    "load_peft": "monteclora.peft_format",
    "merge_adapter": "monteclora.merge",
    "predict": "monteclora.predictive",
    "save_peft": "monteclora.peft_format",
    "unmerge_adapter": "monteclora.merge",
}

__all__ = [
    "Adapter",
    "HiddenKey",
    "HiddenKeyConfig",
    "LoRAConfig",
    "MonteCLoRAConfig",
    "Predictive",
    "attach_adapter",
    "attach_hidden_key",
    "load_peft",
    "merge_adapter",
    "predict",
    "save_peft",
    "unmerge_adapter",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
