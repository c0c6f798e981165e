from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.order import epoch_permutation, lane_documents, place_of, source_seed

sizes = st.integers(1, 200)
lane_counts = st.integers(1, 40)
seeds = st.integers(0, 2**128 - 1)
epochs = st.integers(0, 1000)


@given(sizes, seeds, epochs, lane_counts)
def test_every_document_exactly_once_per_epoch(size: int, seed: int, epoch: int, num_lanes: int) -> None:
    slices = [lane_documents(size, seed, epoch, lane, num_lanes) for lane in range(num_lanes)]
    assert sorted(np.concatenate(slices).tolist()) == list(range(size))
    lengths = [len(one) for one in slices]
    assert max(lengths) - min(lengths) <= 1


@given(sizes, seeds, lane_counts, st.integers(0, 6))
def test_places_walk_the_lanes_slices_epoch_by_epoch(size: int, seed: int, num_lanes: int, num_epochs: int) -> None:
    for lane in range(num_lanes):
        expected = [
            (epoch, int(document))
            for epoch in range(num_epochs)
            for document in lane_documents(size, seed, epoch, lane, num_lanes)
        ]
        places = [place_of(count, lane, num_lanes, size) for count in range(len(expected) + 1)]
        walked = [(place.epoch, int(epoch_permutation(size, seed, place.epoch)[place.position])) for place in places]
        assert walked[:-1] == expected
        assert walked[-1][0] >= num_epochs


@given(st.integers(1, 10), seeds, st.integers(1, 60))
def test_a_lane_gets_documents_even_where_there_are_fewer_than_lanes(size: int, seed: int, num_lanes: int) -> None:
    enough_epochs = -(-num_lanes // size)
    for lane in range(num_lanes):
        assert sum(len(lane_documents(size, seed, epoch, lane, num_lanes)) for epoch in range(enough_epochs)) >= 1


def test_order_is_fixed_forever() -> None:
    # A change here would silently give resumed runs other data.
    assert epoch_permutation(8, source_seed(0, "code"), 0).tolist() == [4, 2, 6, 5, 0, 7, 1, 3]
    assert epoch_permutation(8, source_seed(0, "code"), 1).tolist() == [5, 6, 7, 3, 4, 0, 2, 1]


def test_seed_source_and_epoch_each_change_the_order() -> None:
    orders = {
        epoch_permutation(50, source_seed(seed, name), epoch).tobytes()
        for seed in (0, 1)
        for name in ("code", "prose")
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_permutations_are_uniform() -> None:
    # Of 6,000 permutations of 3, each of the 6 is expected 1,000 times, with a standard deviation of 29.
    counts: dict[bytes, int] = {}
    for epoch in range(6000):
        key = epoch_permutation(3, 7, epoch).tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())
