"""The variational penalty of MonteCLoRA: its value and, in closed form, its gradient.

Per layer, from its parameters s [r] and t [N] and one forward's draws of Sigma^1/2 [r] and pi [N]::

    penalty = eta (KL_Dirichlet(exp t) + KL_Wishart(s) + KL_normal(Sigma)) + coop sum_n pi_n^2

Several layers are taken together: their s and Sigma^1/2 one after the other, their t and pi as the rows of a matrix.
Ranks may differ from layer to layer. The derivatives are short closed forms; writing them down, in place of letting
autograd record dozens of tiny operations, is part of what keeps a MonteCLoRA step as fast as a LoRA step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from monteclora.config import MonteCLoRAConfig
from monteclora.distributions import dirichlet_kl, expected_normal_kl, normal_kl, wishart_kl


class Draw(NamedTuple):
    """What the penalty of L layers with R = sum of r dimensions is a function of, in fp32 (or fp64)."""

    log_std: Tensor
    """s [R]"""
    log_concentration: Tensor
    """t [L, N]"""
    std: Tensor
    """Sigma^1/2 [R]"""
    pi: Tensor
    """pi [L, N]"""


def variational_penalty(draw: Draw, rank: Tensor, config: MonteCLoRAConfig) -> Tensor:
    """Sum of the penalties of all layers of a draw, a scalar in nats; rank [R] is each dimension's r."""
    s, t, std, pi = draw
    size = config.num_samples
    # Per dimension, because the ranks that multiply the sums over dimensions may differ.
    normal = (
        expected_normal_kl(s.unsqueeze(-1), size, rank)
        if config.analytic_kl
        else normal_kl(std.square().unsqueeze(-1), size)
    )
    kl = dirichlet_kl(t.exp(), config.dirichlet_prior).sum() + (wishart_kl(s.unsqueeze(-1), rank) + normal).sum()
    return config.kl_weight * kl + config.coop_weight * pi.square().sum()


def kl_gradient(draw: Draw, rank: Tensor, is_floored: Tensor, config: MonteCLoRAConfig) -> tuple[Tensor, Tensor]:
    """Gradients of eta * KL with respect to s [R] and t [L, N], the collision term left out.

    Args:
        draw: the draw, with Sigma^1/2 = max(exp(s) chi, floor).
        rank: [R], each dimension's r.
        is_floored: [R], 1 where the floor holds Sigma^1/2, which then does not depend on s; else 0.
        config: weights, prior and the form of the normal KL.
    """
    s, t, std, _ = draw
    size, prior, eta = config.num_samples, config.dirichlet_prior, config.kl_weight
    # d KL_Wishart / d s_j = r (exp(2 s_j) - 1)
    grad_s = eta * rank * torch.expm1(2 * s)
    if config.analytic_kl:
        # d E[KL_normal] / d s_j = N (r exp(2 s_j) - 1)
        grad_s += eta * size * (rank * torch.exp(2 * s) - 1)
    else:
        # d KL_normal / d s_j = N (Sigma_j - 1), from d Sigma_j^1/2 / d s_j = Sigma_j^1/2
        grad_s += eta * size * (std.square() - 1) * (1 - is_floored)
    # d KL_Dirichlet / d alpha_k = (a_k - a0) psi'(a_k) - (S - N a0) psi'(S)
    alpha = t.exp()
    total = alpha.sum(-1, keepdim=True)
    grad_alpha = (alpha - prior) * torch.polygamma(1, alpha) - (total - size * prior) * torch.polygamma(1, total)
    return grad_s, eta * alpha * grad_alpha
