"""Names of weights, as several kinds of models and files have them."""

from __future__ import annotations

import pytest

from evals.weights.names import in_order, is_wanted, layer_of, module_names, plain_name


@pytest.mark.parametrize(
    ("name", "plain", "layer"),
    [
        ("model.layers.31.self_attn.q_proj.weight", "layers.31.self_attn.q_proj.weight", 31),
        ("base_model.model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight", 0),
        ("module._orig_mod.model.embed_tokens.weight", "embed_tokens.weight", None),
        ("lm_head.weight", "lm_head.weight", None),
        ("transformer.h.5.attn.c_attn.weight", "transformer.h.5.attn.c_attn.weight", 5),
        ("model.layers.2.mlp.experts.7.w1.weight", "layers.2.mlp.experts.7.w1.weight", 2),
    ],
)
def test_plain_names_and_layers(name: str, plain: str, layer: int | None) -> None:
    assert plain_name(name) == plain
    assert plain_name(plain) == plain
    assert layer_of(plain) == layer


def test_modules_have_the_shortest_name_that_tells_them_apart() -> None:
    llama = ["layers.0.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight", "lm_head.weight"]
    assert list(module_names(llama).values()) == ["q_proj", "q_proj", "lm_head"]
    gpt = ["h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight", "h.1.attn.c_proj.weight"]
    assert list(module_names(gpt).values()) == ["attn.c_proj", "mlp.c_proj", "attn.c_proj"]
    both = ["encoder.block.0.q.weight", "decoder.block.0.q.weight"]
    assert list(module_names(both).values()) == ["encoder.block.q", "decoder.block.q"]
    assert module_names([]) == {}


def test_order_and_patterns() -> None:
    assert in_order(["up_proj", "c_fc", "q_proj", "down_proj", "up_proj"]) == ["q_proj", "up_proj", "down_proj", "c_fc"]
    name = "layers.3.mlp.up_proj.weight"
    assert is_wanted(name, "up_proj", [])
    assert is_wanted(name, "up_proj", ["q_proj", "up_*"])
    assert is_wanted(name, "up_proj", ["layers.[0-3].*"])
    assert not is_wanted(name, "up_proj", ["proj", "layers.[4-9].*"])
