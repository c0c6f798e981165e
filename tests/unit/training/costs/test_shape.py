from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from monteclora.adapter import attach_adapter
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.errors import AdapterError
from training.config import ArchitectureConfig
from training.costs.shape import (
    Shape,
    adapted_linears,
    adapter_problems,
    count_trained,
    from_hugging_face,
    saved_parameters,
    trained_names,
    unmatched,
)
from training.model.build import count_parameters, random_model

LLAMA_2_7B = Shape(
    hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, head_dim=128, vocab=32000, is_tied=False
)
LLAMA_3_8B = dataclasses.replace(LLAMA_2_7B, intermediate=14336, kv_heads=8, vocab=128256)
LLAMA_3_2_1B = Shape(
    hidden=2048, intermediate=8192, layers=16, heads=32, kv_heads=8, head_dim=64, vocab=128256, is_tied=True
)


@pytest.mark.parametrize(
    ("shape", "number"),
    [(LLAMA_2_7B, 6_738_415_616), (LLAMA_3_8B, 8_030_261_248), (LLAMA_3_2_1B, 1_235_814_400)],
    ids=["Llama-2-7B", "Llama-3-8B", "Llama-3.2-1B"],
)
def test_published_models_have_their_published_sizes(shape: Shape, number: int) -> None:
    assert shape.num_parameters() == number


def llama(**values: Any) -> LlamaConfig:
    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 40, "max_position_embeddings": 256, "tie_word_embeddings": False,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **values})


SHAPES = {
    "plain": llama(),
    "tied": llama(tie_word_embeddings=True),
    "grouped queries": llama(num_key_value_heads=2),
    "one key": llama(num_key_value_heads=1, num_hidden_layers=3),
    "wide heads": llama(head_dim=12, num_key_value_heads=2),
    "narrow heads": llama(head_dim=2),
}


@pytest.mark.parametrize("name", SHAPES)
class TestRealModels:
    def test_parameters_by_name(self, name: str) -> None:
        real = LlamaForCausalLM(SHAPES[name])
        ours = from_hugging_face(SHAPES[name].to_dict())
        assert ours.parameters() == {key: parameter.numel() for key, parameter in real.named_parameters()}
        assert ours.num_parameters() == sum(p.numel() for p in real.parameters())

    def test_linears_by_name(self, name: str) -> None:
        real = LlamaForCausalLM(SHAPES[name])
        found = {
            key: (m.in_features, m.out_features) for key, m in real.named_modules() if isinstance(m, torch.nn.Linear)
        }
        assert from_hugging_face(SHAPES[name].to_dict()).linears() == found


