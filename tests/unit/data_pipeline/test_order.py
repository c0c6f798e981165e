from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import BLOCKS_PER_LANE, Permutation, SourceOrder, finer_blocks, group_size, source_seed

sizes = st.integers(1, 3000)
keys = st.lists(st.integers(0, 2**128 - 1), max_size=3).map(tuple)
block_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=40)
lane_counts = st.integers(1, 30)
seeds = st.integers(0, 2**128 - 1)


@settings(max_examples=50)
@given(sizes, keys)
def test_a_permutation_is_one(size: int, key: tuple[int, ...]) -> None:
    permutation = Permutation(size, key)
    order = permutation[np.arange(size)]
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(size))
    assert len(permutation) == size


@settings(max_examples=50)
@given(st.integers(1, 2**62 - 1), keys, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_single_places_agree_with_arrays(size: int, key: tuple[int, ...], places: list[int]) -> None:
    places = [place % size for place in places]
    permutation = Permutation(size, key)
    singly = [permutation[place] for place in places]
    assert permutation[np.array(places)].tolist() == singly
    assert all(0 <= one < size for one in singly)
    assert len(set(singly)) == len(set(places))


def test_permutations_are_fixed_forever() -> None:
    # A change here would silently give resumed runs other data.
    seed = source_seed(0, "code")
    assert seed == 156433013694376089109906596061374909041
    assert [Permutation(8, (seed, epoch))[np.arange(8)].tolist() for epoch in (0, 1)] == [
        [5, 0, 7, 1, 4, 2, 3, 6],
        [3, 6, 5, 7, 1, 0, 2, 4],
    ]
    assert Permutation(10**12, (seed,))[123456789] == 176002244836


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_are_equally_likely(size: int) -> None:
    count = math.factorial(size)
    draws = 40 * count
    places = np.arange(size)
    seen = Counter(tuple(Permutation(size, (7, key))[places].tolist()) for key in range(draws))
    assert len(seen) == count
    chi_square = sum((seen[p] - 40) ** 2 / 40 for p in itertools.permutations(range(size)))
    # Of a true shuffle its mean is count - 1, and its standard deviation sqrt(2 (count - 1)).
    assert chi_square < count - 1 + 5 * math.sqrt(2 * (count - 1))


def test_a_large_permutation_looks_random() -> None:
    size = 100_003
    order = Permutation(size, (1, 2))[np.arange(size)]
    # Means over independent pairs have standard deviations of 1 / sqrt(size), that is 0.003, and less.
    assert abs(np.abs(np.diff(order)).mean() / size - 1 / 3) < 0.01
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.02
    assert np.count_nonzero(order == np.arange(size)) < 10  # a Poisson number with mean 1
    other = Permutation(size, (1, 3))[np.arange(size)]
    assert abs(np.corrcoef(order, other)[0, 1]) < 0.02


@pytest.mark.parametrize("size", [0, -1, 2**62])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"a permutation of {size} things"):
        Permutation(size, ())


def test_places_outside_are_refused() -> None:
    permutation = Permutation(5, (1,))
    for place in (-1, 5):
        with pytest.raises(IndexError, match=f"place {place} of a permutation of 5"):
            permutation[place]
        with pytest.raises(IndexError, match="of a permutation of 5"):
            permutation[np.array([0, place])]
    assert permutation[np.empty(0, np.int64)].tolist() == []
    assert list(permutation) == permutation[np.arange(5)].tolist()


def order_of(block_sizes: list[int], seed: int, num_lanes: int, group_size: int = 1) -> SourceOrder:
    return SourceOrder(np.cumsum([0, *block_sizes]), num_lanes=num_lanes, seed=seed, group_size=group_size)


@settings(max_examples=50)
@given(block_sizes, seeds, lane_counts, st.integers(0, 1000), st.integers(1, 5))
def test_every_document_exactly_once_per_epoch(
    block_sizes: list[int], seed: int, num_lanes: int, epoch: int, group_size: int
) -> None:
    order = order_of(block_sizes, seed, num_lanes, group_size)
    documents: list[int] = []
    counts = []
    for lane in range(num_lanes):
        count, after = order.first_of_epoch(epoch, lane), order.first_of_epoch(epoch + 1, lane)
        counts.append(after - count)
        assert count == 0 or order.group(count - 1, lane).epoch < epoch
        while count < after:
            group = order.group(count, lane)
            assert group.epoch == epoch
            assert all(order.group(each, lane)[:3] == group[:3] for each in range(count, group.stop))
            assert len(group.blocks) == group.stop - count == min(group_size, after - count)
            documents += [group.document(place) for place in range(len(group.order))]
            count = group.stop
        assert order.group(after, lane).epoch > epoch
    assert sorted(documents) == list(range(sum(block_sizes)))
    assert max(counts) - min(counts) <= 1


