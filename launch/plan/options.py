"""All ways to train a recipe on a cluster, and the one to take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launch.plan.cluster import Cluster
from launch.plan.costs import Costs, costs_of
from training.costs.memory import Placement, Setup, layers_to_recompute, usable_bytes

PLACEMENTS: tuple[Placement, ...] = ("replicated", "zero3", "zero3_hpz", "zero3_offload")
"""From the simplest to the last resort: of equally fast ones the earlier is taken."""
ALIKE = 0.02
"""Part of the speed within which two ways count as equally fast."""
ENOUGH_TOKENS = 16384
"""Tokens of a micro-batch from which on a larger one no longer makes matrix products faster."""
MOST_TOKENS = 4 * ENOUGH_TOKENS
"""Tokens of the largest micro-batch that is looked at, unless one row has more."""
SHORTEST = 512
"""Tokens of the shortest rows that are advised."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step is, whoever does it."""

    setup: Setup
    """Model, rows and precision; placement, micro-batch and recomputation are to be chosen."""
    rows_per_step: int
    forwards: int = 1
    backwards: int = 1


def options(work: Work, cluster: Cluster) -> list[Costs]:
    """The costs of every placement and micro-batch, with as little recomputation as fits, or all where nothing does."""
    base = dataclasses.replace(work.setup, ranks=cluster.ranks, ranks_per_node=cluster.gpus_per_node)
    rows_per_rank = work.rows_per_step * base.sequence_parallel // cluster.ranks
    found = []
    for placement in PLACEMENTS:
        if placement == "zero3_hpz" and cluster.nodes == 1:
            continue
        for rows in _micro_batches(rows_per_rank, base.seq_len):
            setup = dataclasses.replace(base, placement=placement, micro_batch_rows=rows)
            layers = layers_to_recompute(setup, usable_bytes(cluster.memory_bytes))
            setup = dataclasses.replace(setup, recomputed_layers=setup.model.shape.layers if layers is None else layers)
            found.append(
                costs_of(
                    setup, cluster, rows_per_step=work.rows_per_step, forwards=work.forwards, backwards=work.backwards
                )
            )
    return found


def _micro_batches(rows_per_rank: int, seq_len: int) -> list[int]:
    most = max(1, min(rows_per_rank, MOST_TOKENS // seq_len))
    return [rows for rows in range(1, most + 1) if rows_per_rank % rows == 0]


def fits(costs: Costs, cluster: Cluster) -> bool:
    """Whether GPUs and host memory have room for it, with the margin that is left for what the model doesn't know."""
    return costs.memory.total <= usable_bytes(cluster.memory_bytes) and costs.host_bytes <= cluster.usable_host_bytes


def recommend(found: list[Costs], cluster: Cluster) -> Costs | None:
    """The fastest that fits; of equally fast ones the simplest placement, then the best filled micro-batch."""
    fitting = [costs for costs in found if fits(costs, cluster)]
    if not fitting:
        return None
    fastest = max(costs.tokens_per_second for costs in fitting)
    return min(
        (costs for costs in fitting if costs.tokens_per_second >= (1 - ALIKE) * fastest),
        key=lambda costs: (PLACEMENTS.index(costs.setup.placement), -_fill(costs), costs.setup.micro_batch_rows),
    )


def _fill(costs: Costs) -> int:
    return min(costs.setup.tokens, ENOUGH_TOKENS)


def best_per_placement(found: list[Costs], cluster: Cluster) -> Iterator[Costs]:
    """Of every placement what `recommend` says, or what comes nearest to fitting."""
    for placement in dict.fromkeys(costs.setup.placement for costs in found):
        own = [costs for costs in found if costs.setup.placement == placement]
        yield recommend(own, cluster) or min(own, key=lambda costs: costs.memory.total)


def largest_micro_batch(found: list[Costs], cluster: Cluster) -> int | None:
    """Rows of the largest micro-batch that fits in any placement."""
    return max((costs.setup.micro_batch_rows for costs in found if fits(costs, cluster)), default=None)


def enough_nodes(work: Work, cluster: Cluster, can_run: Callable[[int], bool]) -> Cluster | None:
    """The cluster with its nodes doubled until something fits, or None when that takes more than 1,024 GPUs.

    `can_run` tells whether the step can be cut for so many ranks.
    """
    for doublings in range(1, max(1, int(math.log2(1024 / cluster.ranks))) + 1):
        larger = dataclasses.replace(cluster, nodes=cluster.nodes * 2**doublings)
        if can_run(larger.ranks) and recommend(options(work, larger), larger) is not None:
            return larger
    return None


def enough_sharing(work: Work, cluster: Cluster) -> int | None:
    """The fewest ranks per row with which something fits, or None where the model and the step can't be cut so."""
    setup, ranks = work.setup, cluster.ranks
    for size in range(setup.sequence_parallel + 1, setup.model.shape.kv_heads + 1):
        if (
            setup.model.shape.kv_heads % size
            or setup.seq_len % size
            or ranks % size
            or work.rows_per_step % (ranks // size)
        ):
            continue
        cut = dataclasses.replace(work, setup=dataclasses.replace(setup, sequence_parallel=size))
        if recommend(options(cut, cluster), cluster) is not None:
            return size
    return None


def short_enough(work: Work, cluster: Cluster) -> int | None:
    """Half, a quarter, ... of the tokens of a row with which something fits, or None when that takes fewer than SHORTEST."""
    seq_len = work.setup.seq_len // 2
    while seq_len >= SHORTEST:
        cut = dataclasses.replace(work, setup=dataclasses.replace(work.setup, seq_len=seq_len))
        if seq_len % work.setup.sequence_parallel == 0 and recommend(options(cut, cluster), cluster) is not None:
            return seq_len
        seq_len //= 2
    return None