@settings(max_examples=25)
@given(
    heads=st.sampled_from([1, 2, 4]), half_width=st.integers(1, 5), groups=st.sampled_from([1, 2, 4]),
    intermediate=st.integers(1, 30), layers=st.integers(1, 3), vocab=st.integers(2, 50), is_tied=st.booleans(),
)  # fmt: skip
def test_an_architecture_of_a_recipe(
    heads: int, half_width: int, groups: int, intermediate: int, layers: int, vocab: int, is_tied: bool
) -> None:
    architecture = ArchitectureConfig(
        hidden_size=heads * 2 * half_width, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=max(1, heads // groups), vocab_size=vocab, max_positions=64, tie_embeddings=is_tied,
    )  # fmt: skip
    assert list(architecture.problems()) == []
    real = random_model(architecture, dtype=torch.float32, seed=0)
    assert architecture.shape().num_parameters() == count_parameters(real)["total"]


def test_optional_values_of_older_files() -> None:
    found = {
        "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 9,
    }  # fmt: skip
    shape = from_hugging_face(found)
    assert (shape.kv_heads, shape.head_dim, shape.is_tied) == (4, 16, False)
    assert from_hugging_face({**found, "head_dim": None, "num_key_value_heads": None}) == shape


@pytest.mark.parametrize("name", ["plain", "tied"])
@pytest.mark.parametrize(
    "config",
    [
        None,
        LoRAConfig(rank=1, targets=("q_proj", "*.1.mlp.*"), modules_to_save=("norm", "embed_tokens")),
        MonteCLoRAConfig(rank=1, targets=("o_proj", "model.layers.1.mlp.up_proj", "lm_head")),
        MonteCLoRAConfig(rank=1, targets=("down_proj",), modules_to_save=("lm_head", "model.layers.1.self_attn")),
    ],
    ids=["full", "lora", "monteclora", "monteclora-saved"],
)
def test_names_of_what_trains(name: str, config: LoRAConfig | None) -> None:
    real = LlamaForCausalLM(SHAPES[name])
    if config is not None:
        attach_adapter(real, config)
    found = trained_names(from_hugging_face(SHAPES[name].to_dict()), config)
    assert sorted(found) == sorted(key for key, parameter in real.named_parameters() if parameter.requires_grad)


def test_patterns_are_compared_with_full_names() -> None:
    patterns = {"*.lora_?": 1, "lora_A": 2, "model.*": 3, "[": 4}
    assert unmatched(patterns, ["model.q.lora_A", "model.q.lora_B"]) == ["lora_A", "["]
    assert unmatched((), ["a"]) == []


class TestAdapters:
    SHAPE = from_hugging_face(SHAPES["grouped queries"].to_dict())
    """Two layers of width 16 with key and value projections of 8, feed-forward 24, 40 tokens."""

    def problems(self, **values: Any) -> list[tuple[str, str]]:
        return list(adapter_problems(LoRAConfig(**{"rank": 2, **values}), self.SHAPE))

    def test_what_fits_is_no_problem(self) -> None:
        assert self.problems() == []
        assert self.problems(rank=7) == []
        assert self.problems(rank=15, rank_pattern={"[kv]_proj": 7}) == []
        assert self.problems(rank=15, targets=("q_proj", "lm_head"), modules_to_save=("embed_tokens",)) == []

    def test_a_target_that_matches_nothing(self) -> None:
        called = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
        assert self.problems(targets=("q_proj", "query", "layers.0.*")) == [
            ("targets", f"'query' matches no linear layer; the model's linear layers are called {called}"),
            (
                "targets",
                f"'layers.0.*' matches no linear layer; the model's linear layers are called {called}; a pattern with a "
                "dot is compared with the full name, of which one is model.layers.0.self_attn.q_proj",
            ),
        ]

    @pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
    def test_a_pattern_for_layers_that_are_not_adapted(self, setting: str) -> None:
        assert self.problems(targets=("v_proj",), **{setting: {"v_proj": 2, "query": 2, "k_proj": 2}}) == [
            (setting, f"'{name}' matches no layer that targets adapt; one of those is model.layers.0.self_attn.v_proj")
            for name in ("query", "k_proj")
        ]

    def test_a_module_that_is_not_there(self) -> None:
        assert self.problems(modules_to_save=("norm", "score", "model.layers.1", "model.layers.2")) == [
            ("modules_to_save", f"'{name}' matches no module; the model consists of model, lm_head")
            for name in ("score", "model.layers.2")
        ]

    TIED = dataclasses.replace(SHAPE, is_tied=True)

    def test_tied_embeddings_that_train_are_counted_once(self) -> None:
        embedding = {"model.embed_tokens.weight": 40 * 16}
        for modules in (("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")):
            config = LoRAConfig(rank=2, modules_to_save=modules)
            assert list(adapter_problems(config, self.TIED)) == []
            assert saved_parameters(self.TIED, config) == embedding
        config = LoRAConfig(rank=2, modules_to_save=("lm_head",))
        assert saved_parameters(self.SHAPE, config) == {"lm_head.weight": 40 * 16}

    @pytest.mark.parametrize("modules", [("embed_tokens",), ("model",)])
    def test_tied_embeddings_are_not_frozen_and_trained_in_full_at_once(self, modules: tuple[str, ...]) -> None:
        config = LoRAConfig(rank=2, targets=("lm_head", "q_proj"), modules_to_save=modules)
        assert list(adapter_problems(config, self.TIED)) == [
            (
                "modules_to_save",
                "train the embeddings in full, whose weight lm_head shares, and targets freeze it; take one out",
            )
        ]
        assert list(adapter_problems(config, self.SHAPE)) == []
        assert list(adapter_problems(LoRAConfig(rank=2, targets=("lm_head",)), self.TIED)) == []

    def test_layers_that_train_in_full_anyway(self) -> None:
        assert self.problems(targets=("q_proj",), modules_to_save=("self_attn",)) == [
            ("targets", "match only layers inside modules_to_save, which train in full; take them out of one")
        ]

    def test_a_rank_that_is_none_is_told_once_by_the_first_layer_it_is_too_large_for(self) -> None:
        assert self.problems(rank=8) == [
            (
                "rank",
                "is 8, no low rank for model.layers.0.self_attn.k_proj, which is 16 x 8; give less than 8, for this "
                "layer alone with rank_pattern, or leave it out of targets",
            )
        ]

    def test_a_rank_of_a_pattern_is_told_by_the_pattern(self) -> None:
        found = self.problems(rank=8, rank_pattern={"*.1.mlp.*": 20})
        assert [name for name, _ in found] == ["rank", "rank_pattern.*.1.mlp.*"]
        assert found[1][1].startswith("is 20, no low rank for model.layers.1.mlp.gate_proj, which is 16 x 24; ")

    @pytest.mark.parametrize("is_tied", [False, True])
    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"rank": 8},
            {"rank": 15, "rank_pattern": {"[kv]_proj": 7}},
            {"rank": 3, "targets": ("lm_head", "q_proj"), "modules_to_save": ("embed_tokens",)},
            {"targets": ("lm_head",)},
            {"targets": ("*",), "modules_to_save": ("model.layers.1", "norm")},
            {"modules_to_save": ("lm_head",)},
            {"modules_to_save": ("lm_head", "embed_tokens")},
            {"targets": ("q_proj",), "rank_pattern": {"k_proj": 2}},
            {"targets": ("model.layers.0.*", "query")},
            {"modules_to_save": ("score",)},
        ],
        ids=str,
    )
    def test_attaching_to_the_real_model_is_refused_alike_or_trains_what_was_counted(
        self, is_tied: bool, values: dict[str, Any]
    ) -> None:
        real = LlamaForCausalLM(llama(num_key_value_heads=2, tie_word_embeddings=is_tied))
        config = LoRAConfig(**{"rank": 2, **values})
        shape = dataclasses.replace(self.SHAPE, is_tied=is_tied)
        found = list(adapter_problems(config, shape))
        if not found:
            adapter = attach_adapter(real, config)
            assert count_trained(shape, config)[1] == adapter.num_trainable
            assert list(adapted_linears(shape, config)) == list(adapter.layers)
            assert adapter.num_trainable == sum(p.numel() for p in real.parameters() if p.requires_grad)
            return
        with pytest.raises(AdapterError) as refused:
            attach_adapter(real, config)
        if "shares" not in found[0][1]:  # the weight of a real model has a name
            told = "; ".join(f"{name} {message}" for name, message in found)
            assert str(refused.value) == f"the adapter does not fit the model: {told}"

    def test_what_is_adapted_and_what_trains_in_full(self) -> None:
        config = LoRAConfig(rank=2, targets=("q_proj", "k_proj"), modules_to_save=("model.layers.1", "embed_tokens"))
        assert adapted_linears(self.SHAPE, config) == {
            "model.layers.0.self_attn.q_proj": (16, 16), "model.layers.0.self_attn.k_proj": (16, 8),
        }  # fmt: skip
        saved = saved_parameters(self.SHAPE, config)
        assert saved.pop("model.embed_tokens.weight") == 40 * 16
        assert {name.split(".")[2] for name in saved} == {"1"}
        assert sum(saved.values()) == 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "4096"), ("vocab_size", True), ("num_hidden_layers", 10**9), ("intermediate_size", 10**400), ("head_dim", "x"),
        ("num_key_value_heads", 1.5), ("num_attention_heads", 0),
    ],
)  # fmt: skip
def test_sizes_that_no_model_has(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} is "):
        from_hugging_face({**SHAPES["plain"].to_dict(), name: value})
