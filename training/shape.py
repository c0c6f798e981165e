"""The parameters of a LLaMA by name and size, known from its config.json alone, and what an adapter on it must keep to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monteclora.config import LoRAConfig, count_adapter_parameters, is_inside, is_target, matches


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
        sizes = {"model.embed_tokens.weight": self.vocab * self.hidden, "model.norm.weight": self.hidden}
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
    return {
        name: sides
        for name, sides in shape.linears().items()
        if is_target(name, config.targets) and not is_inside(name, config.modules_to_save)
    }


def saved_parameters(shape: Shape, config: LoRAConfig) -> dict[str, int]:
    """Number of elements of the parameters that train in full beside an adapter, by full name."""
    sizes = shape.parameters()
    return {name: size for name, size in sizes.items() if is_inside(name.rpartition(".")[0], config.modules_to_save)}


def count_trained(shape: Shape, config: LoRAConfig) -> tuple[int, int]:
    """Numbers of parameters that an adapter adds to the model, and that train: those and `modules_to_save`."""
    added = count_adapter_parameters(adapted_linears(shape, config), config)
    return added, added + sum(saved_parameters(shape, config).values())


def adapter_problems(config: LoRAConfig, shape: Shape) -> Iterator[tuple[str, str]]:
    """Yield (field, message) for every pattern that matches nothing in the model and every rank too large for a layer."""
    linears = shape.linears()
    called = "the model's linear layers are called " + ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
    for setting in ("targets", "rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, setting):
            if not any(matches(name, pattern) for name in linears):
                yield setting, f"{pattern!r} matches no linear layer; {called}"
    for pattern in config.modules_to_save:
        if not any(is_inside(name.rpartition(".")[0], (pattern,)) for name in shape.parameters()):
            yield (
                "modules_to_save",
                f"{pattern!r} matches no module with parameters of its own; model.embed_tokens is one",
            )
    adapted = adapted_linears(shape, config)
    if not adapted and any(is_target(name, config.targets) for name in linears):
        yield "targets", "match only layers inside modules_to_save, which train in full; take them out of one"
    reported = set()
    for name, sides in adapted.items():
        pattern = next((p for p in config.rank_pattern if matches(name, p)), None)
        setting = "rank" if pattern is None else f"rank_pattern.{pattern}"
        if config.rank_of(name) >= min(sides) and setting not in reported:
            reported.add(setting)
            yield (
                setting,
                f"is {config.rank_of(name)}, no low rank for {name}, which is {sides[0]} x {sides[1]}; "
                f"give less than {min(sides)}, or leave the layer out of targets",
            )
