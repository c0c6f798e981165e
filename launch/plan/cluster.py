"""The machines that a run is planned for, and what they reach of what their vendors promise.

The constants come from published measurements of training and of networks:

    EFFICIENCY       MosaicML llm-foundry's table: MPT-7B on 8 H100, bf16: 10,643 tokens/s per GPU without recomputation (44 % of
                     989 TFLOP/s, causal attention) and 8,611 with it at 4,096 tokens per row (50 %, recomputation included);
                     DeepSpeed ZeRO-2 with Llama-3.1-8B on 8 H200 (stas00/ml-engineering): 47 %; Megatron-LM: 41 to 48 %.
    DOUBLING         llm-foundry: 10,643 tokens/s per GPU on one node, 9,670 on 64: 91 % after six doublings.
    NETWORK, HALF    stas00/ml-engineering: 36.5 of a NIC's 50 GB/s at 1 GiB, 6 at 16 MiB; on NVLink 361 GB/s, 11.7 at 256 KiB.
    COPY_RATE        a careful half of what a PCIe 5.0 link of 16 lanes carries in one direction, 63 GB/s.
    HASH_RATE        hashlib's SHA-256 of a file in memory on an EPYC core with SHA instructions that others use too: 0.67 GB/s.
    OFFLOAD          ml-engineering: Llama-3.1-8B, ZeRO-3 with recomputation and offload on 8 H200: 141 TFLOP/s per GPU at 8k
                     tokens, of which 1.8 s per step are the update of 8e9 weights of a node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.costs.communication import Collective
from training.costs.memory import GiB

EFFICIENCY = 0.45
"""Part of the peak that matrix products and attention reach, everything between them included."""
DOUBLING = 0.015
"""Part of the step's time that every doubling of the nodes adds, for waiting for the slowest."""
EXPOSED = 0.25
"""Part of the shorter of computing and communicating that isn't hidden behind the longer (an assumption)."""
NETWORK_EFFICIENCY = 0.73
"""Part of a NIC's rate that large messages reach."""
HALF_MESSAGE_BETWEEN, HALF_MESSAGE_INSIDE = 81 * 2**20, 7.6 * 2**20
"""Bytes of a message that reaches half of that rate, between nodes and inside one."""
UPDATE_SECONDS = 1.1e-11
"""Per weight of a rank's share: AdamW reads and writes 28 bytes of it, at 2.5 TB/s."""
OFFLOAD_SECONDS = 2.2e-10
"""Per weight of a node's share, when masters and optimizer state are in host memory."""
COPY_RATE = 25e9
"""Bytes per second of a checkpoint's copy from a GPU to page-locked memory of its host (an assumption)."""
HOST_COPY_RATE = 4e9
"""Bytes per second and rank of a copy within the host's memory, or to memory that is not page-locked (an assumption)."""
HASH_RATE = 0.67e9
"""Bytes per second and rank of SHA-256."""
STALL_SECONDS = 0.05
"""Of every save, beside the copy: what the ranks tell each other (an assumption)."""
CHECKPOINT_SECONDS = 0.5
"""Of completing a checkpoint of any size: the manifest, the name, older ones that are deleted (an assumption)."""
HOST_MARGIN = 0.1
"""Part of a node's memory that is left to the system and to the processes of ranks and data (an assumption)."""

GPUS = {
    # GiB of memory; GB/s of an all-gather inside a node.
    "H100": (80, 361), "H200": (141, 361), "A100": (80, 230), "B200": (180, 700), "L40S": (48, 25), "MI300X": (192, 310),
}  # fmt: skip
"""Accelerators by name; their FLOP/s are in training.costs.flops."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of equal GPUs."""

    nodes: int
    gpus_per_node: int
    gpu: str
    """Name of the GPU, for the tables."""
    memory_bytes: float
    """Of one GPU."""
    peak_flops: float
    """bf16 FLOP/s of one GPU."""
    between: float
    """Bytes per second and GPU between nodes, as the wire has it."""
    inside: float
    """Bytes per second that an all-gather inside a node reaches."""
    host_memory_bytes: float | None = None
    """Memory of a node beside its GPUs'; None when it isn't known."""

    @property
    def ranks(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_host_bytes(self) -> float:
        """What a run may plan with of a node's memory; unlimited when it isn't known."""
        return math.inf if self.host_memory_bytes is None else self.host_memory_bytes * (1 - HOST_MARGIN)

    def seconds(self, collective: Collective, message_bytes: float) -> float:
        """Time of collectives in messages of this size, with nothing else going on."""
        inside = self.inside / (1 + HALF_MESSAGE_INSIDE / message_bytes)
        between = NETWORK_EFFICIENCY * self.between / (1 + HALF_MESSAGE_BETWEEN / message_bytes)
        return max(collective.wire_bytes / inside, self._crossing_bytes(collective) / between)

    def floor_seconds(self, collective: Collective) -> float:
        """Time of collectives at the full rate of every link."""
        return max(collective.wire_bytes / self.inside, self._crossing_bytes(collective) / self.between)

    def _crossing_bytes(self, collective: Collective) -> float:
        """Bytes through each NIC for k nodes of g GPUs: S (k - 1) / k / g, or S (k - 1) / k when S is each rank's own."""
        nodes = collective.ranks / self.gpus_per_node
        if nodes <= 1:
            return 0.0
        is_own = collective.name == "positions"
        return collective.size * (nodes - 1) / nodes / (1 if is_own else self.gpus_per_node)


def memory_of(gibibytes: float) -> float:
    """Bytes of a GPU that is sold with so many GB, which are GiB."""
    return gibibytes * GiB
