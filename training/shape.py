"""The parameters of a LLaMA by name and size, known from its config.json alone, and what an adapter on it must keep to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monteclora.config import LoRAConfig, adapted, count_adapter_parameters, is_inside, model_problems

_EMBEDDING = "model.embed_tokens.weight"


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

    def parameters(self) -> dict[str, int]:
        """Number of elements of every parameter by full name; tied embeddings count once, as the input's."""
        sizes = {_EMBEDDING: self.vocab * self.hidden, "model.norm.weight": self.hidden}
        for k in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                sizes[f"model.layers.{k}.{norm}.weight"] = self.hidden
        sizes |= {f"{name}.weight": math.prod(sides) for name, sides in self.linears().items()}
        if self.is_tied:
            del sizes["lm_head.weight"]
        return sizes

    def num_parameters(self) -> int:
        """Elements of all parameters together."""
        return sum(self.parameters().values())


def from_hugging_face(found: dict[str, Any]) -> Shape:
    """The shape in a LLaMA's config.json.

    Raises:
        KeyError: a size is missing, so it is another kind of model.
    """
    hidden, heads = found["hidden_size"], found["num_attention_heads"]
    return Shape(
        hidden=hidden, intermediate=found["intermediate_size"], layers=found["num_hidden_layers"], heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads, head_dim=found.get("head_dim") or hidden // heads,
        vocab=found["vocab_size"], is_tied=bool(found.get("tie_word_embeddings")),
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
        saved[_EMBEDDING] = sizes[_EMBEDDING]
    return saved


def count_trained(shape: Shape, config: LoRAConfig) -> tuple[int, int]:
    """Numbers of parameters that an adapter adds to the model, and that train: those and `modules_to_save`."""
    added = count_adapter_parameters(adapted_linears(shape, config), config)
    return added, added + sum(saved_parameters(shape, config).values())


def adapter_problems(config: LoRAConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    """Yield (field, message) for every pattern that matches nothing in the model and every rank too large for a layer."""
    linears = shape.linears()
    inside = [*linears, *(name.rpartition(".")[0] for name in shape.parameters())]
    modules = {
        ".".join(parts[: end + 1]): None for parts in (name.split(".") for name in inside) for end in range(len(parts))
    }
    yield from model_problems(config, linears, modules)
    if shape.is_tied and "lm_head" in adapted(linears, config) and saved_parameters(shape, config).get(_EMBEDDING):
        yield (
            "modules_to_save",
            "train the embeddings in full, whose weight lm_head shares, and targets freeze it; take one out",
        )
