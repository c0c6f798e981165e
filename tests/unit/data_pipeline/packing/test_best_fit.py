"""Best-fit packing: against a naive packer, and for what the endless sequence of rows promises."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.packing import best_fit
from data_pipeline.packing.best_fit import ExampleRef, PackedOrder, best_fit_decreasing
from data_pipeline.sources.errors import DataError

Lengths = NDArray[np.int32]
SEQ_LEN = 64

# Small windows, so that a test sees many.
sets = st.lists(st.just(0) | st.integers(8, SEQ_LEN), min_size=1, max_size=60).filter(any)
mixtures = st.lists(st.tuples(sets, st.sampled_from([0.1, 0.3, 1.0, 2.5])), min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 40 rows or 60 examples at most, that end with an epoch from 20 rows on."""
    monkeypatch.setattr(best_fit, "WINDOW_ROWS", 40)
    monkeypatch.setattr(best_fit, "WINDOW_EXAMPLES", 60)
    monkeypatch.setattr(best_fit, "MIN_ROWS", 20)


def array(lengths: list[int]) -> Lengths:
    return np.array(lengths, dtype=np.int32)


def make_order(mixture: list[tuple[list[int], float]], seed: int = 0, seq_len: int = SEQ_LEN) -> PackedOrder:
    names = [f"source {i}" for i in range(len(mixture))]
    lengths = [array(each) for each, _ in mixture]
    return PackedOrder(lengths, names, [weight for _, weight in mixture], seq_len=seq_len, seed=seed)


def naive_best_fit_decreasing(lengths: list[int], capacity: int, first: int) -> list[list[int]]:
    """By the definition, looking at every bin for every thing."""
    bins: list[list[int]] = []
    changed: list[int] = []
    order = sorted(range(len(lengths)), key=lambda i: (i >= first, -lengths[i], i))
    for time, thing in enumerate(order):
        rooms = [capacity - sum(lengths[i] for i in bin_) for bin_ in bins]
        fitting = [b for b, room in enumerate(rooms) if room >= lengths[thing]]
        if fitting:
            chosen = min(fitting, key=lambda b: (rooms[b], -changed[b]))
        else:
            chosen = len(bins)
            bins.append([])
            changed.append(0)
        bins[chosen].append(thing)
        changed[chosen] = time
    return bins


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))), st.data())
def test_equals_the_naive_packer(packing: tuple[int, list[int]], data: st.DataObject) -> None:
    capacity, lengths = packing
    first = data.draw(st.integers(0, len(lengths)))
    assert best_fit_decreasing(array(lengths), capacity, first=first) == naive_best_fit_decreasing(
        lengths, capacity, first
    )


def test_a_packing_by_hand() -> None:
    # 7 and 5 open bins; 4 fits best beside 5, 3 beside 7, 2 opens a bin.
    assert best_fit_decreasing(array([4, 5, 3, 7, 2]), 10) == [[3, 2], [1, 0], [4]]


def test_things_that_fit_in_no_bin_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="fits in no bin"):
        best_fit_decreasing(array([11]), 10)


