from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.shuffle_quality import measure, shuffle_quality


def blocks_of(num_documents: int, size: int) -> np.ndarray:
    return np.append(np.arange(0, num_documents, size), num_documents)


def test_a_true_shuffle_and_none() -> None:
    shuffled = np.random.default_rng(0).permutation(20_000).reshape(8, -1)
    for neighbours in measure(shuffled, 20_000, 10):
        assert neighbours.distance == pytest.approx(1 / 3, abs=0.01)
        assert neighbours.near == pytest.approx(2 * 10 / 20_000, abs=0.001)
        assert neighbours.correlation == pytest.approx(0, abs=0.04)
    lane, batch = measure(np.arange(20_000).reshape(8, -1), 20_000, 10)
    assert lane.distance == 1 / 20_000
    assert lane.near == 1
    assert lane.correlation == pytest.approx(1)
    assert batch.distance == 1 / 8
    assert batch.near == 0


def test_blocks_of_one_document_are_a_true_shuffle() -> None:
    for neighbours in shuffle_quality(blocks_of(6_000, 1), num_lanes=8, seed=1, group_size=1):
        assert neighbours.distance == pytest.approx(1 / 3, abs=0.02)
        assert neighbours.correlation == pytest.approx(0, abs=0.06)
        assert neighbours.near < 0.001


@pytest.mark.parametrize(("group_size", "near"), [(1, 19 / 20), (4, 1 / 4), (8, 1 / 8)])
def test_larger_blocks_cost_what_is_stated(group_size: int, near: float) -> None:
    lane, batch = shuffle_quality(blocks_of(200_000, 20), num_lanes=64, seed=1, group_size=group_size, sample=20_000)
    assert lane.near == pytest.approx(near, rel=0.08)
    # The others are far apart.
    assert lane.distance == pytest.approx((1 - lane.near) / 3, rel=0.1)
    assert lane.correlation == pytest.approx(lane.near, abs=0.08)
    assert batch.distance == pytest.approx(1 / 3, abs=0.02)
    assert batch.near < 0.01
    assert batch.correlation == pytest.approx(0, abs=0.1)
