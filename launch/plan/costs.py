"""What one way of training costs on a cluster: memory, FLOPs, bytes on the wire, seconds.

A step takes::

    max(computing, network) + EXPOSED min(computing, network) + update, times 1 + DOUBLING log2(nodes)

    computing = (model FLOPs + recomputed ones) / (EFFICIENCY peak)      floor = max(FLOPs / peak, network at full rate)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.plan import cluster as known
from launch.plan.cluster import Cluster
from training.costs.communication import collectives
from training.costs.flops import step_flops
from training.costs.memory import BUCKET_ELEMENTS, Memory, Setup, checkpoint_bytes, copy_bytes, estimate


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one optimizer step, unless it says otherwise."""

    setup: Setup
    micro_batches: int
    """Per rank."""
    memory: Memory
    """Of one GPU."""
    flops: float
    """Model FLOPs of all GPUs, recomputation not counted."""
    wire_bytes: float
    """That each GPU sends."""
    compute_seconds: float
    network_seconds: float
    update_seconds: float
    step_seconds: float
    """Predicted."""
    floor_seconds: float
    """What physics asks for: FLOPs at the GPU's peak, or every collective over its own ranks at the full rate of their
    links, whichever takes longer."""
    tokens: int
    """Input tokens of all GPUs."""

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.tokens / self.step_seconds

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Of one GPU."""
        return self.tokens_per_second / self.setup.ranks

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint."""
        return checkpoint_bytes(self.setup)

    @property
    def host_bytes(self) -> float:
        """Of a node's memory: what is offloaded, and the copies that checkpoints are written from."""
        return self.setup.ranks_per_node * (self.memory.host + copy_bytes(self.setup))


def costs_of(setup: Setup, cluster: Cluster, *, rows_per_step: int, forwards: int, backwards: int) -> Costs:
    """The costs of a step over so many rows, of which HiddenKey may make several passes."""
    shape, model = setup.model.shape, setup.model
    tokens = rows_per_step * setup.seq_len
    pairs = rows_per_step * setup.seq_len * (setup.seq_len + 1) / 2
    targets = tokens * setup.target_fraction
    flops = step_flops(
        shape, model.adapter, tokens=tokens, targets=targets, pairs=pairs, forwards=forwards, backwards=backwards
    )
    forward = step_flops(shape, model.adapter, tokens=tokens, targets=0, pairs=pairs, backwards=0)
    done = flops + backwards * forward * setup.recomputed_layers / shape.layers
    ranks = setup.ranks
    micro_batches = rows_per_step * setup.sequence_parallel // (ranks * setup.micro_batch_rows)
    compute = done / ranks / (known.EFFICIENCY * cluster.peak_flops)
    sent = collectives(setup, micro_batches * (forwards if setup.passes_at_once == 1 else 1))
    network = sum(cluster.seconds(each, _message_bytes(setup, each.name)) for each in sent)
    if setup.placement == "zero3_offload":
        update = known.OFFLOAD_SECONDS * model.size / cluster.nodes
    else:
        update = known.UPDATE_SECONDS * model.size / ranks
    ideal = max(compute, network) + known.EXPOSED * min(compute, network) + update
    return Costs(
        setup=setup, micro_batches=micro_batches, memory=estimate(setup), flops=flops,
        wire_bytes=sum(each.wire_bytes for each in sent),
        compute_seconds=compute, network_seconds=network, update_seconds=update,
        step_seconds=ideal * (1 + known.DOUBLING * math.log2(cluster.nodes)),
        floor_seconds=max(done / ranks / cluster.peak_flops, sum(cluster.floor_seconds(each) for each in sent)),
        tokens=tokens,
    )  # fmt: skip


def _message_bytes(setup: Setup, name: str) -> float:
    """Bytes of one collective of this kind."""
    b, zero = setup.weight_bytes, setup.zero
    shape = setup.model.shape
    if name == "positions":
        return float(b * setup.tokens * shape.heads * shape.head_dim)
    if setup.placement == "replicated":
        return max(1.0, 4 * min(BUCKET_ELEMENTS, setup.model.size))
    if name == "gradients":
        return max(1.0, b * min(zero.reduce_bucket, setup.model.size))
    layer_part = shape.hidden * max(shape.intermediate, shape.hidden)
    return float(b * max(1, min(max(zero.prefetch_bucket, layer_part), setup.model.base_size)))
