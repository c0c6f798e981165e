"""HiddenKey: dropout for finetuned transformers (LoRA Meets Dropout, arXiv 2403.00812).

Column DropKey in attention, element HiddenCut on the output of the feed-forward block, and a bidirectional KL divergence
between two stochastic passes::

    hidden_key = attach_hidden_key(model, HiddenKeyConfig())
    logits = model(**inputs).logits
    with hidden_key.second_pass():
        second = model(**inputs).logits
    loss = cross_entropy(logits, labels) + hidden_key.compensation(logits, second) / len(labels)

The names below are loaded on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monteclora.hidden_key.attach import HiddenKey, attach_hidden_key
    from monteclora.hidden_key.compensation import bidirectional_kl, one_sided_js
    from monteclora.hidden_key.config import HiddenKeyConfig

_HOME = {
    "HiddenKey": "monteclora.hidden_key.attach",
    "HiddenKeyConfig": "monteclora.hidden_key.config",
    "attach_hidden_key": "monteclora.hidden_key.attach",
    "bidirectional_kl": "monteclora.hidden_key.compensation",
    "one_sided_js": "monteclora.hidden_key.compensation",
}

__all__ = ["HiddenKey", "HiddenKeyConfig", "attach_hidden_key", "bidirectional_kl", "one_sided_js"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
