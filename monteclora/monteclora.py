"""MonteCLoRA: LoRA whose A is a mixture of Gaussians under Wishart and Dirichlet priors (arXiv 2411.04358).

Per layer and training forward, in the notation of `monteclora.distributions`::

    A_eff = A + eps sum_n pi_n Sigma^1/2 Z_n            Z_n [r, in] standard normal, n = 1..N          (`sampled`)
    A_eff = A + eps ||pi||_2   Sigma^1/2 Z              ONE Z [r, in]                                  (`collapsed`)

Given pi, the weighted sum of the Z_n has exactly the law of ||pi||_2 Z, so both lines define the same distribution of
A_eff, the same expected loss and the same penalty. The collapsed gradient is the expectation of the sampled one given
the sum (Rao-Blackwell): the same mean, never a larger variance, at a cost that does not depend on N.

Noise comes from torch's default generator at the moment it is used and none is stored: whoever seeds the generator
decides the draw, and recomputation of activations, which restores the generator, replays it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monteclora.config import MonteCLoRAConfig
from monteclora.distributions import sample_simplex, sample_std, wide
from monteclora.lora import LoRALinear
from monteclora.penalty import PenaltyWeight, join_penalty


class MonteCLoRALinear(LoRALinear):
    """`LoRALinear` with a random A while training; in evaluation it is that LoRA, the posterior mean.

    Own parameters besides A and B: `log_std` (s, [r]) and `log_concentration` (t, [N]), both drawn from U[0, 1). The
    gradient of the penalty joins the graph in this forward, the only place where ZeRO-3 has the parameters whole: after
    backward the gradients are those of loss + penalty_weight.value * penalty. `last_draw` holds what the penalty of the
    latest training forward is a function of (see `variational_penalty`), detached, for logging.
    """

    log_std: nn.Parameter
    log_concentration: nn.Parameter

    def __init__(
        self,
        base: nn.Linear,
        config: MonteCLoRAConfig,
        generator: torch.Generator | None = None,
        penalty_weight: PenaltyWeight | None = None,
    ) -> None:
        super().__init__(base, config, generator)
        self.config = config
        self.penalty_weight = penalty_weight or PenaltyWeight()
        self.last_draw: Tensor | None = None
        self.log_std = self._new_parameter(torch.rand(config.rank, generator=generator, device="cpu"))
        self.log_concentration = self._new_parameter(torch.rand(config.num_samples, generator=generator, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out], with a fresh A while training."""
        if not self.training:
            return super().forward(x)
        return self.base(x) + self.update(x, self.sample_a())

    def sample_a(self) -> Tensor:
        """Draw A_eff [r, in], in the dtype of A, with the gradient of the penalty joined to it."""
        config = self.config
        s, t = wide(self.log_std), wide(self.log_concentration)
        std = sample_std(s, torch.randn(config.rank, config.rank, dtype=s.dtype, device=s.device))
        pi = sample_simplex(t, torch.randn(config.num_samples, dtype=t.dtype, device=t.device))
        with torch.no_grad():
            self.last_draw = torch.cat((s, t, std, pi))
        noise = NOISE[config.estimator](config.noise_scale * std, pi, self.in_features)
        a = (self.lora_A + noise).to(self.lora_A.dtype)
        return join_penalty(a, (s, t, std, pi), self.last_draw, self.penalty_weight.value, config)


def collapsed_noise(std: Tensor, pi: Tensor, in_features: int) -> Tensor:
    """Draw diag(std) sum_n pi_n Z_n [r, in] as one Gaussian, diag(std) ||pi||_2 Z, for std [r] and pi [N]."""
    scale = std * torch.linalg.vector_norm(pi)
    return scale.unsqueeze(-1) * torch.randn(len(std), in_features, dtype=std.dtype, device=std.device)


def sampled_noise(std: Tensor, pi: Tensor, in_features: int) -> Tensor:
    """Draw diag(std) sum_n pi_n Z_n [r, in] from N Gaussians, as the paper writes it, for std [r] and pi [N]."""
    z = torch.randn(len(pi), len(std), in_features, dtype=std.dtype, device=std.device)
    # A product and a sum, because autocast would do a tensordot in half precision.
    return std.unsqueeze(-1) * (pi.view(-1, 1, 1) * z).sum(0)


NOISE = {"collapsed": collapsed_noise, "sampled": sampled_noise}
