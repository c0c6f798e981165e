"""The shape of the model that a recipe trains, also of one that isn't on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from training.config import Config, base_shape
from training.costs.shape import Shape, from_hugging_face

SHAPES = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 32000, 4096),
    "llama-2-70b": (8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256, 8192),
    "llama-3-70b": (8192, 28672, 80, 64, 8, 128256, 8192),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256, 131072),
    "llama-3.1-70b": (8192, 28672, 80, 64, 8, 128256, 131072),
}
"""hidden, intermediate, layers, heads, key/value heads, vocabulary, positions; embeddings and head are separate in all of them."""


class PlanError(ValueError):
    """What is to be planned can't be known from here, or can't be."""


def known_shape(name: str) -> Shape:
    """The shape of a published model."""
    hidden, intermediate, layers, heads, kv_heads, vocab, _ = SHAPES[name]
    return Shape(
        hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=hidden // heads, vocab=vocab, is_tied=False,
    )  # fmt: skip


def shape_problems(name: str, config: Config) -> Iterator[str]:
    """What a published model can't do of what the configuration asks for."""
    *_, kv_heads, _, positions = SHAPES[name]
    size, seq_len = config.train.sequence_parallel, config.data.seq_len
    if size >= 1 and kv_heads % size:
        yield (
            f"train.sequence_parallel = {size}: must divide the {kv_heads} key/value heads of {name}: each rank computes some of "
            "them for the whole row"
        )
    if seq_len > positions:
        yield f"data.seq_len = {seq_len}: is longer than the {positions} positions that {name} is made for"


def shape_of(config: Config) -> Shape:
    """The model's shape, from the recipe's architecture or the base folder's config.json.

    Raises:
        PlanError: the base isn't here or its config.json says too little.
    """
    if config.model.base is None:
        return config.model.architecture.shape()
    found = base_shape(config.model.base)
    if found is None:
        named = config.model.base.lower().replace("_", "-")
        known = next((name for name in SHAPES if name in named), None)
        shape = f"--shape {known}" if known else f"--shape with one of {', '.join(SHAPES)}"
        raise PlanError(
            f"model.base = {config.model.base!r} has no config.json here; give {shape}, or download the model and give its "
            "folder"
        )
    try:
        return from_hugging_face(found)
    except KeyError as error:
        raise PlanError(f"{config.model.base}/config.json has no {error}: not a LLaMA-style model") from error
    except TypeError as error:
        raise PlanError(f"{config.model.base}/config.json can't be right: {error}; download the model again") from error
