"""The LLaMA to train: loaded and sharded from a base, or with random weights from an architecture."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.config import ArchitectureConfig, ModelConfig, looks_like_path
from training.errors import ModelError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build_model(config: ModelConfig, *, precision: str, ds_config: dict[str, Any], seed: int) -> PreTrainedModel:
    """Return the model in the given precision; a base is partitioned over the ranks while it loads.

    `ds_config` is the complete DeepSpeed configuration; torch.distributed must be initialised. Random weights depend
    on `seed` only, not on the world size.
    """
    dtype = DTYPES[precision]
    if config.base is None:
        model = random_model(config.architecture, dtype=dtype, seed=seed)
    else:
        model = load_base(config.base, dtype=dtype, ds_config=ds_config)
    model.config.use_cache = False
    if config.activation_checkpointing:
        # Non-reentrant: under ZeRO-3 with frozen parameters the reentrant form needs inputs that require gradients.
        # transformers 5 renamed the method on the way.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def random_model(shape: ArchitectureConfig, *, dtype: torch.dtype, seed: int) -> LlamaForCausalLM:
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
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama)
    # Parameters only: rotary frequencies rounded to bf16 would be another model than the one that is loaded again.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load_base(base: str, *, dtype: torch.dtype, ds_config: dict[str, Any]) -> PreTrainedModel:
    """Load safetensors weights; every rank keeps its partition only. Remote code and pickles are refused.

    Raises:
        ModelError: the base is missing, damaged or no causal language model.
    """
    local = looks_like_path(base)
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    # transformers partitions while loading as long as this object is alive.
    sharding = HfDeepSpeedConfig(ds_config)
    try:
        return AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True, attn_implementation="sdpa", **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f'model.base = "{base}": can\'t be loaded: {str(error).strip().splitlines()[0]}') from error
    finally:
        del sharding
        unset_hf_deepspeed_config()


def gathered(parameter: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which a parameter is whole, and which keeps on all ranks what rank 0 writes into it (a collective)."""
    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return context


def folder_fingerprint(folder: str | Path | None) -> str | None:
    """SHA-256 over the weight files of a model's or adapter's folder, in name order; None for a hub name and for none."""
    if folder is None or not looks_like_path(str(folder)):
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Total and trainable number of parameters, partitioned ones counted whole."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, trainable in sizes if trainable)}
