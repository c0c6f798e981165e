"""Which document comes when: pure functions of seed, source, epoch and lane, never of the world size.

A source's documents lie in N *blocks* of neighbours, each read at once. The epochs of a source, each a keyed permutation
of its blocks, follow each other endlessly, and this sequence is dealt to the B lanes like cards: its g-th block goes to
lane g mod B. So the k-th block of lane l is

    g = k·B + l,   epoch = g div N,   place in that epoch's permutation = g mod N

and over all lanes every document comes exactly once per epoch. A lane goes through a *group* of some blocks of an epoch
together: their documents come in one keyed permutation, so that neighbours seldom are from one block. With fewer blocks
than lanes, a lane has no block in some epochs and goes on to the next one.

Lanes take documents at their own pace: one with longer documents takes fewer. What is guaranteed: within a lane, epochs
come one after the other; over all lanes, every document comes exactly once in each epoch; but epochs of different lanes may
be open at the same time. For this to stay the exception at the seam of two epochs, a lane needs many blocks of an epoch:
a source with few blocks gets finer ones (finer_blocks), parts of what is read and decoded as one.

Of a source with up to 65,536 documents in a format where each is read for itself (.jsonl, say), a block is one document,
and the order a true shuffle of all documents; what larger blocks cost is said and measured in shuffle_quality.py.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import struct
from typing import NamedTuple, cast, overload

import numpy as np
from numpy.typing import NDArray

# With fewer rounds some permutations of 5 to 8 things come visibly more often than others (chi-square test).
_ROUNDS = 12
_MASK = (1 << 64) - 1
_FACTOR_1, _FACTOR_2 = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_HALF = 32

BLOCKS_PER_LANE = 32
"""A lane has at least so many blocks of an epoch, where there are as many documents."""
_MAX_GROUP_SIZE = 8
_MAX_GROUP_BYTES = 4 << 20


class Permutation:
    """A keyed permutation of range(size): any element in constant time and memory, the same on every platform.

    A Feistel network on a grid of rows × columns with about `size` cells: each round adds a keyed hash of the one
    coordinate to the other, which can be undone and thus is a bijection of the cells. A cell beyond `size` is sent through
    again until it is inside ("cycle walking"; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        """Make the permutation of range(size) that belongs to `key`, integers of any size."""
        if not 1 <= size < 1 << 62:
            raise ValueError(f"a permutation of {size} things; the size must be at least 1 and below 2^62")
        self.size = size
        # An even number of rows: shifts along an odd by odd grid would only ever make even permutations.
        self._rows = 2 * ((math.isqrt(size - 1) + 2) // 2)
        self._columns = -(-size // self._rows)
        digest = hashlib.shake_128(",".join(map(str, key)).encode()).digest(8 * _ROUNDS)
        keys = struct.unpack(f"<{_ROUNDS}Q", digest)
        self._keys = list(zip(keys[::2], keys[1::2], strict=True))

    def __len__(self) -> int:
        """How many things are permuted."""
        return self.size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def __getitem__(self, place: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """What comes at `place`, from 0: an int for an int, int64 [n] for int64 [n]. IndexError outside range(size)."""
        if isinstance(place, np.ndarray):
            return self._of_array(place)
        place = int(place)
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of a permutation of {self.size}")
        while True:
            place = self._shuffled_cell(place)
            if place < self.size:
                return place

    def _shuffled_cell(self, cell: int) -> int:
        rows, columns = self._rows, self._columns
        row, column = divmod(cell, columns)
        for key_1, key_2 in self._keys:
            bits = (column ^ key_1) * _FACTOR_1 & _MASK
            bits = (bits ^ bits >> _HALF) * _FACTOR_2 & _MASK
            row = (row + ((bits >> _HALF) * rows >> _HALF)) % rows
            bits = (row ^ key_2) * _FACTOR_1 & _MASK
            bits = (bits ^ bits >> _HALF) * _FACTOR_2 & _MASK
            column = (column + ((bits >> _HALF) * columns >> _HALF)) % columns
        return row * columns + column

    def _of_array(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        if places.size and not (places.min() >= 0 and places.max() < self.size):
            raise IndexError(f"places {places.min()} to {places.max()} of a permutation of {self.size}")
        cells = places.astype(np.uint64).reshape(-1)
        outside = np.arange(len(cells))
        while len(outside):
            cells[outside] = self._shuffled_cells(cells[outside])
            outside = outside[cells[outside] >= self.size]
        return cells.astype(np.int64).reshape(places.shape)

    def _shuffled_cells(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        row, column = np.divmod(cells, columns)
        for key_1, key_2 in self._keys:
            row = (row + _hashes(column, key_1, rows)) % rows
            column = (column + _hashes(row, key_2, columns)) % columns
        return row * columns + column


def _hashes(values: NDArray[np.uint64], key: int, stop: np.uint64) -> NDArray[np.uint64]:
    """Keyed hashes of `values` in range(stop); unsigned arrays wrap around without a warning."""
    half = np.uint64(_HALF)
    bits = (values ^ np.uint64(key)) * np.uint64(_FACTOR_1)
    bits = (bits ^ bits >> half) * np.uint64(_FACTOR_2)
    return (bits >> half) * stop >> half


class Group(NamedTuple):
    """Blocks that a lane goes through together, with their documents in one permutation.

    Attributes:
        epoch: of the source, from 0.
        stop: how many blocks of the lane there are up to the last of these, over all epochs.
        blocks: the documents of each.
        order: of all their documents.
    """

    epoch: int
    stop: int
    blocks: list[range]
    order: Permutation

    def document(self, place: int) -> int:
        """The document that comes at `place`, from 0: its number in the source."""
        at = self.order[place]
        for block in self.blocks:
            if at < len(block):
                return block[at]
            at -= len(block)
        raise AssertionError("the order is of all documents of the blocks")

    def documents(self, start: int, stop: int) -> list[int]:
        """The documents that come at the places [start, stop)."""
        numbers = np.concatenate([np.arange(block.start, block.stop) for block in self.blocks])
        return cast(list[int], numbers[self.order[np.arange(start, stop)]].tolist())


class SourceOrder:
    """The order of one source's documents in all lanes and epochs."""

    def __init__(self, block_starts: NDArray[np.int64], *, num_lanes: int, seed: int, group_size: int = 1) -> None:
        """Order a source.

        Args:
            block_starts: the first document of each block, then the number of documents, int64 [blocks + 1].
            num_lanes: rows of the global batch.
            seed: see source_seed.
            group_size: how many blocks of an epoch a lane goes through together; fewer at the end of an epoch.
        """
        self.num_blocks = len(block_starts) - 1
        self._block_starts = block_starts
        self._num_lanes, self._seed, self.group_size = num_lanes, seed, group_size

    @property
    def fingerprint(self) -> str:
        """A hex hash of the blocks and of how they are grouped."""
        digest = hashlib.sha256(self._block_starts.astype("<i8").tobytes())
        digest.update(str(self.group_size).encode())
        return digest.hexdigest()

    def group(self, count: int, lane: int) -> Group:
        """The group that has block number `count` of `lane`, counted from 0 over all epochs."""
        epoch = (count * self._num_lanes + lane) // self.num_blocks
        first, after = self.first_of_epoch(epoch, lane), self.first_of_epoch(epoch + 1, lane)
        start = count - (count - first) % self.group_size
        stop = min(start + self.group_size, after)
        dealt = Permutation(self.num_blocks, (self._seed, epoch))
        numbers = [dealt[each * self._num_lanes + lane - epoch * self.num_blocks] for each in range(start, stop)]
        blocks = [range(int(self._block_starts[number]), int(self._block_starts[number + 1])) for number in numbers]
        order = Permutation(sum(map(len, blocks)), (self._seed, epoch, numbers[0]))
        return Group(epoch, stop, blocks, order)

    def first_of_epoch(self, epoch: int, lane: int) -> int:
        """How many blocks `lane` has before those of `epoch`."""
        return max(0, -(-(epoch * self.num_blocks - lane) // self._num_lanes))


def finer_blocks(block_starts: NDArray[np.int64], *, num_lanes: int, num_bytes: int) -> NDArray[np.int64]:
    """Divide a source's blocks evenly, where there are too few for the lanes, or they are too large to be kept.

    Each is divided into the same number of parts as others of its size, down to single documents, until there are
    BLOCKS_PER_LANE for each lane, and no more than 4 MB of the files for each on average. A part of an extent costs
    decoding: as long as the extent is kept (sources/decoded.py) it is decoded once for all of its parts, else once for each.

    Args:
        block_starts: the first document of each block, then the number of documents, int64 [blocks + 1].
        num_lanes: rows of the global batch.
        num_bytes: of the source's files.

    Returns:
        The same of the finer blocks.
    """
    documents = np.diff(block_starts)
    wanted = min(int(documents.sum()), max(BLOCKS_PER_LANE * num_lanes, -(-num_bytes // _MAX_GROUP_BYTES)))
    if len(documents) >= wanted:
        return block_starts

    def parts(size: int) -> NDArray[np.int64]:
        """Of each block, if none may have more than `size` documents."""
        return -(-documents // size)

    sizes = range(1, int(documents.max()) + 1)
    # The largest size that gives enough: one of 1 always does.
    size = bisect.bisect_left(sizes, True, key=lambda size: int(parts(size).sum()) < wanted)
    counts = parts(size)
    part = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(block_starts[:-1], counts) + np.repeat(documents, counts) * part // np.repeat(counts, counts)
    return np.append(starts, block_starts[-1])


def group_size(num_documents: int, num_blocks: int, num_bytes: int) -> int:
    """How many blocks of a source to go through together: some, but only as many as memory is for."""
    if num_blocks == num_documents:
        # Single documents are shuffled already.
        return 1
    return max(1, min(_MAX_GROUP_SIZE, _MAX_GROUP_BYTES * num_blocks // num_bytes))


def source_seed(seed: int, name: str) -> int:
    """A 128-bit seed for the source `name` of a run with `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16])
