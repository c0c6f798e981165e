"""Sequence parallelism (Ulysses, arXiv 2309.14509): the ranks of a group share the same rows, each a part of the positions.

Everything in a transformer works on one token at a time except attention. Around it an all-to-all exchanges positions for
heads: rank k of p gives up the other ranks' heads of its seq_len / p positions and gets all positions of its heads / p
heads, and a second all-to-all takes the output back. Losses are sums over a rank's own targets and gradients sums over
all ranks, so nothing else of a step changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface

from training.batches import MicroBatch, StepBatch
from training.errors import ModelError
from training.model.attention import attend
from training.world import World

SHARED_ATTENTION = "palimpsest_ulysses"
"""Name of the attention implementation for rows that are shared by the ranks of a group."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]


class SequenceGroup:
    """The ranks that share rows with this one: consecutive ones, and so on one node where its ranks are divisible."""

    def __init__(self, world: World, size: int) -> None:
        """Make the process groups of all ranks (a collective); `size` divides the world size."""
        self.size = size
        self.rank = world.rank % size
        """Which part of every row is this rank's."""
        self.process_group: Any = None
        for first in range(0, world.size, size):
            ranks = list(range(first, first + size))
            # Every rank has to make every group.
            group = dist.new_group(ranks)
            if world.rank in ranks:
                self.process_group = group


def use_shared_rows(group: SequenceGroup) -> str:
    """Register attention for rows that this group shares; return its name, for `attn_implementation`.

    Like attention.ATTENTION it gets no mask from transformers.
    """
    AttentionInterface.register(SHARED_ATTENTION, around(attend, group))
    return SHARED_ATTENTION


def around(attention: Attention, group: SequenceGroup) -> Attention:
    """An attention function whose queries, keys and values are this rank's positions of the group's rows.

    Inside, `attention` sees whole rows of this rank's heads. Calls without `cu_seq_lens_q` (evaluation, where ranks have rows
    of their own) go to it as they are.
    """

    @torch.compiler.disable
    def attend_shared_rows(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if kwargs.get("cu_seq_lens_q") is None:
            return attention(module, query, key, value, attention_mask, **kwargs)
        if key.shape[1] % group.size:
            raise ModelError(
                f"train.sequence_parallel = {group.size}: must divide the base's {key.shape[1]} key/value heads"
            )
        query, key, value = (exchange(x, group, scattered=1, gathered=2) for x in (query, key, value))
        output, weights = attention(module, query, key, value, attention_mask, **kwargs)
        return exchange(output, group, scattered=1, gathered=2), weights

    return attend_shared_rows


def exchange(x: Tensor, group: SequenceGroup, *, scattered: int, gathered: int) -> Tensor:
    """Cut dimension `scattered` into a part for each rank of the group; join what they send along dimension `gathered`.

    A collective, forward and backward, of ranks whose tensors have the same shape. The gradient is the exchange back.
    """
    result: Tensor = _Exchange.apply(x, group, scattered, gathered)
    return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup, scattered: int, gathered: int) -> Tensor:
        ctx.group, ctx.dims = group, (scattered, gathered)
        return _all_to_all(x, group, scattered, gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        scattered, gathered = ctx.dims
        return _all_to_all(grads[0], ctx.group, gathered, scattered), None, None, None


def _all_to_all(x: Tensor, group: SequenceGroup, scattered: int, gathered: int) -> Tensor:
    parts = x.unflatten(scattered, (group.size, -1)).movedim(scattered, 0).contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group.process_group)
    return received.movedim(0, gathered).flatten(gathered, gathered + 1)


def shard_step(batch: StepBatch, part: int, num_parts: int) -> StepBatch:
    """Part `part` of a step's rows. Sums over all parts of targets, pairs, row hashes and documents are the whole's."""
    return StepBatch(
        micro_batches=[shard(micro, part, num_parts) for micro in batch.micro_batches],
        row_hash=batch.row_hash if part == 0 else 0,
        documents=batch.documents if part == 0 else [],
    )


def shard(micro: MicroBatch, part: int, num_parts: int) -> MicroBatch:
    """Part `part` of the positions of every row, on the CPU; `num_parts` divides seq_len.

    Boundaries stay those of whole rows, which is what attention sees. The pairs are shared out like its work, evenly.
    """
    seq_len = micro.input_ids.shape[1]
    width = seq_len // num_parts
    start = part * width
    rows, columns = micro.target_index // seq_len, micro.target_index % seq_len
    is_own = (columns >= start) & (columns < start + width)
    return dataclasses.replace(
        micro,
        input_ids=micro.input_ids[:, start : start + width].contiguous(),
        position_ids=micro.position_ids[:, start : start + width].contiguous(),
        target_index=(rows * width + columns - start)[is_own],
        targets=micro.targets[is_own],
        pairs=(micro.pairs + part) // num_parts,
    )
