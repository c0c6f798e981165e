"""The model of a run with everything that is attached to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from monteclora import Adapter, HiddenKey, attach_adapter, attach_hidden_key
from monteclora.merge import check_mergeable
from training.config import Config
from training.costs.fitting import check_fits, recomputed_layers
from training.model.attention import attention_for
from training.model.build import build_model
from training.model.compiling import compile_layers
from training.model.initial_adapter import load_adapter
from training.model.kernels import use_kernels
from training.model.sequence_parallel import SequenceGroup, use_shared_rows
from training.world import World


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A model that is ready to be placed."""

    model: PreTrainedModel
    adapter: Adapter | None
    hidden_key: HiddenKey | None
    recomputed_layers: int
    """Decoder layers, the first ones, whose activations are recomputed in backward."""
    kernels: str
    """Whose kernels norms, rotary embedding and feed-forward product use."""


def assemble(config: Config, ds_config: dict[str, Any], world: World, device: torch.device) -> Assembly:
    """Load the base, or draw it, and attach what trains in it (a collective).

    Args:
        config: with its lengths resolved.
        ds_config: what placements.prepare has returned.
        world: this rank and all others.
        device: of this rank.

    Raises:
        ConfigError: the run does not fit its devices.
        ModelError: the base can't be loaded.
        AdapterError: the adapter does not fit the base.
    """
    check_fits(config, ds_config, world, device)
    recomputed = recomputed_layers(config, ds_config, world, device)
    model = build_model(
        config.model, placement=config.train.placement, precision=config.train.precision, ds_config=ds_config,
        seed=config.run.seed, world=world, device=device, attention=_attention(config, world),
        recomputed_layers=recomputed,
    )  # fmt: skip
    adapter_config, hidden_key_config = config.adapter.build(), config.hidden_key.build()
    adapter = attach_adapter(model, adapter_config, seed=config.run.seed) if adapter_config else None
    if adapter is not None and config.adapter.init_from is not None:
        load_adapter(adapter, config.adapter.init_from, world)
    if config.checkpoint.export_merged:
        # Of a base from the hub it is known only here.
        check_mergeable(model)
    hidden_key = attach_hidden_key(model, hidden_key_config) if hidden_key_config else None
    # What is compiled is fused already.
    is_compiled = config.model.compile and config.model.kernels == "auto"
    kernels = use_kernels(model, "torch" if is_compiled else config.model.kernels, device)
    if config.model.compile:
        compile_layers(model)
    return Assembly(model=model, adapter=adapter, hidden_key=hidden_key, recomputed_layers=recomputed, kernels=kernels)


def _attention(config: Config, world: World) -> str:
    """Name of the attention implementation; where ranks share rows, it exchanges positions for heads."""
    sharing = config.train.sequence_parallel
    if sharing > 1:
        return use_shared_rows(SequenceGroup(world, sharing))
    return attention_for(config.hidden_key.build())
