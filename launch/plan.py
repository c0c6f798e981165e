"""Will it fit, and how much is it? Arithmetic on a recipe; no torch, no GPU, nothing started."""

from __future__ import annotations

import dataclasses
from typing import Any

from monteclora.config import count_adapter_parameters, is_target
from training.config import Config, Kind, base_shape

BYTES_PER_WEIGHT = {"bf16": 2, "fp32": 4}
STATE_BYTES = 16
"""Per trained parameter: fp32 gradient 4, fp32 master 4, two fp32 moments of AdamW 8."""
CHECKPOINT_BYTES = 12
"""Per trained parameter: fp32 master and two moments."""


class PlanError(ValueError):
    """The shape of the model can't be known from here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What memory depends on: the sizes of a LLaMA."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    is_tied: bool

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear of the decoder layers, by full name."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        one = {
            "self_attn.q_proj": (self.hidden, attention), "self_attn.k_proj": (self.hidden, kv),
            "self_attn.v_proj": (self.hidden, kv), "self_attn.o_proj": (attention, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate), "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip
        return {f"model.layers.{k}.{name}": sizes for k in range(self.layers) for name, sizes in one.items()}

    def num_parameters(self) -> int:
        """All parameters: linears, norms, embedding and, unless tied, the output head."""
        linears = sum(fan_in * fan_out for fan_in, fan_out in self.linears().values())
        norms = (2 * self.layers + 1) * self.hidden
        return linears + norms + self.vocab * self.hidden * (1 if self.is_tied else 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one way of training costs."""

    kind: Kind
    total_parameters: int
    trainable_parameters: int
    state_bytes_per_rank: float
    """Weights, gradients, masters and optimizer state on one rank, everything partitioned; without activations."""
    checkpoint_bytes: int
    micro_batches_per_step: int
    tokens_per_step: int
    tokens: int


def shape_of(config: Config) -> Shape:
    """The model's shape, from the recipe's architecture or the base folder's config.json.

    Raises:
        PlanError: when the base is a hub name or its config.json says too little.
    """
    if config.model.base is None:
        ours = config.model.architecture
        return Shape(
            hidden=ours.hidden_size, intermediate=ours.intermediate_size, layers=ours.num_layers, heads=ours.num_heads,
            kv_heads=ours.num_kv_heads, head_dim=ours.hidden_size // ours.num_heads, vocab=ours.vocab_size,
            is_tied=ours.tie_embeddings,
        )  # fmt: skip
    found = base_shape(config.model.base)
    if found is None:
        raise PlanError(
            f"model.base = {config.model.base!r} has no config.json here; download the model and give its folder"
        )
    try:
        return from_hugging_face(found)
    except KeyError as error:
        raise PlanError(f"{config.model.base}/config.json has no {error}: not a LLaMA-style model") from error


def from_hugging_face(found: dict[str, Any]) -> Shape:
    """The shape in a LLaMA's config.json."""
    hidden, heads = found["hidden_size"], found["num_attention_heads"]
    return Shape(
        hidden=hidden, intermediate=found["intermediate_size"], layers=found["num_hidden_layers"], heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads, head_dim=found.get("head_dim") or hidden // heads,
        vocab=found["vocab_size"], is_tied=bool(found.get("tie_word_embeddings")),
    )  # fmt: skip


def make_plan(config: Config, shape: Shape, ranks: int, kind: Kind) -> Plan:
    """The cost of training with `adapter.kind = kind` on `ranks` ranks.

    Raises:
        PlanError: when an adapter would have nothing to adapt.
    """
    chosen = dataclasses.replace(config.adapter, kind=kind).build()
    base = shape.num_parameters()
    if chosen is None:
        total = trainable = base
    else:
        linears = {**shape.linears(), "lm_head": (shape.hidden, shape.vocab)}
        targets = [sizes for name, sizes in linears.items() if is_target(name, chosen.targets)]
        if not targets:
            raise PlanError(f"adapter.targets {', '.join(chosen.targets)}: no linear layer of the model matches")
        trainable = count_adapter_parameters(targets, chosen)
        total = base + trainable
    weights = BYTES_PER_WEIGHT[config.train.precision] * total
    return Plan(
        kind=kind,
        total_parameters=total,
        trainable_parameters=trainable,
        state_bytes_per_rank=(weights + STATE_BYTES * trainable) / ranks,
        checkpoint_bytes=CHECKPOINT_BYTES * trainable,
        micro_batches_per_step=config.train.global_batch_rows // (ranks * config.train.micro_batch_rows),
        tokens_per_step=config.train.global_batch_rows * config.data.seq_len,
        tokens=config.train.steps * config.train.global_batch_rows * config.data.seq_len,
    )
