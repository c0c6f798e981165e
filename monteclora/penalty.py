"""The variational penalty of MonteCLoRA: its value, for the log, and its gradient, for the optimizer.

Per layer, from its parameters s [r] and t [N] and one forward's draws of Sigma^1/2 [r] and pi [N]::

    penalty = eta (KL_Dirichlet(exp t) + KL_Wishart(s) + KL_normal(Sigma)) + coop sum_n pi_n^2

The four derivatives are short closed forms. Writing them down, in place of letting autograd record some fifty tiny
operations per layer, is what keeps a MonteCLoRA step as fast as a LoRA step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monteclora.config import MonteCLoRAConfig
from monteclora.distributions import dirichlet_kl, expected_normal_kl, normal_kl, wishart_kl


class PenaltyWeight:
    """The factor of the current step on every layer's penalty, shared by all layers of an adapter."""

    def __init__(self) -> None:
        self.value = 0.0


def variational_penalty(draw: Tensor, config: MonteCLoRAConfig) -> Tensor:
    """Penalty [...] in nats of layers whose s, t, Sigma^1/2 and pi are concatenated in draw [..., r + N + r + N]."""
    log_std, log_concentration, std, pi = _split(draw, config)
    normal = (
        expected_normal_kl(log_std, config.num_samples)
        if config.analytic_kl
        else normal_kl(std.square(), config.num_samples)
    )
    kl = dirichlet_kl(log_concentration.exp(), config.dirichlet_prior) + wishart_kl(log_std, config.rank) + normal
    return config.kl_weight * kl + config.coop_weight * pi.square().sum(-1)


def join_penalty(
    a: Tensor,
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    draw: Tensor,
    weight: float,
    config: MonteCLoRAConfig,
) -> Tensor:
    """Return `a` as it is; when backward reaches it, weight * d penalty / d part is added to the gradient of each part.

    It stands on the layer's low-rank weight and not on its output, because that weight is on the path of every gradient
    of the layer's adapter, whether or not the layer's input needs one, and nobody else can modify it in place.

    Args:
        a: A_eff [r, in].
        parts: s [r], t [N], Sigma^1/2 [r] and pi [N] of this forward, in fp32 (or fp64).
        draw: a detached copy of the parts, concatenated [r + N + r + N]; it, and not a parameter that may be sharded
            again by then, is kept for backward.
        weight: factor on the penalty; at 0 nothing is computed.
        config: the weights of the terms, the prior, and which form of the normal KL.
    """
    if weight == 0:
        return a
    result: Tensor = _JoinPenalty.apply(a, *parts, draw, weight, config)
    return result


class _JoinPenalty(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        log_std: Tensor,
        log_concentration: Tensor,
        std: Tensor,
        pi: Tensor,
        draw: Tensor,
        weight: float,
        config: MonteCLoRAConfig,
    ) -> Tensor:
        ctx.save_for_backward(draw)
        ctx.weight, ctx.config = weight, config
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (draw,) = ctx.saved_tensors
        config, size = ctx.config, ctx.config.num_samples
        log_std, log_concentration, std, pi = _split(draw, config)
        kl_weight = ctx.weight * config.kl_weight

        alpha = log_concentration.exp()
        total = alpha.sum()
        # d KL_Dirichlet / d alpha_k = (a_k - a0) psi'(a_k) - (S - N a0) psi'(S)
        grad_alpha = (alpha - config.dirichlet_prior) * torch.polygamma(1, alpha)
        grad_alpha = grad_alpha - (total - size * config.dirichlet_prior) * torch.polygamma(1, total)
        grad_t = kl_weight * alpha * grad_alpha

        # d KL_Wishart / d s_j = r (exp(2 s_j) - 1)
        grad_s = kl_weight * config.rank * torch.expm1(2 * log_std)
        grad_std = None
        if config.analytic_kl:
            # d E[KL_normal] / d s_j = N (r exp(2 s_j) - 1)
            grad_s = grad_s + kl_weight * size * (config.rank * torch.exp(2 * log_std) - 1)
        else:
            # d KL_normal / d Sigma_j^1/2 = N (Sigma_j^1/2 - Sigma_j^-1/2)
            grad_std = kl_weight * size * (std - std.reciprocal())

        grad_pi = 2 * ctx.weight * config.coop_weight * pi
        return grads[0], grad_s, grad_t, grad_std, grad_pi, None, None, None


def _split(draw: Tensor, config: MonteCLoRAConfig) -> tuple[Tensor, ...]:
    return draw.split((config.rank, config.num_samples) * 2, dim=-1)
