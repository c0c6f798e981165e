"""Rows of whole examples: which examples are in row 0, 1, 2, … of all lanes together.

Every source's examples come in a keyed permutation per epoch, epoch after epoch, and the sources are mixed so that the
one whose tokens are furthest behind its weight is next. This endless sequence of examples is taken in *windows* of
WINDOW_ROWS rows of tokens, or of WINDOW_EXAMPLES examples where rows are long. A window's examples are packed into rows
by best fit decreasing, whole, and its rows come in a keyed permutation, so that long examples do not come first. The few
worst filled rows of a window are no rows yet: their examples are *carried* into the next window.

What that means for epochs:

* Every example that has tokens comes exactly once per epoch.
* A window that has MIN_ROWS rows of tokens ends where an epoch of one of its sources ends, or has ended. So examples of
  epoch e + 1 come among those of epoch e only around the end of e, in a window of hardly more than MIN_ROWS rows.
* A carried example comes in the next window for certain: none is carried twice, and at most MAX_CARRIED at a time.
* A source whose epoch is less than MIN_ROWS rows of the mixture has several epochs in one window, in any order.

Rows depend on the lengths, names, weights, `seq_len` and `seed` alone. All decisions are made with integers, and are
the same on every platform. A position in the sequence is an *anchor*: where a window starts. Any later row can be made
from it, at the cost of the windows in between, of which there are none for the rows that come next.

The rows of one lane cannot be made without those of the others: every process makes the windows of the whole batch,
however few of its lanes it has. That costs it 1.5 to 2.5 µs per example, which is about 20 µs for each row of the batch at
12 examples a row (45 ms a step of 2048 rows), and up to 0.2 s before the first row where rows are long.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.mixture import integer_inverses
from data_pipeline.order import Permutation, source_seed
from data_pipeline.sources.errors import DataError

WINDOW_ROWS = 1024
"""A window takes examples up to this many rows of tokens."""

WINDOW_EXAMPLES = 32_768
"""From so many examples on, it ends with the row that is begun, if there are MIN_ROWS; it bounds the wait after a resume."""

MIN_ROWS = 32
"""From so many on, it ends with an epoch."""

MAX_CARRIED = 256
"""Most examples that are carried from a window to the next; it bounds the anchor."""

_CARRIED_ROWS = 16  # a window carries at most one in so many of its rows, so it always has rows
_FULL = 200  # rows with less than one in so many tokens of padding are never carried
_CHUNK = 4096  # examples looked up at once
_FEW = 32
_TOO_LARGE = 1 << 62


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

    def load_anchor(self, anchor: Any, row_number: int) -> None:
        """Go on at a row from an anchor of the same settings and seed, which the caller has compared; makes no window.

        Raises:
            ValueError: the anchor is damaged, of other sources, or behind the row; nothing has changed.
        """
        start = self._start_of(anchor)
        if start.first_row > row_number:
            raise ValueError(f"starts at row {start.first_row}, behind row {row_number}, which is next")
        self._go_to(start)

    def release(self, row_number: int) -> None:
        """Forget the windows before the one with this row, for good; makes none. For the lowest row that is still needed.

        Cheap enough for every row. Without it all windows since the start are kept, of up to a few megabytes each.
        """
        which = max(0, bisect_right(self._first_rows, row_number) - 1)
        if which:
            del self._starts[:which], self._first_rows[:which], self._windows[:which]

    def _start_of(self, anchor: Any) -> _Start:
        """What `anchor` has written.

        Raises:
            ValueError: this is none.
        """
        try:
            first_row, places, tokens, carried = (anchor[part] for part in ("first_row", "places", "tokens", "carried"))
            numbers = [first_row, *places, *tokens, *chain.from_iterable(carried)]
            counts = {len(places), len(tokens), len(carried)}
        except (KeyError, TypeError) as error:
            raise ValueError(f"lacks a part or has one of another kind: {error!r}") from error
        if not all(type(number) is int and 0 <= number < _TOO_LARGE for number in numbers):
            raise ValueError("has other values than integers from 0 to 2^62 - 1")
        if counts != {len(self._lengths)}:
            raise ValueError(f"is not of {len(self._lengths)} sources of examples")
        examples = [(source, places[source] - back) for source, backs in enumerate(carried) for back in backs]
        is_known = all(
            0 <= place < places[source] and self._example(source, place).length for source, place in examples
        )
        if not is_known or len(set(examples)) < len(examples):
            raise ValueError("carries examples that there are not")
        return _Start(first_row, list(places), list(tokens), examples)

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
            elif len(examples) >= WINDOW_EXAMPLES:
                # To the end of the row that is begun: a last row of many short examples is too much to be carried.
                most = min(most, max(MIN_ROWS, -(-size // self._seq_len)) * self._seq_len)
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
            places = (place + some).tolist()
            yield from map(_Taken, repeat(source), places, numbers[some].tolist(), sizes[some].tolist())
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
    # The rooms that bins have, ascending, and the bins with each, the one changed last at the end.
    rooms: list[int] = []
    with_room: dict[int, list[int]] = {}
    order = np.lexsort((-lengths.astype(np.int64), np.arange(len(lengths)) >= first))
    for thing, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            alike = with_room[room]
            chosen = alike.pop()
            bins[chosen].append(thing)
            if not alike:
                del rooms[at], with_room[room]
        else:
            room, chosen = capacity, len(bins)
            bins.append([thing])
        room -= length
        if room in with_room:
            with_room[room].append(chosen)
        elif room:
            with_room[room] = [chosen]
            insort(rooms, room)
    return bins


def _end_of_epoch(place: int, num_documents: int) -> int:
    """The first place of the epoch after that of `place`."""
    return (place // num_documents + 1) * num_documents
