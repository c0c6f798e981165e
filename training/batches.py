"""From this rank's rows to one optimizer step's micro-batches, and the hash that proves which rows they were."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.engine import MicroBatch

if TYPE_CHECKING:
    from data_pipeline.stream.token_stream import Row

HASH_SIZE = 2**40
"""Row hashes are summed modulo this, so that fp64 adds those of up to 2^13 ranks exactly."""


class TimedRows:
    """Rows, and how long they were waited for."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows
        self.seconds = 0.0

    def __iter__(self) -> TimedRows:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return next(self._rows)
        finally:
            self.seconds += time.perf_counter() - began


def take_step(rows: Iterator[Row], *, num_rows: int, micro_batch_rows: int) -> tuple[list[MicroBatch], int]:
    """Take this rank's next `num_rows` rows; return its micro-batches and the sum of their row hashes."""
    taken = [next(rows) for _ in range(num_rows)]
    batches = [stack(taken[i : i + micro_batch_rows]) for i in range(0, num_rows, micro_batch_rows)]
    return batches, sum(row_hash(row) for row in taken) % HASH_SIZE


def stack(rows: list[Row]) -> MicroBatch:
    """Rows as tensors of shape (rows, seq_len)."""

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]).astype(np.int64))

    return MicroBatch(
        input_ids=tensor("input_ids"), labels=tensor("labels"), position_ids=tensor("position_ids"),
        first_lane=rows[0].lane,
    )  # fmt: skip


def row_hash(row: Row) -> int:
    """Hash of a row's lane, inputs, targets and positions."""
    digest = hashlib.blake2b(str(row.lane).encode(), digest_size=8)
    for values in (row.input_ids, row.labels, row.position_ids):
        digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little") % HASH_SIZE


def chain_hash(previous: str, step_sum: int) -> str:
    """Running hash of all batches so far: equal at a step means equal batches up to that step.

    `step_sum` is the sum of the step's row hashes over all ranks, so it does not know how rows are split over ranks.
    """
    return hashlib.blake2b(f"{previous}/{step_sum % HASH_SIZE}".encode(), digest_size=16).hexdigest()
