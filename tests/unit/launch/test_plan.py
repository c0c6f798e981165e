from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from launch.plan import PlanError, make_plan, shape_of
from monteclora import attach_adapter
from tests.unit.training.minimal import minimal_config, write_base
from tests.unit.training.test_shape import LLAMA_2_7B, SHAPES, llama
from training.config import AdapterConfig, Config
from training.model import count_parameters
from training.shape import Shape

TARGETS = {
    "all": AdapterConfig().targets,
    "attention": ("q_proj", "v_proj"),
    "output head too": ("o_proj", "lm_head"),
    "some layers": ("model.layers.1.mlp.*", "k_proj"),
}
MORE: dict[str, dict[str, Any]] = {
    "as it is": {},
    "patterns": {"rank_pattern": {"model.layers.1.*": 2, "*_proj": 1}, "rslora": True, "alpha": 4.0},
    "norms in full": {"modules_to_save": ("*norm",)},
    "a block in full": {"modules_to_save": ("model.layers.0", "norm")},
}


@pytest.mark.parametrize("name", SHAPES)
class TestRealModels:
    @pytest.fixture
    def config(self, tmp_path: Path, name: str) -> Config:
        """A recipe whose base has the shape."""
        config = minimal_config(tmp_path)
        SHAPES[name].save_pretrained(tmp_path / "base")
        return config

    @pytest.mark.parametrize("kind", ["none", "lora", "monteclora"])
    @pytest.mark.parametrize("targets", TARGETS)
    @pytest.mark.parametrize("more", MORE)
    def test_trained_and_total(self, config: Config, name: str, kind: Any, targets: str, more: str) -> None:
        adapter = AdapterConfig(kind="none", rank=1, num_samples=5, targets=TARGETS[targets], **MORE[more])
        config = dataclasses.replace(config, adapter=adapter)
        real = LlamaForCausalLM(SHAPES[name])
        if kind != "none":
            attach_adapter(real, dataclasses.replace(adapter, kind=kind).build())  # type: ignore[arg-type]
        plan = make_plan(config, shape_of(config), 1, kind)
        counted = count_parameters(real)
        assert (plan.total_parameters, plan.trainable_parameters) == (counted["total"], counted["trainable"])


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
        with pytest.raises(
            PlanError, match=r"^adapter\.targets 'query' matches no linear layer; .*; adapter\.targets 'value'"
        ):
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
