"""Which document comes when: pure functions of seed, source, epoch and lane, never of the world size.

A source's epochs, each a seeded permutation of its N documents, follow each other endlessly, and this sequence is dealt
to the B lanes like cards: its g-th document goes to lane g mod B. So the k-th document of lane l is

    g = k·B + l,   epoch = g div N,   place in that epoch's permutation = g mod N

and over all lanes every document comes exactly once per epoch. With fewer documents than lanes, a lane has no document
in some epochs and goes on to the next one.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Place(NamedTuple):
    """Where a document is in the endless sequence of a source: which epoch, and where in its permutation."""

    epoch: int
    position: int


def source_seed(seed: int, name: str) -> int:
    """A 128-bit seed for the source `name` of a run with `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16])


def epoch_permutation(num_documents: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the documents 0..num_documents-1 in one epoch, int64 [num_documents].

    It sorts random keys, drawn raw from a counter-based generator: these, unlike numpy's own permutations, are promised
    to stay the same from one numpy version to the next, so a resumed run keeps its order.
    """
    keys = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(num_documents)
    return np.argsort(keys, kind="stable").astype(np.int64)


def place_of(count: int, lane: int, num_lanes: int, num_documents: int) -> Place:
    """Where the document number `count` (from 0, over all epochs) of `lane` is."""
    return Place(*divmod(count * num_lanes + lane, num_documents))


def lane_documents(num_documents: int, seed: int, epoch: int, lane: int, num_lanes: int) -> NDArray[np.int64]:
    """The documents of one lane in one epoch, in its order: its slice of the epoch's permutation."""
    first = (lane - epoch * num_documents) % num_lanes
    return epoch_permutation(num_documents, seed, epoch)[first::num_lanes]
