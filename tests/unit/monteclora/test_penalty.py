"""The closed-form gradient of the penalty against autograd through the textbook divergences, and its value."""

import pytest
import torch
from torch import Tensor

from monteclora.config import MonteCLoRAConfig
from monteclora.distributions import VARIANCE_FLOOR, sample_simplex, sample_std
from monteclora.penalty import Draw, kl_gradient, variational_penalty

RANKS = (1, 5, 3)


def ranks(dtype: torch.dtype, of: tuple[int, ...] = RANKS) -> Tensor:
    """Each dimension's r, of layers one after the other."""
    return torch.tensor([float(rank) for rank in of for _ in range(rank)], dtype=dtype)


def drawn(num_samples: int, dtype: torch.dtype = torch.float64, of: tuple[int, ...] = RANKS) -> tuple[Draw, Tensor]:
    """A draw with leaves for s and t, some dimensions under the floor, and which of them are."""
    noise = torch.Generator().manual_seed(3)
    rank = ranks(dtype, of)
    s = torch.rand(rank.shape, dtype=dtype, generator=noise)
    s[::4] = -20
    t = torch.rand(len(of), num_samples, dtype=dtype, generator=noise)
    s, t = s.requires_grad_(), t.requires_grad_()
    std = sample_std(s, rank * (0.5 + torch.rand(rank.shape, dtype=dtype, generator=noise)))
    pi = sample_simplex(t, torch.randn(t.shape, dtype=dtype, generator=noise))
    return Draw(s, t, std, pi), (std <= VARIANCE_FLOOR**0.5).to(dtype)


@pytest.mark.parametrize("num_samples", [1, 2, 4, 64])
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_gradient_is_that_of_the_textbook_divergences(num_samples: int, analytic_kl: bool) -> None:
    config = MonteCLoRAConfig(
        num_samples=num_samples, analytic_kl=analytic_kl, kl_weight=0.7, coop_weight=0.0, dirichlet_prior=0.3
    )
    draw, is_floored = drawn(num_samples)
    rank = ranks(torch.float64)
    wanted = torch.autograd.grad(variational_penalty(draw, rank, config), draw[:2])
    found = kl_gradient(Draw(*(part.detach() for part in draw)), rank, is_floored, config)
    assert is_floored.sum() == 3
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-12, atol=1e-12)


def test_value_is_the_sum_of_its_terms() -> None:
    # Oracles: KL_Dirichlet .501002, KL_Wishart 1.521774, KL_normal 8.454823 (N = 8 -> N = 4: half of it), sum pi^2 .25.
    config = MonteCLoRAConfig(rank=4, num_samples=4, kl_weight=1.0, coop_weight=2.0)
    s, t = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([[1, 1.5, 2, 2.5]]).log()
    draw, rank = Draw(s, t, torch.tensor([0.5, 1, 2, 4]).sqrt(), torch.full((1, 4), 0.25)), torch.full((4,), 4.0)
    expected = 0.501002 + 1.521774 + 8.454823 / 2 + 2 * 0.25
    assert variational_penalty(draw, rank, config).item() == pytest.approx(expected, abs=1e-4)
    analytic = MonteCLoRAConfig(rank=4, num_samples=4, kl_weight=1.0, coop_weight=2.0, analytic_kl=True)
    assert variational_penalty(draw, rank, analytic).item() == pytest.approx(expected - 4.227412 + 33.1596, abs=1e-3)
    # The cooperative term is not multiplied by the weight of the divergences.
    coop = MonteCLoRAConfig(rank=4, num_samples=4, kl_weight=0.0, coop_weight=2.0)
    assert variational_penalty(draw, rank, coop).item() == 0.5


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_layers_taken_together_are_the_sum_of_each(analytic_kl: bool) -> None:
    config = MonteCLoRAConfig(num_samples=4, kl_weight=1.0, analytic_kl=analytic_kl)
    draw, _ = drawn(4)
    rank = ranks(torch.float64)
    parts = zip(draw.log_std.split(RANKS), draw.std.split(RANKS), rank.split(RANKS), strict=True)
    single = [
        variational_penalty(Draw(s, draw.log_concentration[i : i + 1], std, draw.pi[i : i + 1]), r, config)
        for i, (s, std, r) in enumerate(parts)
    ]
    torch.testing.assert_close(variational_penalty(draw, rank, config), torch.stack(single).sum())


@pytest.mark.parametrize("num_samples", [21, 32, 64, 256])
@pytest.mark.parametrize("prior", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_value_and_gradient_are_finite_and_right_in_fp32(num_samples: int, prior: float, analytic_kl: bool) -> None:
    config = MonteCLoRAConfig(num_samples=num_samples, dirichlet_prior=prior, kl_weight=1.0, analytic_kl=analytic_kl)
    draw, is_floored = drawn(num_samples, torch.float32, (64, 16))
    exact = Draw(*(part.detach().double() for part in draw))
    rank = ranks(torch.float32, (64, 16))
    value = variational_penalty(draw, rank, config)
    torch.testing.assert_close(value.double(), variational_penalty(exact, rank.double(), config), rtol=1e-5, atol=1e-2)
    found = kl_gradient(Draw(*(part.detach() for part in draw)), rank, is_floored, config)
    wanted = kl_gradient(exact, rank.double(), is_floored.double(), config)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-3)
        assert one.abs().max() > 0
