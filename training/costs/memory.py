"""How much memory a step takes on one GPU, part by part, known before anything is loaded. No torch.

Between steps a rank holds weights, gradient buffers, fp32 masters, and optimizer state. In a step come on top what autograd
keeps of every decoder layer for backward, what the loss head makes, whole weights that ZeRO-3 has gathered, and buffers of
gradients on their way. The most of it is alive either in the loss head, at the first layer of backward, or in the
update. Sizes follow the code that runs: transformers' LLaMA (or Liger's kernels), monteclora.low_rank, training.model.loss_head,
training.placements and DeepSpeed's stage3.py. HiddenKey's masks, a byte per channel, are left to the margin. In bytes
throughout.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

from monteclora.config import LoRAConfig, adapted, count_adapter_parameters
from training.costs.shape import EMBEDDING, Shape, saved_parameters

GiB = 2**30
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
NUM_STATES = {"adamw": 2, "lionw": 1}
"""fp32 optimizer states of a trained weight."""
BUCKET_ELEMENTS = 1 << 25
"""Of a bucket of the replicated placement (training/placements/replicated.py)."""

HEAD_CHUNK_BYTES = {"cpu": 30 * 2**20, "cuda": 512 * 2**20}
"""fp32 logits that the loss head makes at a time (training.model.loss_head)."""
RESERVED_BYTES = 2 * GiB
"""Of a GPU that a run can't use: the CUDA context, NCCL's and cuBLAS' buffers."""
MARGIN = 0.07
"""Part of a GPU's memory that is left free, for fragmentation of the allocator and what the model gets wrong."""

Placement = Literal["replicated", "zero3", "zero3_hpz", "zero3_offload"]


@dataclass(frozen=True, kw_only=True)
class ZeroOptions:
    """What the DeepSpeed configuration says about ZeRO-3's buffers, in elements."""

    reduce_bucket: int = 500_000_000
    """reduce_bucket_size: gradients that travel together, and the buffer that collects them."""
    prefetch_bucket: int = 50_000_000
    """stage3_prefetch_bucket_size: weights gathered ahead of their use."""
    persistence_threshold: int = 100_000
    """stage3_param_persistence_threshold: parameters up to this size stay whole on every rank."""
    max_reuse_distance: int = 1_000_000_000
    """stage3_max_reuse_distance: weights used again within so many are not released."""
    sub_group: int = 1_000_000_000
    """sub_group_size: elements updated at a time."""

    @classmethod
    def from_ds_config(cls, ds_config: dict[str, Any]) -> ZeroOptions:
        """What a DeepSpeed configuration says; its own defaults where it says nothing."""
        found = ds_config.get("zero_optimization", {})
        keys = {
            "reduce_bucket": "reduce_bucket_size", "prefetch_bucket": "stage3_prefetch_bucket_size",
            "persistence_threshold": "stage3_param_persistence_threshold",
            "max_reuse_distance": "stage3_max_reuse_distance", "sub_group": "sub_group_size",
        }  # fmt: skip
        return cls(**{name: int(found[key]) for name, key in keys.items() if key in found})


