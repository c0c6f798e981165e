"""LoRA: a frozen linear layer with a trainable low-rank update (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monteclora.config import LoRAConfig


class LoRALinear(nn.Module):
    """y = base(x) + (alpha / r) B A dropout(x), with A [r, in] and B [out, r].

    The frozen layer is a child and A and B are this module's own parameters. Under ZeRO-3, which gathers a module's own
    parameters around that module's forward only, each is then whole exactly where it is used. A starts
    kaiming-uniform(a = sqrt 5) and B at 0, so a new adapter changes nothing. Both have the base weight's dtype and
    device; their first values depend on `generator` alone, not on either.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.scaling, self.dropout = config.rank, config.scaling, config.dropout
        first_A = torch.empty(self.rank, self.in_features, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(first_A, a=math.sqrt(5), generator=generator)
        self.lora_A = self._new_parameter(first_A)
        self.lora_B = self._new_parameter(torch.zeros(self.out_features, self.rank, device="cpu"))
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that ask a layer for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return self.base(x) + self.update(x, self.lora_A)

    def update(self, x: Tensor, a: Tensor) -> Tensor:
        """The low-rank part (alpha / r) B a dropout(x) [..., out] for x [..., in] and a [r, in]."""
        hidden = F.linear(F.dropout(x, self.dropout, self.training), a)
        return F.linear(hidden * self.scaling, self.lora_B)

    def extra_repr(self) -> str:
        """Short description for `print(model)`."""
        return f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"

    def _new_parameter(self, first: Tensor) -> nn.Parameter:
        return nn.Parameter(first.to(device=self.base.weight.device, dtype=self.base.weight.dtype))
