"""A model that is only asked, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Within this the model is in eval mode and makes no gradients; after it every module is in the mode it was in."""
    # Mode by mode: a part that was in eval mode during training (a frozen dropout) must stay so.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, is_training in modes:
            module.training = is_training
