"""Against the published values, torch.distributions and finite differences."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from monteclora.hidden_key import bidirectional_kl, one_sided_js


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 3


def test_published_values() -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert one_sided_js(p, q).item() == pytest.approx(0.510826, abs=1e-6)
    assert one_sided_js(q, p).item() == pytest.approx(0.368064, abs=1e-6)
    assert bidirectional_kl(p, q).item() == pytest.approx(0.439445, abs=1e-6)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 11)])
def test_sums_over_rows_of_the_textbook_divergence(shape: tuple[int, ...]) -> None:
    a, b = logits(0, *shape), logits(1, *shape)
    forth = kl_divergence(Categorical(logits=a), Categorical(logits=b)).sum()
    back = kl_divergence(Categorical(logits=b), Categorical(logits=a)).sum()
    torch.testing.assert_close(one_sided_js(a, b), forth)
    torch.testing.assert_close(bidirectional_kl(a, b), 0.5 * (forth + back))


def test_equal_logits_give_exactly_zero_and_no_gradient() -> None:
    for divergence in (bidirectional_kl, one_sided_js):
        a = logits(0, 4, 9, dtype=torch.float32).requires_grad_()
        value = divergence(a, a.detach().clone())
        value.backward()
        assert value.item() == 0
        assert a.grad is not None
        torch.testing.assert_close(a.grad, torch.zeros_like(a), atol=1e-7, rtol=0)


def test_gradients_by_finite_differences() -> None:
    a, b = logits(0, 2, 4).requires_grad_(), logits(1, 2, 4).requires_grad_()
    for divergence in (bidirectional_kl, one_sided_js):
        assert torch.autograd.gradcheck(divergence, (a, b))


def test_half_precision_is_widened_and_large_logits_stay_finite() -> None:
    a, b = logits(0, 3, 8, dtype=torch.bfloat16), logits(1, 3, 8, dtype=torch.bfloat16)
    for divergence in (bidirectional_kl, one_sided_js):
        assert divergence(a, b).dtype == torch.float32
        torch.testing.assert_close(divergence(a, b), divergence(a.float(), b.float()))
        assert divergence(1e4 * a.float(), 1e4 * b.float()).isfinite()
