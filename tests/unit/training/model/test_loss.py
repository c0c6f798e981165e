from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.model.loss import IGNORE, summed_cross_entropy


def some_rows(seed: int, rows: int = 2, seq_len: int = 5, vocab: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, seq_len, vocab, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, vocab, (rows, seq_len), generator=generator)
    labels[torch.rand(rows, seq_len, generator=generator) < 0.4] = IGNORE
    return logits, labels


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Position by position in fp64: -log of the label's share of exp(logits)."""
    total = torch.zeros((), dtype=torch.float64)
    for row, targets in zip(logits, labels, strict=True):
        for scores, target in zip(row, targets.tolist(), strict=True):
            if target != IGNORE:
                total = total + torch.logsumexp(scores, 0) - scores[target]
    return total


@given(seed=st.integers(0, 10_000))
def test_value_and_gradient_are_the_full_computation_in_fp64(seed: int) -> None:
    logits, labels = some_rows(seed)
    expected_at, found_at = (logits.clone().requires_grad_() for _ in range(2))
    expected = by_hand(expected_at, labels)
    found = summed_cross_entropy(found_at, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    if expected.requires_grad:
        expected.backward()
    found.backward()
    gradient = expected_at.grad if expected_at.grad is not None else torch.zeros_like(logits)
    torch.testing.assert_close(found_at.grad, gradient, rtol=1e-5, atol=1e-6)
    assert found_at.grad is not None
    assert (found_at.grad[labels == IGNORE] == 0).all()


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    labels = torch.tensor([[3, IGNORE, 0, IGNORE]])
    assert summed_cross_entropy(torch.zeros(1, 4, 32), labels).item() == pytest.approx(2 * math.log(32))


def test_no_targets_cost_nothing_and_leave_the_graph_whole() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss = summed_cross_entropy(logits, torch.full((1, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 3, 4))  # type: ignore[arg-type]


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits, labels = some_rows(3, rows=8, seq_len=64)
    rounded = logits.bfloat16()
    found = summed_cross_entropy(rounded, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(rounded.double(), labels).item(), rel=1e-5)


def test_a_sum_does_not_know_how_rows_are_grouped() -> None:
    logits, labels = some_rows(5, rows=6)
    whole = summed_cross_entropy(logits, labels)
    parts = sum(summed_cross_entropy(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4))
    torch.testing.assert_close(whole, parts)