@dataclass(frozen=True, eq=False)
class Trained:
    """What trains in a model: everything, or an adapter on it and its modules_to_save."""

    shape: Shape
    adapter: LoRAConfig | None = None

    @functools.cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear layer."""
        return self.shape.linears()

    @functools.cached_property
    def ranks(self) -> dict[str, int]:
        """Rank of every adapted linear layer."""
        return {} if self.adapter is None else {n: self.adapter.rank_of(n) for n in adapted(self.linears, self.adapter)}

    @functools.cached_property
    def parameters(self) -> dict[str, int]:
        """Elements of the model's own parameters that train."""
        return self.shape.parameters() if self.adapter is None else saved_parameters(self.shape, self.adapter)

    @functools.cached_property
    def base_size(self) -> int:
        """Elements of the model without an adapter."""
        return self.shape.num_parameters()

    @functools.cached_property
    def adapter_size(self) -> int:
        """Elements of the adapter."""
        if self.adapter is None:
            return 0
        return count_adapter_parameters({name: self.linears[name] for name in self.ranks}, self.adapter)

    @functools.cached_property
    def size(self) -> int:
        """Elements that train."""
        return self.adapter_size + sum(self.parameters.values())

    @functools.cached_property
    def largest(self) -> int:
        """Elements of the largest parameter that trains."""
        low_rank = (rank * max(self.linears[name]) for name, rank in self.ranks.items())
        return max([0, *low_rank, *self.parameters.values()])

    @functools.cached_property
    def first_layer(self) -> int:
        """The first decoder layer that gradients reach."""
        names = [*self.ranks, *self.parameters]
        if EMBEDDING in names:
            return 0
        inside = [int(name.split(".")[2]) for name in names if name.startswith("model.layers.")]
        return min(inside, default=self.shape.layers)

    def keeps_input(self, *names: str) -> bool:
        """Whether any of these linear layers needs its input in backward."""
        return any(name in self.ranks or f"{name}.weight" in self.parameters for name in names)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A way to train a model, as far as its memory depends on it."""

    model: Trained
    placement: Placement = "zero3"
    ranks: int = 1
    ranks_per_node: int = 8
    micro_batch_rows: int = 1
    seq_len: int = 4096
    sequence_parallel: int = 1
    """Ranks that share a row."""
    recomputed_layers: int = 0
    """Decoder layers, the first ones, that keep their input only."""
    precision: Literal["bf16", "fp32"] = "bf16"
    optimizer: str = "adamw"
    passes_at_once: int = 1
    """2 when HiddenKey's two passes are one forward of the rows repeated."""
    target_fraction: float = 1.0
    """Part of the tokens that are targets."""
    kernels: Literal["torch", "liger"] = "torch"
    background_saves: bool = True
    """Whether checkpoints are written from a copy in host memory while training goes on."""
    device: Literal["cuda", "cpu"] = "cuda"
    zero: ZeroOptions = ZeroOptions()

    @property
    def tokens(self) -> int:
        """Tokens of a forward pass on one rank."""
        return self.micro_batch_rows * self.seq_len * self.passes_at_once // self.sequence_parallel

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight and of an activation."""
        return WEIGHT_BYTES[self.precision]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the moment when there are most, and in the host's memory, by part."""

    weights: float
    """The base's weights, or a rank's share of them, and those of the persistent parameters that are whole."""
    adapter: float
    """Weights of the adapter."""
    gradients: float
    """fp32 buffers that gradients are accumulated in, and ZeRO-3's buffer that collects them."""
    masters: float
    """fp32 masters of what trains."""
    optimizer: float
    """The optimizer's states."""
    activations: float
    """What is kept from forward to backward, and what backward makes of it on the way."""
    head: float
    """The loss head: a chunk of logits and the gradients computed from it."""
    buffers: float
    """Weights gathered for a moment, gradients on their way, the update's copies."""
    host: float = 0.0
    """Bytes of host memory per GPU (offload), without what `copy_bytes` says."""

    @property
    def total(self) -> float:
        """Bytes on the GPU."""
        return sum(getattr(self, name) for name in PARTS)

    @property
    def states(self) -> float:
        """Bytes that are held between two steps, whatever the batch."""
        return self.weights + self.adapter + self.gradients + self.masters + self.optimizer


PARTS = ("weights", "adapter", "gradients", "masters", "optimizer", "activations", "head", "buffers")
"""Parts of Memory that are on the GPU."""


def estimate(setup: Setup) -> Memory:
    """The memory of a training step."""
    model, b, n = setup.model, setup.weight_bytes, setup.ranks
    is_zero = setup.placement != "replicated"
    share = n if is_zero else 1
    weights, adapter = b * model.base_size / share, adapter_bytes(setup) * model.adapter_size / share
    if is_zero:
        whole, whole_adapter = persistent_sizes(setup)
        weights, adapter = weights + b * whole * (n > 1), adapter + b * whole_adapter * (n > 1)
    if setup.placement == "zero3_hpz" and setup.ranks > setup.ranks_per_node:
        weights += b * (model.base_size + model.adapter_size) / setup.ranks_per_node
    masters, gradients = 4 * model.size / n, 4 * model.size / share + b * setup.zero.reduce_bucket * is_zero
    states = 4 * num_states(setup) / n
    host = 0.0
    if setup.placement == "zero3_offload":
        # Masters, states, and the masters' gradients move; what gradients are accumulated in does not.
        host, masters, states = 2 * masters + states, 0.0, 0.0
    head_kept, head_now = _head(setup)
    kept, backward_now = _activations(setup)
    gathered, in_use, gradient, reduction, update = _buffers(setup)
    # Whether ZeRO-3's bucket is full for the first time while the activations of almost all layers are still there.
    reduces_early = is_zero and setup.zero.reduce_bucket < model.size / (setup.model.shape.layers + 1)
    moments = {
        # (activations, head, buffers)
        "head": (kept, head_kept + head_now, gathered),
        "backward": (kept + backward_now, head_kept, gathered + gradient + reduction * reduces_early),
        "reduction": (0.0, 0.0, in_use + gradient + reduction),
        "update": (0.0, 0.0, update),
    }
    activations, head, buffers = max(moments.values(), key=sum)
    return Memory(
        weights=weights, adapter=adapter, gradients=gradients, masters=masters, optimizer=states,
        activations=activations, head=head, buffers=buffers, host=host,
    )  # fmt: skip


