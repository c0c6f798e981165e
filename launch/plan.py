"""Will it fit, and how much is it? Arithmetic on a recipe; no torch, no GPU, nothing started."""

from __future__ import annotations

import dataclasses

from training.config import Config, Kind, base_shape
from training.shape import Shape, adapter_problems, count_trained, from_hugging_face

BYTES_PER_WEIGHT = {"bf16": 2, "fp32": 4}
STATE_BYTES = 16
"""Per trained parameter: fp32 gradient 4, fp32 master 4, two fp32 moments of AdamW 8."""
CHECKPOINT_BYTES = 12
"""Per trained parameter: fp32 master and two moments."""


class PlanError(ValueError):
    """The shape of the model can't be known from here."""


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
        return config.model.architecture.shape()
    found = base_shape(config.model.base)
    if found is None:
        raise PlanError(
            f"model.base = {config.model.base!r} has no config.json here; download the model and give its folder"
        )
    try:
        return from_hugging_face(found)
    except KeyError as error:
        raise PlanError(f"{config.model.base}/config.json has no {error}: not a LLaMA-style model") from error


def make_plan(config: Config, shape: Shape, ranks: int, kind: Kind) -> Plan:
    """The cost of training with `adapter.kind = kind` on `ranks` ranks.

    Raises:
        PlanError: when the model does not fit the adapter's settings.
    """
    chosen = dataclasses.replace(config.adapter, kind=kind).build()
    total = trainable = shape.num_parameters()
    if chosen is not None:
        if problems := list(adapter_problems(chosen, shape)):
            raise PlanError("; ".join(f"adapter.{name} {message}" for name, message in problems))
        added, trainable = count_trained(shape, chosen)
        total += added
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
