"""Optimizers whose tensors lie in slices on several ranks."""

from __future__ import annotations

import math

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("world_size", [2, 3])
def test_muon_in_slices_is_bit_for_bit_that_of_one_process(world_size: int) -> None:
    for found in run_ranks("tests.distributed.optimizer_scenarios:muon_in_slices", world_size):
        assert len(found["differing"]) == 3
        assert not any(found["differing"].values()), found["differing"]
        # Every rank has one of the five matrices at a time; it is brought there, and slices of it are brought back.
        assert set(found["exchanges"].values()) == {2 * math.ceil(5 / world_size)}
        assert found["message"].startswith("the ranks don't have every element of a once and in their order: [Slice(")