def adapter_bytes(setup: Setup) -> int:
    """Bytes of a weight of the adapter, which starts in fp32; DeepSpeed makes it like the others."""
    return 4 if setup.placement == "replicated" else setup.weight_bytes


def num_states(setup: Setup) -> int:
    """Elements of the optimizer's states: with muon one of a matrix inside the decoder layers, and AdamW's two of all else."""
    if setup.optimizer != "muon":
        return NUM_STATES[setup.optimizer] * setup.model.size
    matrices = sum(math.prod(sides) for name, sides in setup.model.linears.items() if name != "lm_head")
    return 2 * setup.model.size - matrices


def checkpoint_bytes(setup: Setup) -> int:
    """Bytes of a checkpoint, of all ranks: fp32 masters and optimizer states of what trains."""
    return 4 * (setup.model.size + num_states(setup))


def copy_bytes(setup: Setup) -> float:
    """Bytes of host memory per GPU that checkpoints are copied to, from the first step to the last."""
    return checkpoint_bytes(setup) / setup.ranks if setup.background_saves else 0.0


def persistent_sizes(setup: Setup) -> tuple[int, int]:
    """Elements of the model and of the adapter in parameters that ZeRO-3 leaves whole."""
    limit, model = setup.zero.persistence_threshold, setup.model
    low_rank = (rank * side for name, rank in model.ranks.items() for side in model.linears[name])
    own = model.shape.parameters().values()
    return sum(size for size in own if size <= limit), sum(size for size in low_rank if size <= limit)


