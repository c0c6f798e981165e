from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.costs.test_shape import LLAMA_2_7B, SHAPES
from tests.unit.training.minimal import minimal_config
from training import distributed
from training.config import Config
from training.costs import fitting
from training.costs.fitting import available_memory, check_fits, fit_problems, recomputed_layers, setup_of
from training.costs.memory import GiB, estimate, layers_to_recompute, usable_bytes
from training.recipe import ConfigError
from training.world import World

CPU = torch.device("cpu")
DS: dict[str, Any] = {"zero_optimization": {"reduce_bucket_size": 1, "stage3_param_persistence_threshold": 1}}
ALONE = World(rank=0, size=1, local_rank=0, local_size=1, master_addr="127.0.0.1", master_port=1, launcher="none")


def configured(folder: Path, *overrides: str) -> Config:
    return minimal_config(folder, *overrides)


class TestProblems:
    def problems(self, config: Config, memory: float, ranks: int = 8) -> list[str]:
        return fit_problems(config, DS, memory, ranks=ranks, ranks_per_node=8, shape=LLAMA_2_7B)

    def test_by_how_much_and_what_would(self, tmp_path: Path) -> None:
        config = configured(tmp_path, "--train.placement", "replicated")
        (problem,) = self.problems(config, 40 * GiB)
        # 2 + 4 bytes of everything and 12 of an eighth: 6,738,415,616 x 7.5 bytes.
        assert problem == (
            'train.placement = "replicated": can\'t fit. On 8 rank(s) each holds 47.1 GiB between steps (weights 12.6, '
            "gradients 25.1, masters 3.1, optimizer 6.3), and its device has 40.0 GiB: 7.1 GiB too much. What would: "
            "--train.placement zero3; --train.placement zero3_offload (with 13 GiB of host memory per rank); "
            "--adapter.kind lora --train.placement replicated."
        )

    def test_more_ranks(self, tmp_path: Path) -> None:
        (problem,) = self.problems(configured(tmp_path), 10 * GiB)
        assert "can't fit. On 8 rank(s) each holds 14.1 GiB" in problem
        assert "zero3_offload" in problem
        assert "16 ranks with zero3" in problem
        # A replicated base of 12.6 GiB doesn't fit, a shared one does.
        assert "--adapter.kind lora --train.placement zero3." in problem

    def test_nothing_would(self, tmp_path: Path) -> None:
        config = configured(tmp_path, "--adapter.kind", "lora", "--adapter.rank", "8")
        (problem,) = fit_problems(config, {}, 0.1 * GiB, ranks=8, ranks_per_node=8, shape=LLAMA_2_7B)
        assert problem.endswith("Nothing would with this model on such devices; use larger ones.")

    def test_what_depends_on_the_batch_is_no_reason(self, tmp_path: Path) -> None:
        config = configured(tmp_path, "--train.micro_batch_rows", "12")
        assert self.problems(config, 15 * GiB) == []

    def test_an_unknown_shape(self, tmp_path: Path) -> None:
        assert fit_problems(configured(tmp_path), DS, 1, ranks=1, ranks_per_node=1, shape=None) == []


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A recipe whose base has a shape; one rank, of which nothing is asked over the network."""
    monkeypatch.setattr(distributed, "from_rank_0", lambda compute, world: compute())
    monkeypatch.setattr(distributed, "gather", lambda value, world: [value, value + 1])
    config = minimal_config(tmp_path)
    SHAPES["plain"].save_pretrained(tmp_path / "base")
    return config


def with_checkpointing(config: Config, value: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, activation_checkpointing=value))


class TestDevices:
    def test_a_run_that_fits(self, config: Config) -> None:
        check_fits(config, DS, ALONE, CPU)

    def test_one_that_does_not(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fitting, "available_memory", lambda: 1000)
        with pytest.raises(ConfigError, match="can't fit"):
            check_fits(config, DS, ALONE, CPU)

    @pytest.mark.parametrize(("written", "layers"), [("off", 0), ("1", 1), ("full", 2)])
    def test_layers_as_written(self, config: Config, written: str, layers: int) -> None:
        assert recomputed_layers(with_checkpointing(config, written), DS, ALONE, CPU) == layers

    def test_auto_takes_as_few_as_fit(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        config = with_checkpointing(config, "auto")
        shape = config._llama_shape()
        assert shape is not None
        setup = setup_of(config, shape, ranks=1, ranks_per_node=1, ds_config=DS, device="cpu")
        sizes = [estimate(dataclasses.replace(setup, recomputed_layers=k)).total for k in range(3)]
        assert sizes[0] > sizes[1] > sizes[2]
        for available, layers in [(sizes[0], 0), (sizes[0] - 1, 1), (sizes[1] - 1, 2), (1, 2)]:
            monkeypatch.setattr(fitting, "available_memory", lambda size=available: int(size + 0.5))
            assert recomputed_layers(config, DS, ALONE, CPU) == layers

    def test_a_gpu_keeps_a_margin(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[float] = []
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: type("P", (), {"total_memory": 80 * GiB})
        )
        monkeypatch.setattr(fitting, "layers_to_recompute", lambda setup, size: asked.append(size) or 1)
        assert recomputed_layers(with_checkpointing(config, "auto"), DS, ALONE, torch.device("cuda", 0)) == 1
        assert asked == [usable_bytes(80 * GiB)]

    @pytest.mark.parametrize("written", ["full", "auto"])
    def test_a_model_of_unknown_shape(self, config: Config, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*names: str) -> str:
            raise OSError(names)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
        model = dataclasses.replace(config.model, base="nobody/nothing", activation_checkpointing=written)
        with pytest.raises(
            ConfigError, match="the number of layers of nobody/nothing is not known before it is loaded"
        ):
            recomputed_layers(dataclasses.replace(config, model=model), DS, ALONE, CPU)


def test_memory_of_this_machine() -> None:
    assert 2**26 < available_memory() < 2**50


def test_layers_for_a_7b_on_one_gpu(tmp_path: Path) -> None:
    setup = setup_of(configured(tmp_path), LLAMA_2_7B, ranks=8, ranks_per_node=8, ds_config=DS)
    assert layers_to_recompute(setup, usable_bytes(80 * GiB)) == 0
