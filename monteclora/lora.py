"""LoRA: a frozen linear layer with a trainable low-rank update (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from monteclora.low_rank import low_rank_linear


class LoRALinear(nn.Module):
    """y = W x + b + scaling * B A dropout(x), with W [out, in] frozen, A [r, in] and B [out, r].

    The frozen weight, A and B are this module's own parameters, the weight under the name it had in the linear layer.
    Under ZeRO-3, which gathers a module's own parameters around that module's forward and backward, each is then whole
    exactly where it is used. A starts kaiming-uniform(a = sqrt 5) and B at 0, so a new adapter changes nothing. Their
    first values depend on `generator` alone, not on dtype or device.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        scaling: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take over `base`'s parameters; `dtype` is that of A and B, the weight's when it is None."""
        super().__init__()
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.scaling, self.dropout = rank, scaling, dropout
        first_A = torch.empty(rank, self.in_features, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(first_A, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(first_A.to(device=self.weight.device, dtype=dtype or self.weight.dtype))
        self.lora_B = nn.Parameter(self.lora_A.new_zeros(self.out_features, rank))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return low_rank_linear(
            x,
            self.weight,
            self.bias,
            self.lora_A,
            self.lora_B,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )

    def update(self) -> Tensor:
        """What the adapter adds to the weight, scaling * B A [out, in], in fp32 (or fp64)."""
        wide = torch.promote_types(self.lora_A.dtype, torch.float32)
        return self.scaling * (self.lora_B.to(wide) @ self.lora_A.to(wide))

    def plain(self) -> nn.Linear:
        """A plain linear layer around the same weight and bias."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Short description for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"
        )
