"""The closed-form gradient of the penalty against autograd through the textbook divergences."""

import pytest
import torch
from torch import Tensor

from monteclora.config import MonteCLoRAConfig
from monteclora.distributions import sample_simplex, sample_std
from monteclora.penalty import join_penalty, variational_penalty


def parts(config: MonteCLoRAConfig, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    chi = torch.randn(config.rank, config.rank, dtype=s.dtype, generator=noise)
    z = torch.randn(config.num_samples, dtype=s.dtype, generator=noise)
    return s, t, sample_std(s, chi), sample_simplex(t, z)


def leaves(config: MonteCLoRAConfig, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    s, t = torch.rand(config.rank, dtype=dtype), torch.rand(config.num_samples, dtype=dtype)
    if config.rank > 1:
        s[0] = -20  # under the floor
    return s.requires_grad_(), t.requires_grad_()


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("num_samples", [1, 2, 4, 64])
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_joined_gradient_is_that_of_the_textbook_penalty(rank: int, num_samples: int, analytic_kl: bool) -> None:
    config = MonteCLoRAConfig(
        rank=rank, num_samples=num_samples, analytic_kl=analytic_kl, kl_weight=0.7, coop_weight=0.9, dirichlet_prior=0.3
    )
    s, t = leaves(config)
    wanted = torch.autograd.grad(2.5 * variational_penalty(torch.cat(parts(config, s, t)), config), (s, t))

    got_parts = parts(config, s, t)
    a = torch.ones(3, dtype=torch.float64, requires_grad=True)
    joined = join_penalty(a, got_parts, torch.cat(got_parts).detach(), 2.5, config)
    got = torch.autograd.grad(7 * joined.sum(), (s, t, a))
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-9, atol=1e-12)
    assert torch.equal(got[2], torch.full_like(a, 7))
    assert torch.equal(joined, a)


def test_weight_zero_leaves_the_graph_alone() -> None:
    config = MonteCLoRAConfig(rank=5)
    draw = parts(config, *leaves(config))
    a = torch.ones(3, requires_grad=True)
    assert join_penalty(a, draw, torch.cat(draw).detach(), 0.0, config) is a


def test_value_is_the_sum_of_its_terms() -> None:
    # Oracles: KL_Dirichlet .501002, KL_Wishart 1.521774, KL_normal 8.454823 (N = 8 -> N = 4: half of it), sum pi^2 .25.
    config = MonteCLoRAConfig(rank=4, num_samples=4, kl_weight=1.0, coop_weight=2.0)
    s, t = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1, 1.5, 2, 2.5]).log()
    std, pi = torch.tensor([0.5, 1, 2, 4]).sqrt(), torch.full((4,), 0.25)
    draw = torch.cat((s, t, std, pi))
    expected = 0.501002 + 1.521774 + 8.454823 / 2 + 2 * 0.25
    assert variational_penalty(draw, config).item() == pytest.approx(expected, abs=1e-4)
    analytic = MonteCLoRAConfig(rank=4, num_samples=4, kl_weight=1.0, coop_weight=2.0, analytic_kl=True)
    expected = 0.501002 + 1.521774 + 33.1596 + 2 * 0.25
    assert variational_penalty(draw, analytic).item() == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(
        variational_penalty(torch.stack((draw, draw)), config), variational_penalty(draw, config).expand(2)
    )


@pytest.mark.parametrize("num_samples", [21, 32, 64])
def test_penalty_and_gradient_are_finite_in_fp32_for_large_mixtures(num_samples: int) -> None:
    config = MonteCLoRAConfig(rank=64, num_samples=num_samples, dirichlet_prior=0.1)
    draw = parts(config, *leaves(config, torch.float32))
    assert variational_penalty(torch.cat(draw), config).isfinite()
    a = torch.ones(1, requires_grad=True)
    grads = torch.autograd.grad(join_penalty(a, draw, torch.cat(draw).detach(), 1.0, config).sum(), draw[:2])
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)
