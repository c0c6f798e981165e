"""What the engine works out before DeepSpeed starts; its steps need ranks and are tested in tests/distributed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from monteclora import attach_adapter
from tests.unit.training.minimal import minimal_config
from training.config import ArchitectureConfig
from training.engine import complete_ds_config, parameter_groups
from training.model import random_model
from training.world import World

SMALL = ArchitectureConfig(
    hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4, num_kv_heads=2, vocab_size=40, max_positions=32
)


def world(size: int) -> World:
    return World(rank=0, size=size, local_rank=0, local_size=size, master_addr="x", master_port=1, launcher="none")


class TestParameterGroups:
    def test_matrices_decay_and_nothing_else_does(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path, "--optim.weight-decay", "0.1")
        model = random_model(SMALL, dtype=torch.float32, seed=0)
        names = dict(model.named_parameters())
        groups = {group["name"]: group for group in parameter_groups(names, None, config)}
        decay, rest = groups["decay"], groups["no_decay"]
        assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
        assert {p.ndim for p in decay["params"]} == {2}
        assert {p.ndim for p in rest["params"]} == {1}
        assert {id(p) for p in decay["params"] + rest["params"]} == {id(p) for p in names.values()}
        assert len(decay["params"]) == 7 + 1
        assert len(rest["params"]) == 2 + 1

    def test_an_adapter_has_its_own_groups_and_all_that_trains_is_in_one(self, tmp_path: Path) -> None:
        config = minimal_config(
            tmp_path, "--optim.weight-decay", "0.1", "--adapter.kind", "monteclora", "--adapter.rank", "4",
            "--adapter.modules_to_save", "norm,embed_tokens", "--adapter.loraplus_ratio", "4", "--optim.lr", "0.5",
        )  # fmt: skip
        model = random_model(SMALL, dtype=torch.float32, seed=0)
        adapter_config = config.adapter.build()
        assert adapter_config is not None
        adapter = attach_adapter(model, adapter_config, seed=0)
        names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = {group["name"]: group for group in parameter_groups(names, adapter, config)}
        decays = {name: group["weight_decay"] for name, group in groups.items()}
        assert decays == {
            "low_rank_A": 0.1, "low_rank_B": 0.1, "variational": 0.0, "saved": 0.1, "saved_no_decay": 0.0,
        }  # fmt: skip
        assert {name: group["lr"] for name, group in groups.items()} == {
            name: 2.0 if name == "low_rank_B" else 0.5 for name in decays
        }
        grouped = [id(p) for group in groups.values() for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in names.values())

    def test_an_empty_group_is_left_out(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        groups = parameter_groups({"w": nn.Parameter(torch.ones(2, 2))}, None, config)
        assert [group["name"] for group in groups] == ["decay"]

    def test_a_partitioned_matrix_is_still_a_matrix(self, tmp_path: Path) -> None:
        parameter = nn.Parameter(torch.ones(0))
        parameter.ds_shape = torch.Size([3, 4])  # type: ignore[attr-defined]
        groups = parameter_groups({"w": parameter}, None, minimal_config(tmp_path))
        assert [group["name"] for group in groups] == ["decay"]


class TestDsConfig:
    @pytest.mark.parametrize(("size", "micro", "accumulation"), [(1, 1, 12), (2, 3, 2), (4, 3, 1), (3, 2, 2)])
    def test_batch_sizes_come_from_the_recipe_and_the_world(
        self, tmp_path: Path, size: int, micro: int, accumulation: int
    ) -> None:
        config = minimal_config(tmp_path, "--train.micro_batch_rows", str(micro))
        found = complete_ds_config({}, config, world(size))
        assert found["gradient_accumulation_steps"] == accumulation
        assert found["train_micro_batch_size_per_gpu"] == micro
        assert found["train_batch_size"] == size * micro * accumulation == 12

    def test_what_the_file_says_stays_and_the_files_dictionary_too(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        given = {"zero_optimization": {"stage": 3}, "steps_per_print": 7}
        found = complete_ds_config(given, config, world(1))
        assert found["zero_optimization"] == {"stage": 3}
        assert found["steps_per_print"] == 7
        assert given.keys() == {"zero_optimization", "steps_per_print"}

    def test_precision_and_clipping(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path, "--train.gradient_clipping", "0.3")
        bf16 = complete_ds_config({}, config, world(1))
        assert bf16["bf16"] == {"enabled": True}
        assert bf16["data_types"] == {"grad_accum_dtype": "fp32"}
        assert bf16["gradient_clipping"] == 0.3
        fp32 = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
        assert not {"bf16", "data_types"} & complete_ds_config({}, fp32, world(1)).keys()
