"""What weights are to those who compare them: named tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from evals.weights.spectrum import LowRank


class Weights(Protocol):
    """The weights of a model. Names are plain ones; see `evals.weights.names`."""

    @property
    def label(self) -> str:
        """What people call them: a folder, or a run and its step."""

    @property
    def state(self) -> str:
        """Another text when what is stored has changed."""

    @property
    def base(self) -> str:
        """The weights to which updates are added. Weights with the same differ by their updates, where both have one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, a tied one under one of its names."""

    @property
    def num_tied(self) -> int:
        """Names that are not in `shapes` because they are second names of tied weights."""

    @property
    def epsilon(self) -> float:
        """Spacing of the numbers around 1 in the coarsest type in which weights are stored: 2^-7 for bf16."""

    def read(self, name: str) -> Tensor:
        """One tensor, whole, in fp32 on the CPU."""

    def update(self, name: str) -> LowRank | None:
        """What was added to the base's matrix, of rank 0 where nothing was; None where it is not known as factors."""
