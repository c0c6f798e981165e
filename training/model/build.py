"""The LLaMA to train: from a base, or with random weights from an architecture."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from training.config import ArchitectureConfig, ModelConfig, looks_like_path
from training.errors import ModelError
from training.files import sha256
from training.model.attention import ATTENTION
from training.model.loading import base_folder, load_base, partitioned, replicated
from training.ranks.distributed import gather, raise_on_all_ranks
from training.world import World

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build_model(
    config: ModelConfig,
    *,
    placement: str,
    precision: str,
    ds_config: dict[str, Any],
    seed: int,
    world: World,
    device: torch.device,
    attention: str = ATTENTION,
    recomputed_layers: int = 0,
) -> PreTrainedModel:
    """Return the model in the given precision (a collective).

    A base is loaded to where `placement` wants it: partitioned over the ranks for ZeRO-3, whole on `device` when it is
    replicated. Random weights are on the CPU, and depend on `seed` only, not on the world size.

    Args:
        config: what to load, or the architecture.
        placement: `train.placement`.
        precision: of the parameters; buffers keep what transformers computes them in.
        ds_config: the complete DeepSpeed configuration; not used by a replicated placement.
        seed: of random weights.
        world: whose process group must be initialised.
        device: of this rank.
        attention: name of an attention implementation known to transformers (training.model.attention.attention_for).
        recomputed_layers: decoder layers, the first ones, whose activations are recomputed in backward.

    Raises:
        ModelError: on all ranks, when one of them can't load the base or has a device that lacks the precision.
    """
    model, problem = None, None
    try:
        check_precision(precision, device)
        dtype = DTYPES[precision]
        if config.base is None:
            model = random_model(config.architecture, dtype=dtype, seed=seed, attention=attention)
        else:
            place = replicated(dtype, device) if placement == "replicated" else partitioned(dtype, ds_config)
            model = load_base(config, dtype=dtype, place=place, device=device, attention=attention)
        if config.attention_dropout is not None:
            drop_attention(model, config.attention_dropout)
    except ModelError as error:
        problem = error
    raise_on_all_ranks(problem, ModelError, world)
    assert model is not None
    model.config.use_cache = False
    recompute(model, recomputed_layers)
    return model


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse bf16 on a GPU that can only emulate it.

    Raises:
        ModelError: it does.
    """
    if precision != "bf16" or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return
    raise ModelError(
        f'train.precision = "bf16": {torch.cuda.get_device_name(device)} does not compute in bfloat16; use "fp32"'
    )


def random_model(
    shape: ArchitectureConfig, *, dtype: torch.dtype, seed: int, attention: str = "sdpa"
) -> LlamaForCausalLM:
    """A LLaMA with random weights, drawn in fp32."""
    llama = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_embeddings,
        attn_implementation=attention,
    )
    # The CPU's generator alone: asking for those of the GPUs would open a context on every one of them.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(llama)
    # Parameters only: rotary frequencies rounded to bf16 would be another model than the one that is loaded again.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def drop_attention(model: PreTrainedModel, rate: float) -> None:
    """Set the rate of dropout on attention weights, of this model and not of its configuration, which exports keep.

    Raises:
        ModelError: the model has no such dropout.
    """
    modules = [module for module in model.modules() if hasattr(module, "attention_dropout")]
    if not modules:
        raise ModelError(
            f"model.attention_dropout = {rate}: {type(model).__name__} has no dropout on attention weights; leave it out"
        )
    for module in modules:
        module.attention_dropout = rate


def recompute(model: PreTrainedModel, num_layers: int) -> None:
    """Have the first `num_layers` decoder layers recompute their activations in backward, and the others keep theirs."""
    if num_layers == 0:
        return
    # Non-reentrant: under ZeRO-3 with frozen parameters the reentrant form needs inputs that require gradients.
    # transformers 5 renamed the method on the way.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers[num_layers:]:
        layer.gradient_checkpointing = False


def gathered(parameter: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which a partitioned parameter is whole, and which keeps on all ranks what rank 0 writes into it (a
    collective). One that is whole anyway keeps what each rank writes.
    """
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return context


def folder_fingerprint(folder: str | Path | None) -> str | None:
    """SHA-256 over the weight files of a model's or adapter's folder, in name order; None for none."""
    return None if folder is None else _fingerprint([sha256(path) for path in fingerprinted_files(folder)])


def base_fingerprint(config: ModelConfig, world: World) -> str | None:
    """The folder_fingerprint of the base, of which each rank reads its share of the files (a collective); None for none.

    Raises:
        ModelError: on all ranks, when one of them can't read its files, or has another commit of a hub repository.
    """
    if config.base is None:
        return None
    commit, hashes, problem = None, {}, None
    try:
        folder = base_folder(config)
        commit = None if looks_like_path(config.base) else folder.name
        hashes = {path.name: sha256(path) for path in fingerprinted_files(folder)[world.rank :: world.size]}
    except (OSError, ValueError) as error:
        problem = ModelError(f'model.base = "{config.base}": can\'t be read: {error}')
    raise_on_all_ranks(problem, ModelError, world)
    if len(commits := dict.fromkeys(gather(commit, world))) > 1:
        raise ModelError(
            f'model.base = "{config.base}": it changed while the ranks downloaded it, so that they have several commits of '
            f"it ({', '.join(map(str, commits))}); set model.revision to one of them"
        )
    everything = {name: value for part in gather(hashes, world) for name, value in part.items()}
    return _fingerprint([everything[name] for name in sorted(everything)])


def fingerprinted_files(folder: str | Path) -> list[Path]:
    """The weight files of a folder, by name."""
    found = sorted(Path(folder).glob("*.safetensors"))
    return found or sorted(Path(folder).glob("pytorch_model*.bin"))


def _fingerprint(hashes: list[str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, hashes))).hexdigest()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Total and trainable number of parameters, partitioned ones counted whole."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, trainable in sizes if trainable)}
