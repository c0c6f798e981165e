"""Closed forms against torch.distributions, published oracle values, Monte Carlo and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Chi2, Dirichlet, MultivariateNormal, kl_divergence
from torch.distributions.wishart import Wishart

from monteclora.distributions import (
    VARIANCE_FLOOR,
    chi_square,
    dirichlet_kl,
    expected_normal_kl,
    logistic_normal,
    normal_kl,
    sample_simplex,
    sample_std,
    wishart_kl,
)
from tests.unit.monteclora.networks import two_sample_distance

SIZES = st.integers(1, 256)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("alpha", "alpha0", "expected"),
    [
        ((2, 3), 1.0, 0.234907),
        ((1, 1), (2.0, 3.0), 0.515093),
        ((4, 4, 4), 1.0, 0.754986),
        ((1, 1.5, 2, 2.5), 1.0, 0.501002),
        ((1, 1.5, 2, 2.5), 0.1, 4.291605),
        ((1.7,) * 8, 0.1, 9.889954),
        ((1.7,) * 8, 1.0, 0.518161),
        ((1.7,) * 32, 0.1, 42.727581),
        ((1.7,) * 8, 1.7, 0.0),
    ],
)
def test_dirichlet_kl_oracle(alpha: tuple[float, ...], alpha0: float | tuple[float, ...], expected: float) -> None:
    prior = alpha0 if isinstance(alpha0, float) else torch.tensor(alpha0)
    assert dirichlet_kl(torch.tensor(alpha), prior).item() == pytest.approx(expected, rel=2e-5, abs=2e-5)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, prior=st.floats(0.05, 20), smallest=st.floats(0.05, 2), seed=st.integers(0, 10**6))
def test_dirichlet_kl_is_torchs(size: int, prior: float, smallest: float, seed: int) -> None:
    alpha = torch.empty(size, dtype=torch.float64).uniform_(smallest, 8, generator=torch.Generator().manual_seed(seed))
    expected = kl_divergence(Dirichlet(alpha), Dirichlet(torch.full_like(alpha, prior)))
    torch.testing.assert_close(dirichlet_kl(alpha, prior), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dirichlet_kl(alpha, torch.full_like(alpha, prior)), expected, rtol=1e-9, atol=1e-9)
    narrow = dirichlet_kl(alpha.float(), prior)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("size", [1, 2, 21, 32, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dirichlet_kl_and_its_gradient_are_finite_at_any_size(size: int, dtype: torch.dtype) -> None:
    alpha = torch.linspace(0.01, 12, size).to(dtype).requires_grad_()
    value = dirichlet_kl(alpha, 0.1)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert alpha.grad is not None
    assert alpha.grad.isfinite().all()


@pytest.mark.parametrize(
    ("log_std", "expected"),
    [((0.1, 0.2, 0.3, 0.4), 1.521774), ((-0.5, 0, 0.5, 1), 10.950435), ((0.5,) * 8, 22.985019), ((0.0,) * 4, 0.0)],
)
def test_wishart_kl_oracle(log_std: tuple[float, ...], expected: float) -> None:
    assert wishart_kl(torch.tensor(log_std), len(log_std)).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 12), extra=st.floats(0, 5), seed=st.integers(0, 10**6))
def test_wishart_kl_is_torchs(size: int, extra: float, seed: int) -> None:
    log_std = torch.empty(size, dtype=torch.float64).uniform_(-2, 1.5, generator=torch.Generator().manual_seed(seed))
    df = size + extra
    ours = Wishart(df, covariance_matrix=(2 * log_std).exp().diag())
    expected = kl_divergence(ours, Wishart(df, covariance_matrix=torch.eye(size, dtype=torch.float64)))
    torch.testing.assert_close(wishart_kl(log_std, df), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 1.056853), (8, 8.454823)])
def test_normal_kl_oracle(num_samples: int, expected: float) -> None:
    assert normal_kl(f64(0.5, 1, 2, 4), num_samples).item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 32), num_samples=SIZES, seed=st.integers(0, 10**6))
def test_normal_kl_is_torchs(size: int, num_samples: int, seed: int) -> None:
    variance = torch.empty(size, dtype=torch.float64).uniform_(1e-3, 9, generator=torch.Generator().manual_seed(seed))
    zero, eye = torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    one = kl_divergence(MultivariateNormal(zero, variance.diag()), MultivariateNormal(zero, eye))
    torch.testing.assert_close(normal_kl(variance, num_samples), num_samples * one)


@pytest.mark.parametrize(
    ("log_std", "num_samples", "expected"),
    [((0.1, 0.2, 0.3, 0.4), 4, 33.1596), ((0.5,) * 8, 8, 569.5037), ((0.0,) * 16, 4, 393.3188)],
)
def test_expected_normal_kl_oracle(log_std: tuple[float, ...], num_samples: int, expected: float) -> None:
    assert expected_normal_kl(torch.tensor(log_std), num_samples).item() == pytest.approx(expected, abs=1e-3)


def test_expected_normal_kl_is_the_mean_over_draws() -> None:
    log_std = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0, -0.2])
    chi2 = chi_square(torch.full((50_000, 6), 6.0), torch.Generator().manual_seed(0))
    values = normal_kl(sample_std(log_std, chi2).square(), 4)
    error = values.std() / math.sqrt(len(values))
    assert (values.mean() - expected_normal_kl(log_std, 4)).abs() < 4 * error


def test_divergences_take_degrees_of_freedom_per_dimension() -> None:
    """Layers of ranks 2 and 3 side by side, each dimension with its own layer's rank."""
    s, ranks = f64(0.3, -0.2, 0.5, 0.1, 0.4), torch.tensor([2.0, 2, 3, 3, 3], dtype=torch.float64)
    wishart = wishart_kl(s.unsqueeze(-1), ranks)
    torch.testing.assert_close(wishart[:2].sum(), wishart_kl(s[:2], 2))
    torch.testing.assert_close(wishart[2:].sum(), wishart_kl(s[2:], 3))
    normal = expected_normal_kl(s.unsqueeze(-1), 4, ranks)
    torch.testing.assert_close(normal[:2].sum(), expected_normal_kl(s[:2], 4))
    torch.testing.assert_close(normal[2:].sum(), expected_normal_kl(s[2:], 4))


