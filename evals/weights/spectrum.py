"""Singular values of a matrix, and the ranks and norms that they give.

The rank that counts here is that of "LoRA Learns Less and Forgets Less" (Biderman et al., arXiv 2405.09673): the
smallest k whose k largest singular values explain a share of the variance, 90 % there::

    sum_{i <= k} s_i^2  >=  share * sum_i s_i^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EQUAL_WITHIN = 1e-6
"""Relative; singular values of fp32 matrices are no more exact. A k that explains the share but for this much explains it."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The matrix B A as its factors; R = 0 is the zero matrix."""

    B: Tensor
    """[out, R]"""
    A: Tensor
    """[R, in]"""

    @classmethod
    def zeros(cls, out_features: int, in_features: int) -> LowRank:
        """The zero matrix [out, in]."""
        return cls(B=torch.zeros(out_features, 0), A=torch.zeros(0, in_features))

    @property
    def most(self) -> int:
        """No rank of it can be larger."""
        return min(*self.B.shape, *self.A.shape)

    def dense(self) -> Tensor:
        """B A [out, in], in fp32."""
        return self.B.float() @ self.A.float()

    def minus(self, other: LowRank) -> LowRank:
        """The difference, of rank R + R' at most."""
        return LowRank(
            B=torch.cat([self.B.double(), other.B.double()], dim=1),
            A=torch.cat([self.A.double(), -other.A.double()], dim=0),
        )


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What the singular values s_1 >= s_2 >= ... of a matrix say about it."""

    rank: int
    """The smallest k that explains the share; 0 of a zero matrix."""
    stable_rank: float
    """sum_i s_i^2 / s_1^2 (Rudelson and Vershynin 2007), at most the rank; 0 of a zero matrix."""
    numerical_rank: int
    """Singular values above s_1 * max(out, in) * epsilon, the error to which they are known."""
    norm: float
    """Frobenius norm, sqrt(sum_i s_i^2)."""


def singular_values(matrix: Tensor | LowRank) -> Tensor:
    """The singular values, the largest first, in fp64 on the CPU; of factors at most `most` of them.

    A dense matrix is decomposed in its precision, fp32 at least, where it lies. The eigenvalues of W^T W would be faster, but small
    singular values lose half their digits in the square. Of factors, whose values are known to more digits than those of their
    product, the triangular parts of QR decompositions in fp64 are multiplied, which never makes the product:

        B = Q_B R_B,  A^T = Q_A R_A  =>  B A = Q_B (R_B R_A^T) Q_A^T
    """
    if isinstance(matrix, LowRank):
        core = torch.linalg.qr(matrix.B.double())[1] @ torch.linalg.qr(matrix.A.double().T)[1].T
        return torch.linalg.svdvals(core).cpu()
    return torch.linalg.svdvals(matrix.to(torch.promote_types(matrix.dtype, torch.float32))).double().cpu()


def rank_for_share(values: Tensor, share: float) -> int:
    """The smallest k with sum_{i <= k} s_i^2 >= share * sum_i s_i^2, for 0 < share < 1; 0 where all are 0.

    Args:
        values: s [n], the largest first.
        share: of the sum of squares.
    """
    assert 0 < share < 1, share
    if len(values) == 0 or values[0] == 0:
        return 0
    # Relative to the largest no square is too large or too small for fp64.
    explained = (values.double() / values[0].double()).square().cumsum(0)
    return int((explained < share * (1 - EQUAL_WITHIN) * explained[-1]).sum()) + 1


def spectrum(matrix: Tensor | LowRank, share: float) -> Spectrum:
    """Decompose a matrix; see `Spectrum`."""
    values = singular_values(matrix)
    largest = float(values[0]) if len(values) else 0.0
    if largest == 0:
        return Spectrum(rank=0, stable_rank=0.0, numerical_rank=0, norm=0.0)
    if isinstance(matrix, LowRank):
        longest, epsilon = max(len(matrix.B), matrix.A.shape[1]), torch.finfo(torch.float64).eps
    else:
        longest, epsilon = max(matrix.shape), torch.finfo(torch.float32).eps
    squares = float((values / largest).square().sum())
    return Spectrum(
        rank=rank_for_share(values, share),
        stable_rank=squares,
        numerical_rank=int((values > largest * longest * epsilon).sum()),
        norm=largest * math.sqrt(squares),
    )