@given(block_sizes, seeds, st.integers(1, 5))
def test_documents_of_a_group_are_in_its_blocks(block_sizes: list[int], seed: int, group_size: int) -> None:
    order = order_of(block_sizes, seed, 2, group_size)
    group = order.group(3, 1)
    starts = np.cumsum([0, *block_sizes]).tolist()
    assert all(block.start in starts and block.stop in starts for block in group.blocks)
    numbers = [group.document(place) for place in range(len(group.order))]
    assert sorted(numbers) == sorted(itertools.chain.from_iterable(group.blocks))
    assert group.documents(0, len(numbers)) == numbers
    assert group.documents(len(numbers) // 2, len(numbers)) == numbers[len(numbers) // 2 :]


def test_the_lanes_together_walk_the_epochs_permutation() -> None:
    for size in (1, 3):
        order = order_of([1] * 10, 3, 4, size)
        dealt: dict[int, list[int]] = {}
        for lane in range(4):
            count = 0
            while count < 5:
                group = order.group(count, lane)
                for block in group.blocks:
                    dealt[count * 4 + lane] = list(block)
                    count += 1
        walked = [dealt[place][0] for place in range(20)]
        assert walked == [*Permutation(10, (3, 0)), *Permutation(10, (3, 1))]


def test_a_group_is_shuffled_anew_in_every_epoch() -> None:
    order = order_of([6], 3, 1)
    insides = [tuple(order.group(count, 0).order) for count in range(12)]
    assert len(set(insides)) == 12


def test_neighbours_of_a_group_are_of_different_blocks() -> None:
    order = order_of([50] * 32, 3, 1, 8)
    which = [order.group(0, 0).document(place) // 50 for place in range(400)]
    same = sum(a == b for a, b in itertools.pairwise(which))
    assert same == pytest.approx(399 / 8, abs=25)


@given(block_sizes, st.integers(1, 3), st.sampled_from([1, 10**9]))
def test_finer_blocks(block_sizes: list[int], num_lanes: int, num_bytes: int) -> None:
    starts = np.cumsum([0, *block_sizes])
    finer = finer_blocks(starts, num_lanes=num_lanes, num_bytes=num_bytes)
    assert finer.dtype == np.int64
    assert set(starts.tolist()) <= set(finer.tolist())
    wanted = max(BLOCKS_PER_LANE * num_lanes, num_bytes / (4 << 20))
    assert len(finer) - 1 >= min(wanted, sum(block_sizes))
    sizes = np.diff(finer)
    assert (sizes >= 1).all()
    if len(starts) - 1 >= wanted:
        assert finer.tolist() == starts.tolist()
    else:
        # Evenly: none has more than twice the documents of another that was divided too.
        parts = [
            size
            for size, whole in zip(sizes, np.repeat(block_sizes, np.histogram(finer[:-1], starts)[0]), strict=True)
            if size < whole
        ]
        assert not parts or max(sizes) <= 2 * min(parts)


def test_finer_blocks_of_one_and_of_many() -> None:
    one = finer_blocks(np.array([0, 50_000]), num_lanes=64, num_bytes=8 * 10**6)
    sizes = np.diff(one)
    assert set(sizes.tolist()) == {23, 24}
    assert 2048 <= len(sizes) < 2200
    assert np.diff(finer_blocks(np.array([0, 30, 50]), num_lanes=64, num_bytes=1)).tolist() == [1] * 50
    enough = np.arange(0, 20_481, 10)
    assert finer_blocks(enough, num_lanes=64, num_bytes=10**9) is enough
    # 2048 blocks of 16 MB are divided by four.
    assert len(finer_blocks(enough, num_lanes=64, num_bytes=2048 << 24)) - 1 == 4 * 2048


def test_groups_are_as_large_as_memory_is_for() -> None:
    assert group_size(1000, 1000, 10**12) == 1  # single documents
    assert group_size(10**6, 65_536, 10**9) == 8
    assert group_size(10**7, 65_536, 40 * 10**9) == 6  # of 610 kB each
    assert group_size(10**6, 100, 10**12) == 1


def test_blocks_and_groups_decide_the_fingerprint() -> None:
    orders = [order_of([2, 2], 1, 1), order_of([2, 2], 1, 1, 2), order_of([1, 3], 1, 1), order_of([2, 2], 9, 7)]
    assert len({order.fingerprint for order in orders}) == 3
    assert orders[0].fingerprint == orders[3].fingerprint


def test_seed_source_and_epoch_each_change_the_order() -> None:
    orders = {
        Permutation(50, (source_seed(seed, name), epoch))[np.arange(50)].tobytes()
        for seed in (0, 1)
        for name in ("code", "prose")
        for epoch in (0, 1)
    }
    assert len(orders) == 8
