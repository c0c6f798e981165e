"""What is known about an architecture: whether rows may share a prefix, and whether its head alone makes the logits."""

from __future__ import annotations

from typing import Any

KNOWN = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "olmo2", "starcoder2", "phi", "phi3", "gpt2", "gpt_neox",
)  # fmt: skip
"""Types of model whose logits are the output head's answer to the last hidden states, with nothing after it, and to which
a token's place is its position id and what the attention mask lets it see."""

MASKED_ATTENTION = ("sdpa", "eager", "palimpsest", "palimpsest_ulysses")
"""Attention implementations that take a mask of queries x keys as it is."""

FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that depend on nothing but a token's position."""


def is_known(config: Any) -> bool:
    """Whether logits are the output head's answer, so that it can be asked for some positions only."""
    return getattr(config, "model_type", None) in KNOWN


def can_share(config: Any) -> bool:
    """Whether the branches of a trie are computed exactly in one sequence, with position ids and an attention mask.

    A sliding window is counted in the sequence, not along a branch, so there must be none.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return (
        is_known(config)
        and getattr(config, "_attn_implementation", None) in MASKED_ATTENTION
        and kinds == {"full_attention"}
        and not has_window
        and rope.get("rope_type", "default") in FIXED_ROTATIONS
    )