@settings(max_examples=50, deadline=None)
@given(mixtures, st.integers(0, 9))
def test_rows_hold_whole_examples_and_every_one_once_per_epoch(
    mixture: list[tuple[list[int], float]], seed: int
) -> None:
    order = make_order(mixture, seed)
    seen: Counter[ExampleRef] = Counter()
    for number in range(100):
        row = order.row(number)
        assert row
        assert sum(mixture[ref.source][0][ref.number] for ref in row) <= SEQ_LEN
        assert all(mixture[ref.source][0][ref.number] > 0 for ref in row)
        seen.update(row)
    assert max(seen.values()) == 1
    # What has not come yet is carried or in a later row of the last window: all else is there.
    ahead = order._starts[-1]
    for source, (lengths, _) in enumerate(mixture):
        taken_epochs = ahead.places[source] // len(lengths)
        carried = {(of, place) for of, place in ahead.carried}
        in_window = {ref for row in order._windows[-1] for ref in row if ref.source == source}
        late = {place // len(lengths) for of, place in carried if of == source}
        late |= {taken.place // len(lengths) for taken in in_window}
        for epoch in range(min([taken_epochs, *late])):
            missing = {i for i, length in enumerate(lengths) if length} - {
                ref.number for ref in seen if (ref.source, ref.epoch) == (source, epoch)
            }
            assert not missing


@settings(max_examples=20, deadline=None)
@given(mixtures, st.integers(0, 9), st.lists(st.integers(0, 60), min_size=1, max_size=4))
def test_any_anchor_gives_the_same_rows(mixture: list[tuple[list[int], float]], seed: int, runs: list[int]) -> None:
    expected = make_order(mixture, seed)
    order, at = make_order(mixture, seed), 0
    for rows in runs:
        assert [order.row(at + i) for i in range(rows)] == [expected.row(at + i) for i in range(rows)]
        at += rows
        anchor = json.loads(json.dumps(order.anchor(at)))
        assert anchor == expected.anchor(at)
        assert anchor["first_row"] <= at
        order = make_order(mixture, seed)
        order.load_anchor(anchor, at)
        assert order.anchor(at) == anchor
    assert [order.row(at + i) for i in (70, 0, 3, 0)] == [expected.row(at + i) for i in (70, 0, 3, 0)]


@settings(max_examples=25, deadline=None)
@given(mixtures)
def test_sources_are_mixed_by_tokens(mixture: list[tuple[list[int], float]]) -> None:
    order = make_order(mixture)
    order.row(120)
    # At a window's start the counters tell all that was taken: no source is ahead of another by more than one example.
    start = order._starts[-1]
    shares = [Fraction(tokens) / Fraction(str(w)) for tokens, (_, w) in zip(start.tokens, mixture, strict=True)]
    ahead = [Fraction(max(lengths)) / Fraction(str(weight)) for lengths, weight in mixture]
    assert max(shares) - min(shares) <= max(ahead)


def test_proportions_in_rows_of_very_different_sources() -> None:
    mixture = [(list(range(1, 60)) * 20, 1.0), ([3, 9, 0, 14], 0.25)]
    order = make_order(mixture)
    tokens = [0, 0]
    for number in range(3000):
        for ref in order.row(number):
            tokens[ref.source] += mixture[ref.source][0][ref.number]
    assert tokens[1] / sum(tokens) == pytest.approx(0.2, abs=0.002)


def test_epochs_follow_each_other() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500).tolist()
    order = make_order([(lengths, 1.0)])
    epoch_rows = sum(lengths) / SEQ_LEN
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number in range(int(6 * epoch_rows)):
        for ref in order.row(number):
            first.setdefault(ref.epoch, number)
            last[ref.epoch] = number
    for epoch in range(4):
        # Only carried examples, or those of a last window too small to end with its epoch, come later.
        assert last[epoch] - first[epoch + 1] <= 2 * best_fit.MIN_ROWS + 40
        assert last[epoch] < first[epoch + 2]


def test_a_carried_example_comes_in_the_next_window() -> None:
    lengths = np.random.default_rng(1).integers(1, 64, 2000).tolist()
    order = make_order([(lengths, 1.0)])
    order.row(800)
    carried_at_all = 0
    for window, start in zip(order._windows, order._starts[:-1], strict=True):
        there = {(taken.source, taken.place) for row in window for taken in row}
        assert set(start.carried) <= there
        carried_at_all += len(start.carried)
    assert carried_at_all > 0


def test_seeds_names_and_epochs_give_other_orders() -> None:
    lengths = array(np.random.default_rng(0).integers(1, 30, 300).tolist())

    def refs(name: str, seed: int, rows: range = range(5)) -> list[Any]:
        order = PackedOrder([lengths], [name], [1.0], seq_len=SEQ_LEN, seed=seed)
        return [[ref.number for ref in order.row(number)] for number in rows]

    assert refs("a", 0) == refs("a", 0)
    assert len({str(refs("a", 0)), str(refs("a", 1)), str(refs("b", 0))}) == 3


def test_long_examples_do_not_come_first() -> None:
    lengths = np.random.default_rng(2).integers(1, 64, 4000)
    order = make_order([(lengths.tolist(), 1.0)])
    order.row(39)
    counts = [len(row) for row in order._windows[0]]
    half = len(counts) // 2
    assert abs(np.mean(counts[:half]) - np.mean(counts[half:])) < 1.0


def test_released_rows_are_gone_and_others_are_not() -> None:
    order, expected = make_order([([5, 9, 33, 60], 1.0)]), make_order([([5, 9, 33, 60], 1.0)])
    rows = [expected.row(number) for number in range(200)]
    order.row(120)
    order.release(100)
    assert len(order._windows) <= 3
    assert order.anchor(100) == expected.anchor(100)
    assert [order.row(number) for number in range(100, 200)] == rows[100:]
    with pytest.raises(IndexError, match="row 0 is before row"):
        order.row(0)


def test_releasing_makes_no_window_and_can_be_repeated() -> None:
    order, expected = make_order([([5, 9, 33, 60], 1.0)]), make_order([([5, 9, 33, 60], 1.0)])
    order.release(500)
    assert not order._windows
    assert order.row(500) == expected.row(500)
    order.release(500)
    order.release(3)
    assert len(order._windows) == 1
    assert order.row(500) == expected.row(500)


def test_an_anchor_makes_no_window_when_it_is_loaded() -> None:
    expected = make_order([([5, 9, 33, 60], 1.0)])
    anchor = expected.anchor(150)
    order = make_order([([5, 9, 33, 60], 1.0)])
    order.load_anchor(anchor, 150)
    assert order.anchor(anchor["first_row"]) == anchor
    assert not order._windows
    order.row(150)
    assert len(order._windows) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"first_row": None}, "other values than integers"),
        ({"first_row": -1}, "other values than integers"),
        ({"first_row": True}, "other values than integers"),
        ({"first_row": 151}, "starts at row 151, behind row 150, which is next"),
        ({"places": None}, "lacks a part or has one of another kind"),
        ({"places": 3}, "lacks a part or has one of another kind"),
        ({"places": ["7"]}, "other values than integers"),
        ({"places": [1 << 62]}, "other values than integers"),
        ({"places": [9, 9]}, "is not of 1 sources"),
        ({"tokens": []}, "is not of 1 sources"),
        ({"tokens": [1.5]}, "other values than integers"),
        ({"carried": [3]}, "lacks a part or has one of another kind"),
        ({"carried": [[], []]}, "is not of 1 sources"),
        ({"carried": [[0]]}, "carries examples that there are not"),
        ({"carried": [[1, 1]]}, "carries examples that there are not"),
        ({"places": [4], "carried": [[5]]}, "carries examples that there are not"),
    ],
)
def test_a_damaged_anchor_is_refused_and_changes_nothing(changes: dict[str, Any], reason: str) -> None:
    order, expected = make_order([([5, 9, 33, 60], 1.0)]), make_order([([5, 9, 33, 60], 1.0)])
    with pytest.raises(ValueError, match=reason):
        order.load_anchor(expected.anchor(150) | changes, 150)
    assert [order.row(number) for number in range(50)] == [expected.row(number) for number in range(50)]


