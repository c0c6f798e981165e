"""From this rank's rows to one optimizer step's micro-batches, and the hash that proves which rows they were."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.model.loss import IGNORE

if TYPE_CHECKING:
    from data_pipeline.stream.token_stream import Row, RowDocument

HASH_SIZE = 2**40
"""Row hashes are summed modulo this, so that fp64 adds those of up to 2^13 ranks exactly."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass on one rank.

    Whatever depends on the values (where documents end, which positions have a target) is known here, on the CPU, so that
    the device never has to be asked.
    """

    input_ids: torch.Tensor
    """int64 (rows, seq_len)."""
    position_ids: torch.Tensor
    """int64 (rows, seq_len); restart at 0 at every document."""
    target_index: torch.Tensor
    """int64 (targets,): positions that have a target, counted through the flattened rows."""
    targets: torch.Tensor
    """int64 (targets,): the token to predict at each of them."""
    cu_seqlens: torch.Tensor
    """int32 (documents + 1,): where the parts of documents begin in the flattened rows, and where the last ends. Attention
    does not cross these boundaries."""
    max_seqlen: int
    """Tokens of the longest part."""
    pairs: int
    """Pairs of a query and a key it sees."""
    first_lane: int
    """Data lane of the first row; keys the noise."""

    def repeated_boundaries(self, copies: int) -> torch.Tensor:
        """`cu_seqlens` of the rows repeated so many times, one copy after the other."""
        if copies == 1:
            return self.cu_seqlens
        offsets = torch.arange(copies, dtype=torch.int32, device=self.cu_seqlens.device) * self.input_ids.numel()
        later = (self.cu_seqlens[1:] + offsets.unsqueeze(1)).flatten()
        return torch.cat((self.cu_seqlens[:1], later))

    def pinned(self) -> MicroBatch:
        """The same in page-locked memory, from which a GPU copies while the host goes on."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device, without waiting for it."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        return dataclasses.replace(
            self, input_ids=change(self.input_ids), position_ids=change(self.position_ids),
            target_index=change(self.target_index), targets=change(self.targets), cu_seqlens=change(self.cu_seqlens),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one rank trains on in one optimizer step."""

    micro_batches: list[MicroBatch]
    row_hash: int
    """Sum of the hashes of the rows."""
    documents: list[RowDocument]
    """What the rows hold, in order."""

    def pinned(self) -> StepBatch:
        """The same in page-locked memory."""
        return dataclasses.replace(self, micro_batches=[micro.pinned() for micro in self.micro_batches])

    @property
    def num_targets(self) -> int:
        """Target tokens of this rank."""
        return sum(len(micro.targets) for micro in self.micro_batches)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key it sees, of this rank."""
        return sum(micro.pairs for micro in self.micro_batches)


def take_step(rows: Iterator[Row], *, num_rows: int, micro_batch_rows: int) -> StepBatch:
    """Take this rank's next `num_rows` rows."""
    taken = [next(rows) for _ in range(num_rows)]
    return StepBatch(
        micro_batches=[stack(taken[i : i + micro_batch_rows]) for i in range(0, num_rows, micro_batch_rows)],
        row_hash=sum(row_hash(row) for row in taken) % HASH_SIZE,
        documents=[document for row in taken for document in row.documents if document.source >= 0],
    )


def stack(rows: list[Row]) -> MicroBatch:
    """Rows as one micro-batch."""

    def joined(name: str) -> Any:
        return np.stack([getattr(row, name) for row in rows]).astype(np.int64)

    input_ids, labels, position_ids = joined("input_ids"), joined("labels"), joined("position_ids")
    starts_part = position_ids == 0
    starts_part[:, 0] = True
    boundaries = np.append(np.flatnonzero(starts_part), position_ids.size)
    lengths = np.diff(boundaries)
    target_index = np.flatnonzero(labels != IGNORE)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids), position_ids=torch.from_numpy(position_ids),
        target_index=torch.from_numpy(target_index), targets=torch.from_numpy(labels.reshape(-1)[target_index]),
        cu_seqlens=torch.from_numpy(boundaries.astype(np.int32)), max_seqlen=int(lengths.max()),
        pairs=int((lengths * (lengths + 1)).sum() // 2), first_lane=rows[0].lane,
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