def _head(setup: Setup) -> tuple[float, float]:
    """Bytes of the loss head that stay until its backward, and that are gone after its forward."""
    model, b = setup.model, setup.weight_bytes
    hidden, vocab, targets = model.shape.hidden, model.shape.vocab, setup.tokens * setup.target_fraction
    kept = b * targets * hidden
    chunk = vocab * min(targets, max(1, HEAD_CHUNK_BYTES[setup.device] // (4 * vocab)))
    # Logits and log-probabilities in fp32, the latter rounded.
    now = chunk * (8 if b == 4 else 10)
    if (EMBEDDING if model.shape.is_tied else "lm_head.weight") in model.parameters:
        kept += 4 * vocab * hidden
        # The product that is added to the weight's gradient, which the CPU makes fp32 of first.
        now += vocab * hidden * (0 if b == 4 else 6 if setup.device == "cpu" else 2)
    # And the final norm's output, and its rows with a target.
    return kept, now + b * hidden * (setup.tokens + targets)


def _activations(setup: Setup) -> tuple[float, float]:
    """Bytes kept for backward at its beginning, and the most that backward adds before it has released a layer."""
    shape, b, tokens = setup.model.shape, setup.weight_bytes, setup.tokens
    layers = [_layer_bytes(setup, k) for k in range(shape.layers)]
    recomputed = min(setup.recomputed_layers, shape.layers)
    kept = sum(layers[recomputed:]) + b * shape.hidden * recomputed
    # The final norm, and the rotations of queries and keys.
    kept += (4 + b * ("model.norm.weight" in setup.model.parameters)) * shape.hidden + 2 * b * shape.head_dim
    kept_now = max(layers[:recomputed], default=0.0) if recomputed == shape.layers else 0.0
    # The gradients of a feed-forward layer's three products beside that of the residual stream.
    temporary = b * (2 * shape.intermediate + 3 * shape.hidden)
    return tokens * kept, tokens * (kept_now + temporary)


def _layer_bytes(setup: Setup, layer: int) -> float:
    """Bytes per token that autograd keeps of a decoder layer; a tensor that several operators keep counts once."""
    model, shape, b = setup.model, setup.model.shape, setup.weight_bytes
    if layer < model.first_layer:
        return 0.0
    own = f"model.layers.{layer}"
    query, key, value, output = (f"{own}.self_attn.{name}_proj" for name in "qkvo")
    gate, up, down = (f"{own}.mlp.{name}_proj" for name in ("gate", "up", "down"))
    total = 0
    for norm in ("input_layernorm", "post_attention_layernorm"):
        # torch's keeps its input in fp32 if that has a gradient, and, if it trains, what its weight multiplies; Liger's
        # its input. Nothing trains before the first layer's.
        has_gradient = layer > model.first_layer or norm != "input_layernorm" or EMBEDDING in model.parameters
        trains = f"{own}.{norm}.weight" in model.parameters
        torch_keeps = 4 * has_gradient + b * trains
        total += (b * (has_gradient or trains) if setup.kernels == "liger" else torch_keeps) * shape.hidden
    total += b * shape.hidden * (model.keeps_input(query, key, value) + model.keeps_input(gate, up))
    # Rotated queries and keys, values, the output; on the CPU documents are put together in a copy of it.
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total += b * (2 * attention + 2 * kv) + 4 * shape.heads
    total += b * attention * (setup.device == "cpu" and model.keeps_input(output))
    # Input and output of silu, and up; Liger computes the output again.
    products = (2 if setup.kernels == "liger" else 3) + model.keeps_input(down)
    total += b * shape.intermediate * products
    for name in (query, key, value, output, gate, up, down):
        if model.adapter is not None and name in model.ranks:
            total += b * model.ranks[name] + model.linears[name][0] * (model.adapter.dropout > 0)
    return total


def _buffers(setup: Setup) -> tuple[float, float, float, float, float]:
    """Bytes of weights gathered when backward begins, of those gathered at any time, of a gradient before it is collected,
    of a reduction, and of what the update adds.
    """
    b, n, zero, model = setup.weight_bytes, setup.ranks, setup.zero, setup.model
    gradient = b * model.largest
    if setup.placement == "replicated":
        # A rank's sums of gradients; of two buckets its updated weights, and those of all ranks, which gloo gathers into a copy.
        all_updated = b * (model.size - model.adapter_size) + adapter_bytes(setup) * model.adapter_size
        updated = all_updated * min(1.0, 2 * max(BUCKET_ELEMENTS, model.largest) / max(1, model.size))
        copies = 1 / n + (2 if setup.device == "cpu" else 1)
        return 0.0, 0.0, gradient, 0.0, (4 * model.size / n + updated * copies) * (n > 1)
    largest = max(model.shape.parameters().values())
    sharded = model.base_size + model.adapter_size - sum(persistent_sizes(setup))
    if EMBEDDING not in model.parameters and not model.shape.is_tied and not setup.recomputed_layers:
        # Backward has no use for it. (With recomputation it is not let go, as measured.)
        sharded -= model.shape.vocab * model.shape.hidden
    # Weights in use and the next; the last layers' of forward, which backward comes back to soon.
    in_use = b * min(sharded, zero.prefetch_bucket + largest) * (n > 1)
    gathered = max(in_use, b * min(sharded, zero.max_reuse_distance // 2) * (n > 1))
    # The bucket's gradients in the order of the ranks, and this rank's part of them in fp32.
    reduction = max(min(zero.reduce_bucket, model.size), model.largest) * (b + 4 * (b < 4) / n)
    # The gradients of a group of parameters as one tensor, and their squares in fp64 for the norm.
    update = 4 * min(zero.sub_group, model.size / n) + 8 * model.largest / n
    return gathered, in_use, gradient, reduction, update * (setup.placement != "zero3_offload")


def usable_bytes(device_bytes: float) -> float:
    """What a run may plan with on a GPU of this memory."""
    return device_bytes * (1 - MARGIN) - RESERVED_BYTES


def layers_to_recompute(setup: Setup, budget_bytes: float) -> int | None:
    """The fewest layers to recompute for a step to fit into `budget_bytes`, or None when even all don't do."""
    low, high = 0, setup.model.shape.layers

    def fits(layers: int) -> bool:
        return estimate(dataclasses.replace(setup, recomputed_layers=layers)).total <= budget_bytes

    if fits(0):
        return 0
    if not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def largest_micro_batch(setup: Setup, budget_bytes: float, most: int) -> int:
    """The largest number of rows per forward, up to `most`, with which a step fits; 0 when none does."""
    for rows in range(most, 0, -1):
        if estimate(dataclasses.replace(setup, micro_batch_rows=rows)).total <= budget_bytes:
            return rows
    return 0
