"""Rows of whole examples: which examples are in row 0, 1, 2, … of all lanes together.

Every source's examples come in a keyed permutation per epoch, epoch after epoch, and the sources are mixed so that the
one whose tokens are furthest behind its weight is next. This endless sequence of examples is taken in *windows* of
about WINDOW_ROWS rows of tokens. A window's examples are packed into rows by best fit decreasing, whole, and its rows
come in a keyed permutation, so that long examples do not come first. The few worst filled rows of a window are no rows
yet: their examples are *carried* into the next window.

What that means for epochs:

* Every example that has tokens comes exactly once per epoch.
* A window that has MIN_ROWS rows of tokens ends where an epoch of one of its sources ends, or has ended. So examples of
  epoch e + 1 come among those of epoch e only around the end of e, in a window of hardly more than MIN_ROWS rows.
* A carried example comes in the next window for certain: none is carried twice, and at most MAX_CARRIED at a time.
* A source whose epoch is less than MIN_ROWS rows of the mixture has several epochs in one window, in any order.

Rows depend on the lengths, names, weights, `seq_len` and `seed` alone. All decisions are made with integers, and are
the same on every platform. A position in the sequence is an *anchor*: where a window starts. Any later row can be made
from it, at the cost of the windows in between, of which there are none for the rows that come next.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.mixture import integer_inverses
from data_pipeline.order import Permutation, source_seed
from data_pipeline.sources.errors import DataError

WINDOW_ROWS = 1024
"""A window takes examples up to this many rows of tokens."""

MIN_ROWS = 32
"""From so many on, it ends with an epoch."""

MAX_CARRIED = 256
"""Most examples that are carried from a window to the next; it bounds the anchor."""

_CARRIED_ROWS = 16  # a window carries at most one in so many of its rows, so it always has rows
_FULL = 200  # rows with less than one in so many tokens of padding are never carried
_CHUNK = 4096  # examples looked up at once
_FEW = 32


class ExampleRef(NamedTuple):
    """One example of the endless sequence: the index of its source, its number there, and the epoch from 0."""

    source: int
    number: int
    epoch: int


class _Start(NamedTuple):
    """Where a window starts. A *place* is one in the endless sequence of a source: epoch * documents + place in it."""

    first_row: int
    places: list[int]  # by source: the next place
    tokens: list[int]  # by source: those of all examples before it
    carried: list[tuple[int, int]]  # (source, place) of each example carried into the window


class _Taken(NamedTuple):
    """An example of a window."""

    source: int
    place: int
    number: int
    length: int


class PackedOrder:
    """Which examples are in which row; rows are numbered from 0 over all lanes, without an end.

    The m-th example row of lane l is row m * num_lanes + l. Rows can be asked for in any order, again and again, until
    they are released.
    """

    def __init__(
        self,
        lengths: Sequence[NDArray[np.int32]],
        names: Sequence[str],
        weights: Sequence[float],
        *,
        seq_len: int,
        seed: int,
    ) -> None:
        """Start at row 0.

        Args:
            lengths: by source, the tokens of each example, int32 [documents], at most `seq_len`; 0: there is none.
            names: of the sources; they seed the orders of their examples.
            weights: of the sources, by tokens, relative to each other.
            seq_len: tokens in a row.
            seed: decides all orders.

        Raises:
            DataError: a source has no example with tokens.
        """
        for name, each in zip(names, lengths, strict=True):
            longest = int(each.max()) if len(each) else 0
            assert longest <= seq_len, f"{name} has an example of {longest} tokens, for rows of {seq_len}"
            if longest == 0:
                raise DataError(
                    f"the source {name} has no example to train on: all {len(each)} are empty, skipped or dropped; "
                    "look at on_bad_record and too_long, or leave the source out"
                )
        self._lengths = list(lengths)
        self._seq_len = seq_len
        self._seeds = [source_seed(seed, name) for name in names]
        self._row_seed = source_seed(seed, "rows of " + " ".join(names))
        self._costs = integer_inverses(weights)
        self._go_to(_Start(0, [0] * len(lengths), [0] * len(lengths), []))

    def row(self, number: int) -> list[ExampleRef]:
        """The examples of a row, at least one; together they have at most `seq_len` tokens.

        Raises:
            IndexError: the row is before the anchor that was loaded, or released.
        """
        which = self._window_of(number)
        while which == len(self._windows):
            self._make_window()
            which = self._window_of(number)
        taken = self._windows[which][number - self._starts[which].first_row]
        return [ExampleRef(source, number, place // len(self._lengths[source])) for source, place, number, _ in taken]

    def anchor(self, row_number: int) -> dict[str, Any]:
        """Where the window of a row starts, as JSON of at most 2 KB; all rows from `row_number` on follow from it.

        Raises:
            IndexError: as for `row`.
        """
        start = self._starts[self._window_of(row_number)]
        carried: list[list[int]] = [[] for _ in self._lengths]
        for source, place in start.carried:
            carried[source].append(start.places[source] - place)
        return {"first_row": start.first_row, "places": start.places, "tokens": start.tokens, "carried": carried}

    def load_anchor(self, anchor: dict[str, Any]) -> None:
        """Go on from an anchor of the same sources, settings and seed, which the caller has compared; makes no window."""
        places = [int(place) for place in anchor["places"]]
        assert len(places) == len(self._lengths), "an anchor of other sources"
        carried = [(source, places[source] - back) for source, backs in enumerate(anchor["carried"]) for back in backs]
        self._go_to(_Start(anchor["first_row"], places, list(anchor["tokens"]), carried))

    def release(self, row_number: int) -> None:
        """Forget the windows before the one with this row, for good. Cheap; for the lowest row that is still needed.

        Without it, all windows since the start are kept, which are about half a megabyte each.
        """
        which = self._window_of(row_number)
        del self._starts[:which], self._first_rows[:which], self._windows[:which]

    def _go_to(self, start: _Start) -> None:
        self._starts = [start]
        self._first_rows = [start.first_row]
        self._windows: list[list[list[_Taken]]] = []  # one less than starts: the last is yet to be made

    def _window_of(self, row_number: int) -> int:
        """Index of the window with a row; that of the window to be made next only if the row is its first."""
        if row_number < self._first_rows[0]:
            raise IndexError(f"row {row_number} is before row {self._first_rows[0]}, the first one kept")
        while row_number > self._first_rows[-1]:
            self._make_window()
        return bisect_right(self._first_rows, row_number) - 1

    def _make_window(self) -> None:
        """Take the next window's examples, pack them, and choose those to carry."""
        start = self._starts[-1]
        examples, places, tokens = self._take(start)
        lengths = np.array([taken.length for taken in examples], dtype=np.int32)
        bins = best_fit_decreasing(lengths, self._seq_len, first=len(start.carried))
        carried = self._worst(bins, examples, len(start.carried))
        rows = [bin_ for index, bin_ in enumerate(bins) if index not in carried]
        shuffled = Permutation(len(rows), (self._row_seed, start.first_row))[np.arange(len(rows))]
        self._windows.append([[examples[i] for i in rows[row]] for row in shuffled.tolist()])
        next_carried = sorted((examples[i].source, examples[i].place) for index in carried for i in bins[index])
        self._starts.append(_Start(start.first_row + len(rows), places, tokens, next_carried))
        self._first_rows.append(start.first_row + len(rows))

    def _take(self, start: _Start) -> tuple[list[_Taken], list[int], list[int]]:
        """A window's examples, the carried ones first, and the places and tokens by source after it."""
        examples = [self._example(source, place) for source, place in start.carried]
        places, tokens = list(start.places), list(start.tokens)
        ahead = [self._examples_from(source, place) for source, place in enumerate(places)]
        following = [next(each) for each in ahead]
        last_of_epoch = [_end_of_epoch(taken.place, len(self._lengths[taken.source])) for taken in following]
        most, size = WINDOW_ROWS * self._seq_len, sum(taken.length for taken in examples)
        # The source that is furthest behind has the fewest tokens per weight.
        behind = [(tokens[source] * cost, source) for source, cost in enumerate(self._costs)]
        heapq.heapify(behind)
        while True:
            source = behind[0][1]
            taken = following[source]
            if taken.place >= last_of_epoch[source]:
                most = MIN_ROWS * self._seq_len
            if size >= most:
                return examples, places, tokens
            examples.append(taken)
            size += taken.length
            tokens[source] += taken.length
            places[source] = taken.place + 1
            heapq.heapreplace(behind, (tokens[source] * self._costs[source], source))
            following[source] = next(ahead[source])

    def _examples_from(self, source: int, place: int) -> Iterator[_Taken]:
        """The examples of a source that have tokens, from a place on, without an end."""
        lengths = self._lengths[source]
        while True:
            epoch, first = divmod(place, len(lengths))
            within = np.arange(first, min(first + _CHUNK, len(lengths)))
            permutation = Permutation(len(lengths), (self._seeds[source], epoch))
            # A call for an array costs as much as calls for some thirty numbers.
            few = len(within) <= _FEW
            numbers = np.array([permutation[i] for i in within.tolist()]) if few else permutation[within]
            sizes = lengths[numbers]
            some = np.flatnonzero(sizes)
            for i, number, size in zip(some.tolist(), numbers[some].tolist(), sizes[some].tolist(), strict=True):
                yield _Taken(source, place + i, number, size)
            place += len(within)

    def _example(self, source: int, place: int) -> _Taken:
        epoch, within = divmod(place, len(self._lengths[source]))
        number = Permutation(len(self._lengths[source]), (self._seeds[source], epoch))[within]
        return _Taken(source, place, number, int(self._lengths[source][number]))

    def _worst(self, bins: list[list[int]], examples: list[_Taken], num_carried: int) -> set[int]:
        """Indices of the bins to carry: the least filled, without those that hold one of the `num_carried` first."""
        filled = [sum(examples[i].length for i in bin_) for bin_ in bins]
        order = sorted(range(len(bins)), key=lambda index: (filled[index], index))
        worst: set[int] = set()
        num_examples = 0
        for index in order[: len(bins) // _CARRIED_ROWS]:
            if (self._seq_len - filled[index]) * _FULL < self._seq_len:
                break
            if min(bins[index]) >= num_carried and num_examples + len(bins[index]) <= MAX_CARRIED:
                worst.add(index)
                num_examples += len(bins[index])
        return worst


def best_fit_decreasing(lengths: NDArray[np.int32], capacity: int, *, first: int = 0) -> list[list[int]]:
    """Pack things of `lengths` into bins of `capacity`, by best fit decreasing (Johnson, 1973).

    Longest first, each thing goes into the bin where it leaves the least room, or into a new one where it fits in none.
    Things of equal length are taken in their order; of bins with equally little room, the one changed last is taken.

    Args:
        lengths: int [things], each from 1 to `capacity`.
        capacity: what a bin holds.
        first: so many of the things, from the front, are packed before all others, again the longest first.

    Returns:
        For each bin, in the order in which they were opened, the indices of the things in it.
    """
    assert not len(lengths) or (lengths.min() >= 1 and lengths.max() <= capacity), "a thing that fits in no bin"
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity)]
    # Bit r is set where with_room[r] is not empty: a shift and the lowest set bit give the least room that suffices.
    rooms = 0
    order = np.lexsort((-lengths.astype(np.int64), np.arange(len(lengths)) >= first))
    for thing, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            bins[chosen].append(thing)
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, len(bins)
            bins.append([thing])
        room -= length
        if room:
            if not with_room[room]:
                rooms |= 1 << room
            with_room[room].append(chosen)
    return bins


def _end_of_epoch(place: int, num_documents: int) -> int:
    """The first place of the epoch after that of `place`."""
    return (place // num_documents + 1) * num_documents