def test_logistic_normal_oracle() -> None:
    log_alpha = f64(1, 1.5, 2, 2.5).log()
    mean, variance = logistic_normal(log_alpha)
    torch.testing.assert_close(mean, f64(-0.503726, -0.098261, 0.189421, 0.412565), atol=1e-6, rtol=0)
    torch.testing.assert_close(variance, f64(0.660417, 0.493750, 0.410417, 0.360417), atol=1e-6, rtol=0)
    pi = sample_simplex(log_alpha, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(pi, f64(1, 1.5, 2, 2.5) / 7)


@pytest.mark.parametrize(
    ("size", "approximation", "dirichlet"), [(4, 0.323, 0.346), (8, 0.182, 0.185), (16, 0.099, 0.096)]
)
def test_collision_probability_of_simplex_draws(size: int, approximation: float, dirichlet: float) -> None:
    torch.manual_seed(0)
    pi = sample_simplex(torch.full((size,), 1.7).log(), torch.randn(50_000, size))
    torch.testing.assert_close(pi.sum(-1), torch.ones(50_000))
    collision = pi.square().sum(-1).mean().item()
    assert collision == pytest.approx(approximation, abs=0.002)
    assert collision == pytest.approx(dirichlet, rel=0.08)


def test_simplex_draws_have_nearly_the_moments_of_the_dirichlet() -> None:
    torch.manual_seed(0)
    alpha = torch.linspace(1.5, 2, 8)
    pi = sample_simplex(alpha.log(), torch.randn(50_000, 8))
    torch.testing.assert_close(pi.mean(0), alpha / alpha.sum(), rtol=0.05, atol=0)
    torch.testing.assert_close(pi.std(0), Dirichlet(alpha).stddev, rtol=0.06, atol=0)


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_simplex_gradient_is_finite(size: int) -> None:
    log_alpha = torch.linspace(-3, 3, size).requires_grad_()
    pi = sample_simplex(log_alpha, torch.linspace(-2, 2, size))
    pi.square().sum().backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad.isfinite().all()
    if size == 1:
        assert pi.item() == 1
        assert log_alpha.grad.item() == 0


@pytest.mark.parametrize("df", [1.0, 2.0, 8.0, 256.0])
def test_chi_squares_have_their_law(df: float) -> None:
    """Against the distribution function, the regularised lower incomplete gamma function of df / 2 at x / 2."""
    count = 20_000
    draws = chi_square(torch.full((count,), df, dtype=torch.float64), torch.Generator().manual_seed(0))
    law = Chi2(torch.tensor(df, dtype=torch.float64))
    assert abs(draws.mean() - law.mean) < 4 * (law.variance / count).sqrt()
    # The fourth central moment of a chi-square is 12 df (df + 4).
    assert abs(draws.var() - law.variance) < 4 * math.sqrt((12 * df * (df + 4) - law.variance.item() ** 2) / count)
    below = torch.special.gammainc(torch.full_like(draws, df / 2), draws.sort().values / 2)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = torch.maximum((below - steps[:-1]).abs().max(), (below - steps[1:]).abs().max())
    # Kolmogorov-Smirnov: exceeded by the right law with probability 1e-4 per case.
    assert math.sqrt(count) * distance < 2.23


def test_chi_squares_follow_their_generator() -> None:
    df = torch.tensor([3.0, 5.0])
    state = torch.get_rng_state()
    one, two = (chi_square(df, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, chi_square(df, torch.Generator().manual_seed(2)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    expected = Chi2(df).sample()
    torch.manual_seed(4)
    torch.testing.assert_close(chi_square(df), expected)


def test_std_draws_are_the_roots_of_a_wishart_diagonal() -> None:
    """The same law as the diagonal of whole matrices from Bartlett's decomposition."""
    rank, draws, generator = 8, 40_000, torch.Generator().manual_seed(0)
    log_std = torch.linspace(-0.5, 0.5, rank)
    ours = sample_std(log_std, chi_square(torch.full((draws, rank), float(rank)), generator)).square()
    variance = (2 * log_std).exp()
    torch.testing.assert_close(ours.mean(0), rank * variance, rtol=0.02, atol=0)
    torch.testing.assert_close(ours.var(0), 2 * rank * variance.square(), rtol=0.06, atol=0)
    correlation = torch.corrcoef(ours.T) - torch.eye(rank)
    assert correlation.abs().max() < 0.03
    bartlett = torch.randn(10_000, rank, rank, generator=generator).tril(-1)
    bartlett += chi_square(torch.arange(rank, 0, -1).float().expand(10_000, rank), generator).sqrt().diag_embed()
    full = variance * (bartlett @ bartlett.mT).diagonal(dim1=-2, dim2=-1)
    for one, two in zip(ours.T, full.T, strict=True):
        # 2.23 is exceeded by equal laws with probability 1e-4, so 1e-3 for the eight dimensions.
        assert two_sample_distance(one, two) * math.sqrt(8_000) < 2.23


def test_std_is_floored_and_its_gradient_stays_finite() -> None:
    log_std = torch.tensor([-60.0, 0.0, -1.0]).requires_grad_()
    std = sample_std(log_std, torch.tensor([3.0, 0.0, 3.0]))
    (std.square().sum() + std.log().sum()).backward()
    torch.testing.assert_close(std[:2].detach().square(), torch.full((2,), VARIANCE_FLOOR))
    torch.testing.assert_close(std[2].detach().square(), torch.tensor(3 * math.exp(-2)))
    expected = std[2].detach().square() * 2 + 1
    torch.testing.assert_close(log_std.grad, torch.stack((torch.tensor(0.0), torch.tensor(0.0), expected)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_hides_a_value_that_is_not_finite(value: float) -> None:
    bad, one = torch.tensor([value, 0.5]), torch.tensor([1.0, 1.0])
    for result in (
        dirichlet_kl(bad, 0.5),
        wishart_kl(bad, 2),
        normal_kl(bad, 4),
        expected_normal_kl(bad, 4),
        sample_simplex(bad, one).sum() if math.isnan(value) else torch.tensor(value),
        sample_std(bad, one)[0],
        sample_std(one, bad)[0],
    ):
        assert not result.isfinite()


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    s = torch.rand(5, dtype=torch.float64, requires_grad=True)
    t = torch.rand(4, dtype=torch.float64, requires_grad=True)
    z, chi2 = torch.randn(4, dtype=torch.float64), torch.rand(5, dtype=torch.float64) * 8
    check = torch.autograd.gradcheck
    assert check(lambda t: dirichlet_kl(t.exp(), 0.3), (t,))
    assert check(lambda s: wishart_kl(s, 5), (s,))
    assert check(lambda s: normal_kl((2 * s).exp(), 4), (s,))
    assert check(lambda s: expected_normal_kl(s, 4), (s,))
    assert check(lambda t: sample_simplex(t, z), (t,))
    assert check(lambda s: sample_std(s, chi2), (s,))
