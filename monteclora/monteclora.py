"""MonteCLoRA: LoRA whose A is a mixture of Gaussians under Wishart and Dirichlet priors (arXiv 2411.04358).

Per layer and training forward, in the notation of `monteclora.distributions`::

    A_eff = A + eps sum_n pi_n Sigma^1/2 Z_n            Z_n [r, in] standard normal, n = 1..N          (`sampled`)
    A_eff = A + eps ||pi||_2   Sigma^1/2 Z              ONE Z [r, in]                                  (`collapsed`)

Given pi, the weighted sum of the Z_n has exactly the law of ||pi||_2 Z, so both lines define the same distribution of
A_eff, the same expected loss and the same penalty. The collapsed gradient is the expectation of the sampled one given
the sum (Rao-Blackwell): the same mean, never a larger variance, at a cost that does not depend on N.

Model and constants are those of the authors' published code (github.com/LCS2-IIITD/MonteCLoRA), with these corrections: A
stays the parameter that is trained, and the noise is on the path of the gradient; eps is applied once, not twice; the
Dirichlet divergence has the textbook's sign (see `monteclora.distributions`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monteclora.distributions import wide
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.low_rank import low_rank_linear, wide_dtype, zero_gradient
from monteclora.posterior import BlockPosterior, LayerDraw


class MonteCLoRALinear(LoRALinear):
    """`LoRALinear` with a random A while training; in evaluation it is that LoRA, the posterior mean.

    What A is drawn from belongs to the posterior of the layer's block. Inside `Adapter.sampled` A is random in
    evaluation too.
    """

    def __init__(
        self,
        base: nn.Linear,
        posterior: BlockPosterior,
        index: int,
        *,
        rank: int,
        scaling: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Be layer number `index` of the posterior's block; the rest is `LoRALinear`'s."""
        super().__init__(base, rank=rank, scaling=scaling, dropout=dropout, generator=generator, dtype=dtype)
        # In a tuple, so that the posterior is a child of the block and not of each of its layers.
        self._place = (posterior, index)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out], with a fresh A while training.

        Raises:
            AdapterError: something depends on the step, and nobody has said which it is.
        """
        posterior, index = self._place
        controls = posterior.controls
        if self.training and not controls.is_scheduled:
            raise AdapterError(
                "start_step, posthoc and coop_lr_ratio depend on the step: call adapter.begin_step(step, optimizer, lr) "
                "before every optimizer step"
            )
        if not (controls.sample is not None or (self.training and controls.is_random)):
            return super().forward(x)
        draw = posterior.layer(index)
        is_collapsed = posterior.config.estimator == "collapsed"
        freeze = zero_gradient if controls.freezes_low_rank else lambda parameter: parameter
        a, b = freeze(self.lora_A), freeze(self.lora_B)
        return low_rank_linear(
            x,
            self.weight,
            self.bias,
            a if is_collapsed else a + sampled_noise(a, draw),
            b,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            scale=draw.scale if is_collapsed else None,
            seed=draw.seed if is_collapsed else None,
        )


def sampled_noise(a: Tensor, draw: LayerDraw) -> Tensor:
    """Draw eps diag(Sigma^1/2) sum_n pi_n Z_n [r, in] from N Gaussians, as the paper writes it, in fp32 (or fp64)."""
    generator = torch.Generator(device=a.device).manual_seed(draw.seed)
    shape = (len(draw.pi), *a.shape)
    z = torch.randn(shape, generator=generator, dtype=wide_dtype(a), device=a.device)
    # A product and a sum, because autocast would do a tensordot in half precision.
    return wide(draw.scale).unsqueeze(-1) * (draw.pi.view(-1, 1, 1) * z).sum(0)
