"""The DeepSpeed configuration; its steps need ranks and are tested in tests/distributed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.unit.training.minimal import minimal_config
from training.placements.zero3 import complete_ds_config
from training.world import World


def world(size: int, local_size: int | None = None) -> World:
    return World(
        rank=0, size=size, local_rank=0, local_size=local_size or size, master_addr="x", master_port=1, launcher="none"
    )


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

    def test_the_placement_says_what_is_partitioned_and_offloaded(self, tmp_path: Path) -> None:
        given = {"zero_optimization": {"stage": 3}}
        hpz = complete_ds_config(given, minimal_config(tmp_path, "--train.placement", "zero3_hpz"), world(12, 4))
        assert hpz["zero_optimization"] == {"stage": 3, "zero_hpz_partition_size": 4}
        offload = complete_ds_config(given, minimal_config(tmp_path, "--train.placement", "zero3_offload"), world(2))
        assert offload["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
        assert offload["zero_force_ds_cpu_optimizer"] is False
        assert given == {"zero_optimization": {"stage": 3}}

    def test_ranks_that_share_rows_count_once(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, sequence_parallel=2))
        found = complete_ds_config({}, config, world(4))
        assert found["gradient_accumulation_steps"] == 6
        assert found["train_batch_size"] == 24
