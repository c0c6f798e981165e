"""The parameters of a LLaMA by name and size, known from its config.json alone, and what an adapter on it must keep to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from monteclora.config import LoRAConfig, MonteCLoRAConfig, adapted, count_adapter_parameters, is_inside, model_problems

MOST, MOST_LAYERS = 1 << 31, 1 << 16
"""Larger sizes are no model's: a config.json that says them is damaged."""
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a LLaMA."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    is_tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear layer by full name, the output head included."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        one = {
            "self_attn.q_proj": (self.hidden, attention), "self_attn.k_proj": (self.hidden, kv),
            "self_attn.v_proj": (self.hidden, kv), "self_attn.o_proj": (attention, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate), "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip
        blocks = {f"model.layers.{k}.{name}": sizes for k in range(self.layers) for name, sizes in one.items()}
        return {**blocks, "lm_head": (self.hidden, self.vocab)}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by full name; tied embeddings are there once, as the input's."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden), "model.norm.weight": (self.hidden,)}
        for k in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{k}.{norm}.weight"] = (self.hidden,)
        for name, (width_in, width_out) in self.linears().items():
            shapes[f"{name}.weight"] = (width_out, width_in)
            if (".self_attn." in name and self.attention_bias) or (".mlp." in name and self.mlp_bias):
                shapes[f"{name}.bias"] = (width_out,)
        if self.is_tied:
            del shapes["lm_head.weight"]
        return shapes

    def parameters(self) -> dict[str, int]:
        """Number of elements of every parameter by full name; tied embeddings count once, as the input's."""
        return {name: math.prod(shape) for name, shape in self.tensors().items()}

    def num_parameters(self) -> int:
        """Elements of all parameters together."""
        return sum(self.parameters().values())


def from_hugging_face(found: dict[str, Any]) -> Shape:
    """The shape in a LLaMA's config.json.

    Raises:
        KeyError: a size is missing, so it is another kind of model.
        TypeError: a size is no positive whole number, or beyond all models.
    """
    needed = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")
    for name in (*needed, *(name for name in ("num_key_value_heads", "head_dim") if found.get(name) is not None)):
        if type(found[name]) is not int or not 1 <= found[name] <= (
            MOST_LAYERS if name == "num_hidden_layers" else MOST
        ):
            raise TypeError(f"{name} is {str(found[name])[:40]!r}")
    hidden, heads = found["hidden_size"], found["num_attention_heads"]
    return Shape(
        hidden=hidden, intermediate=found["intermediate_size"], layers=found["num_hidden_layers"], heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads, head_dim=found.get("head_dim") or hidden // heads,
        vocab=found["vocab_size"], is_tied=bool(found.get("tie_word_embeddings")),
        attention_bias=bool(found.get("attention_bias")), mlp_bias=bool(found.get("mlp_bias")),
    )  # fmt: skip


def adapted_linears(shape: Shape, config: LoRAConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers that an adapter is put on, by full name."""
    linears = shape.linears()
    return {name: linears[name] for name in adapted(linears, config)}


def saved_parameters(shape: Shape, config: LoRAConfig) -> dict[str, int]:
    """Number of elements of the parameters that train in full beside an adapter, by full name."""
    sizes = shape.parameters()
    saved = {name: size for name, size in sizes.items() if is_inside(name.rpartition(".")[0], config.modules_to_save)}
    if shape.is_tied and is_inside("lm_head", config.modules_to_save):
        saved[EMBEDDING] = sizes[EMBEDDING]
    return saved


def count_trained(shape: Shape, config: LoRAConfig) -> tuple[int, int]:
    """Numbers of parameters that an adapter adds to the model, and that train: those and `modules_to_save`."""
    added = count_adapter_parameters(adapted_linears(shape, config), config)
    return added, added + sum(saved_parameters(shape, config).values())


def trained_names(shape: Shape, config: LoRAConfig | None) -> list[str]:
    """Full names of the parameters that train: an adapter's and those of `modules_to_save`, or without one all."""
    if config is None:
        return list(shape.parameters())
    linears = adapted_linears(shape, config)
    names = [f"{name}.{own}" for name in linears for own in ("lora_A", "lora_B")]
    if isinstance(config, MonteCLoRAConfig):
        # A posterior belongs to the decoder layer, that of the output head to the model itself.
        blocks = {name.rpartition("self_attn.")[0] or name.rpartition("mlp.")[0]: None for name in linears}
        names += [f"{block}monteclora.{own}" for block in blocks for own in ("log_std", "log_concentration")]
    return [*names, *saved_parameters(shape, config)]


def unmatched(patterns: Collection[str], names: Collection[str]) -> list[str]:
    """The patterns of full names that match none."""
    return [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]


def adapter_problems(config: LoRAConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    """Yield (field, message) for every pattern that matches nothing in the model and every rank too large for a layer."""
    linears = shape.linears()
    inside = [*linears, *(name.rpartition(".")[0] for name in shape.parameters())]
    modules = {
        ".".join(parts[: end + 1]): None for parts in (name.split(".") for name in inside) for end in range(len(parts))
    }
    yield from model_problems(config, linears, modules)
    if shape.is_tied and "lm_head" in adapted(linears, config) and saved_parameters(shape, config).get(EMBEDDING):
        yield (
            "modules_to_save",
            "train the embeddings in full, whose weight lm_head shares, and targets freeze it; take one out",
        )
