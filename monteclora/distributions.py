"""The distributions of MonteCLoRA: divergences to the priors, and draws as functions of standard normals.

Everything here is a pure function. Noise is an argument, so that whoever owns the generator owns the randomness, and a
draw can be replayed. Arithmetic is done in fp32 (fp64 for fp64 arguments) whatever the parameters are stored in.

Per adapted layer, with r the rank and N the number of Gaussians (MonteCLoRA, arXiv 2411.04358)::

    V = diag(exp s)^2           s in R^r, learned
    Sigma = diag(V^1/2 W V^1/2) W ~ Wishart(I, r); only its diagonal is used: r independent chi-squares with r degrees
    alpha = exp t               t in R^N, learned
    pi ~ Dirichlet(alpha)       in its logistic-normal approximation

Divergences are the textbook ones: every one of them is >= 0 and is 0 only when the two distributions are equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-3
"""Smallest variance that a Wishart draw may give to a dimension."""


def dirichlet_kl(alpha: Tensor, alpha0: Tensor | float) -> Tensor:
    """KL(Dir(alpha) || Dir(alpha0)), over the last axis of alpha [..., N].

    lnG(S) - lnG(S0) - sum_k [lnG(a_k) - lnG(a0_k)] + sum_k (a_k - a0_k) (psi(a_k) - psi(S)), with S = sum_k a_k. It
    stays in log space: Gamma itself overflows fp32 from 36 on. A number for alpha0 means the symmetric prior.
    """
    alpha = wide(alpha)
    total = alpha.sum(-1)
    log_norm0: Tensor | float
    if isinstance(alpha0, Tensor):
        alpha0 = wide(alpha0)
        log_norm0 = torch.lgamma(alpha0.sum(-1)) - torch.lgamma(alpha0).sum(-1)
    else:
        size = alpha.shape[-1]
        log_norm0 = math.lgamma(size * alpha0) - size * math.lgamma(alpha0)
    log_norm = torch.lgamma(total) - torch.lgamma(alpha).sum(-1)
    mean_log = torch.digamma(alpha) - torch.digamma(total).unsqueeze(-1)
    return log_norm - log_norm0 + ((alpha - alpha0) * mean_log).sum(-1)


def wishart_kl(log_std: Tensor, df: float | Tensor) -> Tensor:
    """KL(Wishart(V, df) || Wishart(I, df)) with V = diag(exp log_std)^2, over the last axis of log_std [..., r].

    (df / 2)(tr V - ln det V - r) = (df / 2) sum_j (exp(2 s_j) - 1 - 2 s_j)
    """
    twice = 2 * wide(log_std)
    return df / 2 * (torch.expm1(twice) - twice).sum(-1)


def normal_kl(variance: Tensor, num_samples: int) -> Tensor:
    """KL of `num_samples` draws of N(0, diag(variance)) from N(0, I), over the last axis of variance [..., r].

    (N / 2) sum_j (Sigma_j - ln Sigma_j - 1)
    """
    variance = wide(variance)
    return num_samples / 2 * (variance - torch.log(variance) - 1).sum(-1)


def expected_normal_kl(log_std: Tensor, num_samples: int, df: float | Tensor | None = None) -> Tensor:
    """Expectation of `normal_kl` over the Wishart draw, over the last axis of log_std [..., r].

    (N / 2) sum_j (df exp(2 s_j) - 2 s_j - psi(df / 2) - ln 2 - 1), from E w = df and E ln w = psi(df / 2) + ln 2 of a
    chi-square w with df degrees of freedom, by default r. The floor under the variance is left out.
    """
    twice = 2 * wide(log_std)
    df = torch.as_tensor(log_std.shape[-1] if df is None else df, dtype=twice.dtype, device=twice.device).unsqueeze(-1)
    constant = torch.digamma(df / 2) + math.log(2) + 1
    return num_samples / 2 * (df * torch.exp(twice) - twice - constant).sum(-1)


def logistic_normal(log_concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [..., N] of the logits whose softmax approximates Dir(exp(log_concentration)).

    Laplace approximation in the softmax basis (ProdLDA, arXiv 1703.01488):
    mu_k = ln a_k - mean_i ln a_i and s2_k = (1 / a_k)(1 - 2 / N) + (1 / N^2) sum_i 1 / a_i.
    """
    log_alpha = wide(log_concentration)
    size = log_alpha.shape[-1]
    inverse = torch.exp(-log_alpha)
    variance = torch.add(inverse.sum(-1, keepdim=True) / size**2, inverse, alpha=1 - 2 / size)
    return log_alpha - log_alpha.mean(-1, keepdim=True), variance


def sample_simplex(log_concentration: Tensor, noise: Tensor) -> Tensor:
    """Mixture weights pi [..., N] on the simplex: softmax(mu + sqrt(s2) z) for standard normal noise z [..., N]."""
    mean, variance = logistic_normal(log_concentration)
    if noise.shape[-1] == 1:
        # A single weight is 1 whatever the noise; its variance is 0, where the slope of the square root is infinite.
        return torch.softmax(mean, dim=-1)
    return torch.softmax(torch.addcmul(mean, variance.sqrt(), noise), dim=-1)


def sample_std(log_std: Tensor, chi_square: Tensor) -> Tensor:
    """Sigma^1/2 [..., r]: root of the diagonal of a Wishart(V, df) draw, for chi-squares with df degrees of freedom.

    The diagonal of a Wishart(I, df) matrix is r independent chi-squares with df degrees of freedom, so the root is
    exp(s_j) sqrt(w_j) for w = chi_square [..., r]. The variance is held at `VARIANCE_FLOOR` or above. Below the floor
    the gradient is 0: the exact path-wise gradient of the floored objective, and finite however small the draw. A
    dimension cannot get stuck there, since `wishart_kl` is taken before the floor and pulls its s_j back up.
    """
    return (torch.exp(wide(log_std)) * chi_square.sqrt()).clamp_min(math.sqrt(VARIANCE_FLOOR))


def chi_square(df: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw chi-squares [...] with df [...] degrees of freedom, twice a Gamma(df / 2) with rate 1.

    torch.distributions.Chi2 draws the same way, but from the default generator only.
    """
    return 2 * torch._standard_gamma(df / 2, generator=generator)


def wide(values: Tensor) -> Tensor:
    """Widen half precision to fp32; leave fp32 and fp64 as they are."""
    return values if values.dtype == torch.float64 else values.float()
