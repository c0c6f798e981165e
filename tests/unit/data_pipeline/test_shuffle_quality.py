from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.order import finer_blocks
from data_pipeline.shuffle_quality import measure, shuffle_quality


def blocks_of(num_documents: int, size: int) -> np.ndarray:
    return np.append(np.arange(0, num_documents, size), num_documents)


def test_a_true_shuffle_and_none() -> None:
    shuffled = np.random.default_rng(0).permutation(20_000).reshape(8, -1)
    *both, distinct = measure(shuffled, 20_000, 10)
    assert distinct == 1
    for neighbours in both:
        assert neighbours.distance == pytest.approx(1 / 3, abs=0.01)
        assert neighbours.near == pytest.approx(2 * 10 / 20_000, abs=0.001)
        assert neighbours.correlation == pytest.approx(0, abs=0.04)
    lane, batch, distinct = measure(np.arange(20_000).reshape(8, -1), 20_000, 10)
    assert distinct == 1
    assert lane.distance == 1 / 20_000
    assert lane.near == 1
    assert lane.correlation == pytest.approx(1)
    assert batch.distance == 1 / 8
    assert batch.near == 0


def test_blocks_of_one_document_are_a_true_shuffle() -> None:
    *both, distinct = shuffle_quality(blocks_of(6_000, 1), num_lanes=8, seed=1, group_size=1)
    assert distinct == 1
    for neighbours in both:
        assert neighbours.distance == pytest.approx(1 / 3, abs=0.02)
        assert neighbours.correlation == pytest.approx(0, abs=0.06)
        assert neighbours.near < 0.001


@pytest.mark.parametrize(("group_size", "near"), [(1, 19 / 20), (4, 1 / 4), (8, 1 / 8)])
def test_larger_blocks_cost_what_is_stated(group_size: int, near: float) -> None:
    lane, batch, _ = shuffle_quality(blocks_of(200_000, 20), num_lanes=64, seed=1, group_size=group_size, sample=20_000)
    assert lane.near == pytest.approx(near, rel=0.08)
    # The others are far apart.
    assert lane.distance == pytest.approx((1 - lane.near) / 3, rel=0.1)
    assert lane.correlation == pytest.approx(lane.near, abs=0.08)
    assert batch.distance == pytest.approx(1 / 3, abs=0.02)
    assert batch.near < 0.01
    assert batch.correlation == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("num_blocks", [1, 50])
def test_fewer_blocks_than_lanes(num_blocks: int) -> None:
    """Lanes begin in different epochs then: all is measured, and the repetitions are told."""
    starts = blocks_of(50_000, 50_000 // num_blocks)
    lane, batch, distinct = shuffle_quality(starts, num_lanes=64, seed=1, group_size=1, sample=100_000)
    assert np.isfinite([*lane, *batch]).all()
    assert distinct < 0.9
    finer = finer_blocks(starts, num_lanes=64, num_bytes=10**7)
    *both, distinct = shuffle_quality(finer, num_lanes=64, seed=1, group_size=8, sample=100_000)
    assert distinct > 0.98
    for neighbours in both:
        assert neighbours.distance > 0.85 / 3


def test_repetitions_are_counted_in_the_order_of_consumption() -> None:
    documents = np.array([[0, 1, 5], [0, 2, 5], [3, 1, 5]])
    assert measure(documents, 4, 1).distinct == 3 / 4  # 0, 0, 3, 1
    assert measure(documents, 100, 1).distinct == 5 / 9
