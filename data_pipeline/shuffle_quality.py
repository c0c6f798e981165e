"""How well the order of documents is shuffled: the distance between neighbours, against a true permutation, and repetitions.

What blocks cost: a source of n documents has about 65,536 blocks of s = ceil(n / 65,536) documents where each document can be
read for itself (Source.block_starts); up to 65,536 documents that is one, and the order a true shuffle. Where documents are
decoded in extents of many (row groups of Parquet, batches of Arrow, compressed frames), a block is an extent, or a part of
one where there would be too few of them (order.finer_blocks); s is then the documents of such a block, whatever n is. With
s > 1, a lane goes through groups of m blocks, m = 8, or fewer where a group would exceed 4 MB (group_size). While it does, 1
of m neighbours in the lane are from one block; its s·m next documents are from m stretches of the source. In a batch it is
otherwise: its B lanes are in up to B·m different blocks, which a permutation has chosen, and neighbours in a batch are as
far from each other as in a true shuffle of all documents, if there are many more blocks than lanes.

What lanes cost: of b blocks each lane has b/B of an epoch, rounded up or down. So some lanes begin the next epoch when others
still have a block of this one, and among the first n documents some come twice, others not yet: about one in 100 with 32
blocks for a lane. This is measured with lanes that take a document each in turn; documents of unequal length add to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import SourceOrder, source_seed


class Neighbours(NamedTuple):
    """What pairs of neighbours have in common.

    Attributes:
        distance: mean difference of their numbers, as a part of all documents; 1/3 in a true permutation.
        near: share of pairs whose numbers differ by less than a block, 2 blocks of all documents in a true permutation.
        correlation: of their numbers, 0 in a true permutation.
    """

    distance: float
    near: float
    correlation: float


class ShuffleQuality(NamedTuple):
    """How documents come.

    Attributes:
        lane: of documents that follow each other in a lane.
        batch: of those that come at once in neighbouring lanes.
        distinct: share of different documents among the first ones, at most as many as the source has; 1 if none is repeated.
    """

    lane: Neighbours
    batch: Neighbours
    distinct: float


def shuffle_quality(
    block_starts: NDArray[np.int64], *, num_lanes: int, seed: int, group_size: int, sample: int = 100_000
) -> ShuffleQuality:
    """Measure the order of a source with these blocks.

    Args:
        block_starts: first document of each block, then the number of documents, int64 [blocks + 1].
        num_lanes: rows of the global batch.
        seed: of the run.
        group_size: blocks that a lane goes through together (order.group_size).
        sample: how many documents to look at, about: as many at the beginning of each lane, over all epochs; at most two
            epochs of all of them.
    """
    order = SourceOrder(
        block_starts, num_lanes=num_lanes, seed=source_seed(seed, "shuffle quality"), group_size=group_size
    )
    num_documents = int(block_starts[-1])
    per_lane = max(2, -(-min(sample, 2 * num_documents) // num_lanes))
    documents = np.array([_documents_of_lane(order, lane, per_lane) for lane in range(num_lanes)])
    return measure(documents, num_documents, float(np.diff(block_starts).mean()))


def _documents_of_lane(order: SourceOrder, lane: int, count: int) -> list[int]:
    """The first documents of a lane, over as many epochs as it takes."""
    numbers: list[int] = []
    blocks = 0
    while len(numbers) < count:
        group = order.group(blocks, lane)
        numbers += group.documents(0, min(len(group.order), count - len(numbers)))
        blocks = group.stop
    return numbers


def measure(documents: NDArray[np.int64], num_documents: int, block: float) -> ShuffleQuality:
    """Measure documents as they come, int64 [lanes, documents], out of `num_documents` in blocks of `block` on average."""
    along = _neighbours(documents[:, :-1], documents[:, 1:], num_documents, block)
    across = _neighbours(documents[:-1], documents[1:], num_documents, block)
    first = documents.T.reshape(-1)[:num_documents]
    return ShuffleQuality(along, across, len(np.unique(first)) / len(first))


def _neighbours(ones: NDArray[np.int64], others: NDArray[np.int64], num_documents: int, block: float) -> Neighbours:
    differences = np.abs(ones - others)
    return Neighbours(
        distance=float(differences.mean() / num_documents),
        near=float((differences < block).mean()),
        correlation=float(np.corrcoef(ones.reshape(-1), others.reshape(-1))[0, 1]),
    )
