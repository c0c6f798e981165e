"""Ranks of matrices whose spectra are known."""

from __future__ import annotations

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from evals.weights.spectrum import LowRank, rank_for_share, singular_values, spectrum


def with_spectrum(values: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix [rows, columns] with these singular values, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64, generator=generator))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(
    ("diagonal", "share", "wanted"),
    [
        ((3, 4), 0.9, 2),  # 16 of 25 are 64 %
        ((3, 4), 0.64, 1),
        ((3, 4), 0.65, 2),
        ((10, 1, 1), 0.9, 1),  # 98 %
        ((10, 1, 1), 0.985, 2),
        ((1,) * 10, 0.9, 9),
        ((1e-30, 1e-30), 0.4, 1),
        ((1e18, 1e18), 0.9, 2),
        ((0, 0, 0), 0.9, 0),
    ],
)
def test_diagonal_matrices(diagonal: tuple[float, ...], share: float, wanted: int) -> None:
    assert spectrum(torch.diag(torch.tensor(diagonal, dtype=torch.float32)), share).rank == wanted


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 99))
def test_the_rank_is_the_smallest_that_explains_the_share(values: list[int], percent: int) -> None:
    values = sorted(values, reverse=True)
    squares = [Fraction(value * value) for value in values]
    share = Fraction(percent, 100)
    wanted = next(k for k in range(len(values) + 1) if sum(squares[:k]) >= share * sum(squares))
    assert rank_for_share(torch.tensor(values, dtype=torch.float64), float(share)) == wanted


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    st.sampled_from([(6, 6), (40, 7), (7, 40)]),
    st.floats(0.05, 0.95),
)
def test_all_numbers_are_those_of_the_spectrum(values: list[float], sides: tuple[int, int], share: float) -> None:
    found = spectrum(with_spectrum(values, *sides).float(), share)
    squares = np.sort(np.square(values))[::-1]
    assert found.norm == pytest.approx(np.sqrt(squares.sum()), rel=1e-5)
    assert found.stable_rank == pytest.approx(squares.sum() / squares[0], rel=1e-5)
    assert found.numerical_rank == len(values)
    explained = np.cumsum(squares) / squares.sum()
    if abs(explained - share).min() > 1e-4:
        assert found.rank == int(np.searchsorted(explained, share) + 1)


def test_small_singular_values_are_not_lost_in_a_square() -> None:
    values = [1.0, 1e-2, 1e-4, 1e-5]
    found = singular_values(with_spectrum(values, 300, 200).float())
    assert found[:4].tolist() == pytest.approx(values, rel=5e-2)
    # Eigenvalues of W^T W in the same precision have only noise there.
    matrix = with_spectrum(values, 300, 200).float()
    squared = torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=0).sqrt().flip(0)
    assert squared[3].item() != pytest.approx(values[3], rel=0.5)


def test_gaussian_matrices_are_of_nearly_full_rank() -> None:
    """The study's control, A + c B; the Marchenko-Pastur law gives the share of a square Gaussian's largest values."""
    side, generator = 500, torch.Generator().manual_seed(3)
    A, B = (torch.randn(side, side, generator=generator) for _ in range(2))
    # Squares x in [0, 4] of density sqrt(4 / x - 1) / (2 pi).
    x = np.linspace(0, 4, 2_000_001)[1:]
    density = np.sqrt(np.maximum(4 / x - 1, 0)) / (2 * np.pi)
    from_above = np.cumsum((density * x)[::-1])
    cut = x[::-1][np.searchsorted(from_above, 0.9 * from_above[-1])]
    wanted = side * density[x >= cut].sum() / density.sum()
    for change in (A, 0.01 * B, A + 0.1 * B):
        assert spectrum(change, 0.9).rank == pytest.approx(wanted, abs=0.02 * side)


class TestLowRank:
    def test_its_spectrum_is_that_of_the_product(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for out, rank, in_ in ((30, 4, 50), (6, 9, 50), (50, 1, 3), (5, 7, 4)):
            factors = LowRank(
                B=torch.randn(out, rank, generator=generator), A=torch.randn(rank, in_, generator=generator)
            )
            wanted = np.linalg.svd((factors.B.double() @ factors.A.double()).numpy(), compute_uv=False)
            found = singular_values(factors)
            most = min(out, rank, in_)
            assert factors.most == most
            np.testing.assert_allclose(found[:most], wanted[:most], rtol=1e-9)
            assert spectrum(factors, 0.9).numerical_rank == most

    def test_far_below_the_precision_of_the_product(self) -> None:
        values = torch.tensor([1.0, 1e-9])
        factors = LowRank(B=torch.eye(20, 2) * values, A=torch.eye(2, 30))
        assert singular_values(factors).tolist() == pytest.approx([1.0, 1e-9], rel=1e-6)
        assert spectrum(factors, 0.9).numerical_rank == 2

    def test_differences(self) -> None:
        generator = torch.Generator().manual_seed(0)
        one, other = (
            LowRank(B=torch.randn(8, rank, generator=generator), A=torch.randn(rank, 9, generator=generator))
            for rank in (2, 3)
        )
        difference = one.minus(other)
        assert difference.most == 5
        torch.testing.assert_close(difference.dense(), one.dense() - other.dense())
        same = spectrum(one.minus(one), 0.9)
        assert same.norm < 1e-12 * spectrum(one, 0.9).norm

    def test_nothing(self) -> None:
        nothing = LowRank.zeros(4, 6)
        assert (nothing.most, nothing.dense().shape) == (0, (4, 6))
        assert not nothing.dense().any()
        found = spectrum(nothing, 0.9)
        assert (found.rank, found.stable_rank, found.numerical_rank, found.norm) == (0, 0.0, 0, 0.0)
        assert spectrum(LowRank(B=torch.zeros(4, 2), A=torch.ones(2, 6)), 0.9) == found
        assert spectrum(torch.zeros(4, 6), 0.9) == found
