"""How well the order of documents is shuffled: the distance between neighbours, against a true permutation.

What blocks cost: a source of n documents has about 65,536 blocks of s = ceil(n / 65,536) documents (Source.block_starts).
Up to 65,536 documents that is one, and the order a true shuffle. Beyond, a lane goes through groups of m blocks, m = 8, or
fewer where a group would exceed 4 MB (group_size). While it does, 1 of m neighbours in the lane are from one block; the
documents of all its s·m next ones are from m stretches of the source. In a batch it is otherwise: its B lanes are in up to
B·m different blocks, which a permutation has chosen, and neighbours in a batch are as far from each other as in a true
shuffle of all documents.
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
    """Of documents that follow each other in a lane, and of those that come at once in neighbouring lanes."""

    lane: Neighbours
    batch: Neighbours


def shuffle_quality(
    block_starts: NDArray[np.int64], *, num_lanes: int, seed: int, group_size: int, sample: int = 100_000
) -> ShuffleQuality:
    """Measure the order of a source with these blocks.

    Args:
        block_starts: first document of each block, then the number of documents, int64 [blocks + 1].
        num_lanes: rows of the global batch.
        seed: of the run.
        group_size: blocks that a lane goes through together (order.group_size).
        sample: how many documents to look at, at most, the same number at the beginning of each lane's first epoch.
    """
    order = SourceOrder(
        block_starts, num_lanes=num_lanes, seed=source_seed(seed, "shuffle quality"), group_size=group_size
    )
    lanes = [_documents_of_lane(order, lane, max(2, sample // num_lanes)) for lane in range(num_lanes)]
    shortest = min(map(len, lanes))
    documents = np.array([numbers[:shortest] for numbers in lanes])
    return measure(documents, int(block_starts[-1]), float(np.diff(block_starts).mean()))


def _documents_of_lane(order: SourceOrder, lane: int, most: int) -> list[int]:
    """The first documents of a lane's first epoch."""
    numbers: list[int] = []
    blocks = 0
    while len(numbers) < most and blocks < order.first_of_epoch(1, lane):
        group = order.group(blocks, lane)
        numbers += [group.document(place)[1] for place in range(min(len(group.order), most - len(numbers)))]
        blocks = group.stop
    return numbers


def measure(documents: NDArray[np.int64], num_documents: int, block: float) -> ShuffleQuality:
    """Measure documents as they come, int64 [lanes, documents], out of `num_documents` in blocks of `block` on average."""
    along = _neighbours(documents[:, :-1], documents[:, 1:], num_documents, block)
    across = _neighbours(documents[:-1], documents[1:], num_documents, block)
    return ShuffleQuality(along, across)


def _neighbours(ones: NDArray[np.int64], others: NDArray[np.int64], num_documents: int, block: float) -> Neighbours:
    differences = np.abs(ones - others)
    return Neighbours(
        distance=float(differences.mean() / num_documents),
        near=float((differences < block).mean()),
        correlation=float(np.corrcoef(ones.reshape(-1), others.reshape(-1))[0, 1]),
    )
