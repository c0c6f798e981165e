"""Bytes that a step puts on the wire, by collective, known before anything is started. No torch.

Over n ranks an all-gather of S bytes and a reduce-scatter of S bytes each make a rank send S (n - 1) / n; training.watch.traffic
counts the same in the collectives of a run. ZeRO-3 gathers the weights in every forward and every backward pass and
reduces gradients after every micro-batch; a replicated model reduces its gradients once per step, in fp32, and gathers what
was updated. An all-to-all of S bytes on each rank sends S (n - 1) / n of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.costs.memory import Setup, adapter_bytes, persistent_sizes


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of a step that are alike: all-gathers, reduce-scatters or, of a rank's own bytes, all-to-alls."""

    name: str
    """What travels, and when."""
    size: float
    """Bytes of the whole, of all of them together."""
    ranks: int
    """Ranks that take part, on neighbouring places."""

    @property
    def wire_bytes(self) -> float:
        """Bytes that each rank sends."""
        return self.size * (self.ranks - 1) / self.ranks


def collectives(setup: Setup, micro_batches: int) -> list[Collective]:
    """What travels in a step of so many micro-batches per rank."""
    return [*_of_parameters(setup, micro_batches), *_of_positions(setup, micro_batches)]


def _of_parameters(setup: Setup, micro_batches: int) -> list[Collective]:
    model, b, n = setup.model, setup.weight_bytes, setup.ranks
    if setup.placement == "replicated":
        own = model.size - model.adapter_size
        return [
            Collective(name="gradients", size=4 * model.size, ranks=n),
            Collective(name="updated weights", size=b * own + adapter_bytes(setup) * model.adapter_size, ranks=n),
        ]
    whole, whole_adapter = persistent_sizes(setup)
    sharded = model.base_size + model.adapter_size - whole - whole_adapter
    # The last layers of forward are the first of backward, and stay gathered in between.
    again = max(0, sharded - setup.zero.max_reuse_distance // 2)
    is_hpz = setup.placement == "zero3_hpz" and n > setup.ranks_per_node
    return [
        Collective(name="weights, forward", size=b * sharded * micro_batches, ranks=n),
        Collective(
            name="weights, backward", size=b * again * micro_batches, ranks=setup.ranks_per_node if is_hpz else n
        ),
        Collective(name="weights, recomputed", size=b * _gathered_once_more(setup) * micro_batches, ranks=n),
        Collective(name="gradients", size=b * model.size * micro_batches, ranks=n),
        Collective(name="updated weights", size=b * (whole + whole_adapter), ranks=n),
    ]


def _gathered_once_more(setup: Setup) -> int:
    """Elements that are let go between recomputation and backward: frozen weights, but the last, which is not recomputed.

    Weights that train are kept in between (DeepSpeed 0.19.8, as counted in its collectives).
    """
    if setup.model.adapter is None:
        return 0
    sizes = {name: math.prod(sides) for name, sides in setup.model.linears.items() if name.startswith("model.layers.")}
    return sum(
        size for name, size in sizes.items()
        if size > setup.zero.persistence_threshold and not name.endswith("down_proj")
        and int(name.split(".")[2]) < setup.recomputed_layers
    )  # fmt: skip


def _of_positions(setup: Setup, micro_batches: int) -> list[Collective]:
    """All-to-alls of ranks that share rows: queries, keys, values and the output of every layer, there and back."""
    if setup.sequence_parallel == 1:
        return []
    shape = setup.model.shape
    once = setup.tokens * 2 * (shape.heads + shape.kv_heads) * shape.head_dim * setup.weight_bytes
    passes = 2 * shape.layers + setup.recomputed_layers
    return [Collective(name="positions", size=once * passes * micro_batches, ranks=setup.sequence_parallel)]


def step_bytes(setup: Setup, micro_batches: int) -> float:
    """Bytes that each rank sends in a step of so many micro-batches."""
    return sum(each.wire_bytes for each in collectives(setup, micro_batches))
