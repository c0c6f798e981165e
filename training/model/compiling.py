"""torch.compile for the parts of decoder layers that are many small operations: norms, projections with rotation, MLP.

Only while training: evaluation, whose rows have all lengths, runs as it is. Attention and MonteCLoRA's layers stay outside
the graphs, each one fused operation already; what they get (boundaries, a seed) differs in every micro-batch, and compiled
code would be compiled anew for it. Weights are inputs of the compiled code, so all layers share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch._inductor.config
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from monteclora.monteclora import MonteCLoRALinear
from monteclora.posterior import BlockPosterior


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the parts of every decoder layer, after adapters are attached; modules and parameters keep their names."""
    # Dropout draws as it does without compilation, and again the same in recomputed activations.
    torch._inductor.config.fallback_random = True
    name = model.config._attn_implementation
    attention = AttentionInterface()
    attention.register(name, torch.compiler.disable(attention[name]))
    for module in model.modules():
        if isinstance(module, MonteCLoRALinear):
            _leave_out(module)
    for part in layer_parts(model):
        _compile_in_training(part)


def layer_parts(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules that decoder layers consist of: norms, self-attention, MLP."""
    for layer in model.get_decoder().layers:
        yield from (child for child in layer.children() if not isinstance(child, BlockPosterior))


def _leave_out(module: Any) -> None:
    module.forward = torch.compiler.disable(module.forward)


def _compile_in_training(module: Any) -> None:
    eager, compiled = module.forward, torch.compile(module.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return compiled(*args, **kwargs) if module.training else eager(*args, **kwargs)

    module.forward = forward