@pytest.mark.parametrize("anchor", [None, 3, "x", [], {}, {"first_row": 0}])
def test_what_is_no_anchor(anchor: Any) -> None:
    with pytest.raises(ValueError, match="lacks a part or has one of another kind"):
        make_order([([5], 1.0)]).load_anchor(anchor, 0)


def test_a_carried_example_without_tokens_is_damage() -> None:
    order = make_order([([0, 5], 1.0)])
    anchors = [{"first_row": 0, "places": [2], "tokens": [5], "carried": [[back]]} for back in (1, 2)]
    refused = 0
    for anchor in anchors:
        try:
            order.load_anchor(anchor, 0)
        except ValueError:
            refused += 1
    assert refused == 1


def test_a_source_without_examples_is_an_error() -> None:
    with pytest.raises(DataError, match=r"the source source 1 has no example .* all 3 are empty, skipped or dropped"):
        make_order([([3], 1.0), ([0, 0, 0], 1.0)])
    with pytest.raises(DataError, match="all 0 are empty"):
        make_order([([], 1.0)])


def test_an_example_longer_than_a_row_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="an example of 65 tokens, for rows of 64"):
        make_order([([65], 1.0)])


def test_fill_and_anchor_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    lengths = [np.clip(rng.lognormal(5.2, 0.5, 8000), 10, 4096).astype(np.int32) for _ in range(2)]
    order = PackedOrder(lengths, ["a", "b"], [0.7, 0.3], seq_len=4096, seed=0)
    tokens = sum(int(lengths[ref.source][ref.number]) for number in range(600) for ref in order.row(number))
    assert tokens / (600 * 4096) >= 0.995
    assert all(len(json.dumps(order.anchor(number))) < 2048 for number in range(0, 1200, 50))


@pytest.mark.parametrize(("seq_len", "longest"), [(131_072, 700), (131_072, 30), (16_384, 500)])
def test_windows_of_long_rows_are_bounded_in_examples_and_full(
    monkeypatch: pytest.MonkeyPatch, seq_len: int, longest: int
) -> None:
    monkeypatch.undo()
    order = make_order([(np.random.default_rng(0).integers(1, longest, 300_000).tolist(), 1.0)], seq_len=seq_len)
    for _ in range(2):
        order._make_window()
    for window in order._windows:
        examples, rows = sum(map(len, window)), len(window)
        # Up to so many examples, or as many as MIN_ROWS rows hold.
        assert rows <= best_fit.MIN_ROWS + 1 or examples <= best_fit.WINDOW_EXAMPLES + 1.1 * examples / rows
        assert sum(taken.length for row in window for taken in row) >= 0.995 * rows * seq_len
