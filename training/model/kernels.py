"""Liger's kernels for norms, rotary embedding and the feed-forward product, where they are installed (CUDA only).

Its loss is not among them: training/model/loss_head.py has the same memory, leaves the weight where ZeRO-3 wants it, and adds
HiddenKey's compensation from the same chunk of logits.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch

from training.errors import ModelError

Kernels = Literal["auto", "torch", "liger"]


def use_kernels(model: Any, choice: Kernels, device: torch.device) -> Literal["torch", "liger"]:
    """Give a model of transformers the kernels that `model.kernels` asks for, and return which they are.

    Linear layers stay the modules they are, so adapters can be attached before or after. Liger also replaces transformers'
    rotary embedding and its classes of LLaMA modules, for the whole process.

    Raises:
        ModelError: Liger's kernels are asked for, and it is not installed, or the device or model is none that it serves.
    """
    if choice == "torch":
        return "torch"
    obstacle = _obstacle(model, device)
    if obstacle is None:
        _liger().apply_liger_kernel_to_llama(
            rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
        )
        return "liger"
    if choice == "liger":
        raise ModelError(f'model.kernels = "liger": {obstacle}; or set model.kernels to "auto" or "torch"')
    return "torch"


def _obstacle(model: Any, device: torch.device) -> str | None:
    """What keeps Liger from being used; None: nothing."""
    if device.type != "cuda":
        return f"its kernels need a CUDA device, and this run is on {device.type}"
    config = model.config
    if config.model_type != "llama" or config.hidden_act not in ("silu", "swish"):
        return f"its kernels are used for LLaMA with SiLU, and this is a {config.model_type} with {config.hidden_act}"
    try:
        _liger()
    except ImportError as error:
        return f"it can't be imported ({error}); install it with `pip install liger-kernel`"
    return None


def _liger() -> Any:
    return importlib.import_module("liger_kernel.transformers.monkey_patch")
