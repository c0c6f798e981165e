from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from launch.plan import PlanError, Shape, from_hugging_face, make_plan, shape_of
from monteclora import attach_adapter
from tests.unit.training.minimal import minimal_config, write_base
from training.config import AdapterConfig, ArchitectureConfig, Config
from training.model import count_parameters, random_model

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
TARGETS = {
    "all": AdapterConfig().targets,
    "attention": ("q_proj", "v_proj"),
    "output head too": ("o_proj", "lm_head"),
    "some layers": ("model.layers.1.mlp.*", "k_proj"),
}


@pytest.mark.parametrize("name", SHAPES)
class TestRealModels:
    @pytest.fixture
    def config(self, tmp_path: Path, name: str) -> Config:
        """A recipe whose base has the shape."""
        config = minimal_config(tmp_path)
        SHAPES[name].save_pretrained(tmp_path / "base")
        return config

    def test_parameters(self, config: Config, name: str) -> None:
        real = LlamaForCausalLM(SHAPES[name])
        assert shape_of(config).num_parameters() == sum(p.numel() for p in real.parameters())

    @pytest.mark.parametrize("kind", ["none", "lora", "monteclora"])
    @pytest.mark.parametrize("targets", TARGETS)
    def test_trained_and_total(self, config: Config, name: str, kind: Any, targets: str) -> None:
        adapter = AdapterConfig(kind="none", rank=3, num_samples=5, targets=TARGETS[targets])
        config = dataclasses.replace(config, adapter=adapter)
        real = LlamaForCausalLM(SHAPES[name])
        if kind != "none":
            attach_adapter(real, dataclasses.replace(adapter, kind=kind).build())  # type: ignore[arg-type]
        plan = make_plan(config, shape_of(config), 1, kind)
        counted = count_parameters(real)
        assert (plan.total_parameters, plan.trainable_parameters) == (counted["total"], counted["trainable"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4]), half_width=st.integers(1, 5), groups=st.sampled_from([1, 2, 4]),
    intermediate=st.integers(1, 30), layers=st.integers(1, 3), vocab=st.integers(2, 50), is_tied=st.booleans(),
)  # fmt: skip
def test_an_architecture_of_a_recipe(
    tmp_path: Path, heads: int, half_width: int, groups: int, intermediate: int, layers: int, vocab: int, is_tied: bool
) -> None:
    architecture = ArchitectureConfig(
        hidden_size=heads * 2 * half_width, intermediate_size=intermediate, num_layers=layers, num_heads=heads,
        num_kv_heads=max(1, heads // groups), vocab_size=vocab, max_positions=64, tie_embeddings=is_tied,
    )  # fmt: skip
    assert list(architecture.problems()) == []
    config = minimal_config(tmp_path, "--model.base", "none")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, architecture=architecture))
    real = random_model(architecture, dtype=torch.float32, seed=0)
    assert shape_of(config).num_parameters() == count_parameters(real)["total"]


class TestCosts:
    def plan(self, folder: Path, kind: str, ranks: int, *overrides: str) -> Any:
        config = minimal_config(folder, *overrides)
        return make_plan(config, LLAMA_2_7B, ranks, kind)

    def test_full_finetuning_in_bf16_is_18_bytes_a_parameter_shared_by_the_ranks(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, "none", 4)
        assert plan.state_bytes_per_rank == 6_738_415_616 * (2 + 4 + 4 + 8) / 4
        assert plan.checkpoint_bytes == 6_738_415_616 * 12

    def test_in_fp32_the_weights_are_twice_as_large(self, tmp_path: Path) -> None:
        bf16 = self.plan(tmp_path, "none", 1).state_bytes_per_rank
        assert (
            self.plan(tmp_path, "none", 1, "--train.precision", "fp32").state_bytes_per_rank - bf16 == 2 * 6_738_415_616
        )

    def test_an_adapter_has_states_for_itself_only(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, "lora", 2, "--adapter.rank", "16")
        # r (in + out) over the seven linears of 32 layers: 4 of 4096 x 4096 and 3 of 4096 x 11008.
        trained = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
        assert plan.trainable_parameters == trained == 39_976_960
        assert plan.state_bytes_per_rank == (2 * (6_738_415_616 + trained) + 16 * trained) / 2
        assert plan.checkpoint_bytes == 12 * trained
        monteclora = self.plan(tmp_path, "monteclora", 2, "--adapter.rank", "16", "--adapter.num_samples", "4")
        assert monteclora.trainable_parameters - trained == 32 * 7 * (16 + 4)

    def test_batches_and_tokens(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, "none", 2, "--train.micro_batch_rows", "3")
        assert plan.micro_batches_per_step == 2
        assert plan.tokens_per_step == 12 * 64
        assert plan.tokens == 20 * 12 * 64


class TestShapes:
    def test_optional_values_of_older_files(self) -> None:
        found = {
            "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 9,
        }  # fmt: skip
        shape = from_hugging_face(found)
        assert (shape.kv_heads, shape.head_dim, shape.is_tied) == (4, 16, False)
        assert from_hugging_face({**found, "head_dim": None, "num_key_value_heads": None}) == shape

    def test_a_hub_names_shape_is_not_known_here(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, base="somebody/a-model"))
        message = "^model.base = 'somebody/a-model' has no config.json here; download the model and give its folder$"
        with pytest.raises(PlanError, match=message):
            shape_of(config)

    def test_an_adapter_with_nothing_to_adapt(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        adapter = dataclasses.replace(config.adapter, targets=("query", "value"))
        shape = Shape(hidden=8, intermediate=16, layers=1, heads=2, kv_heads=2, head_dim=4, vocab=9, is_tied=True)
        with pytest.raises(PlanError, match=r"^adapter\.targets query, value: no linear layer of the model matches$"):
            make_plan(dataclasses.replace(config, adapter=adapter), shape, 1, "lora")

    def test_another_kind_of_model(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", n_embd=8)
        with pytest.raises(PlanError) as caught:
            shape_of(config)
        assert str(caught.value) == f"{tmp_path}/base/config.json has no 'hidden_size': not a LLaMA-style model"

    def test_the_bases_file_is_read(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        (tmp_path / "base" / "config.json").write_text(json.dumps(llama(head_dim=12).to_dict()))
        assert shape_of(config).head_dim == 12
