from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.costs.test_shape import LLAMA_2_7B, SHAPES
from tests.unit.training.minimal import minimal_config
from training.config import Config
from training.costs import fitting
from training.costs.fitting import (
    available_memory,
    check_fits,
    copy_problem,
    fit_problems,
    recomputed_layers,
    setup_of,
)
from training.costs.memory import GiB, estimate, layers_to_recompute, usable_bytes
from training.ranks import distributed
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

    def test_an_adapter_instead_of_muon_has_another_optimizer(self, tmp_path: Path) -> None:
        config = configured(tmp_path, "--optim.kind", "muon", "--train.placement", "replicated")
        (problem,) = self.problems(config, 30 * GiB)
        assert problem.endswith("--adapter.kind lora --optim.kind adamw --train.placement replicated.")

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
        asked = []

        def unreachable(*names: str, revision: str | None) -> str:
            asked.append((*names, revision))
            raise OSError(names)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
        model = dataclasses.replace(
            config.model, base="nobody/nothing", revision="v2", activation_checkpointing=written
        )
        with pytest.raises(
            ConfigError, match="the number of layers of nobody/nothing is not known before it is loaded"
        ):
            recomputed_layers(dataclasses.replace(config, model=model), DS, ALONE, CPU)
        assert asked == [("nobody/nothing", "config.json", "v2")]


class TestCopies:
    def test_there_is_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fitting, "available_memory", lambda: 8000)
        assert copy_problem(1000, 8) is None

    @pytest.mark.parametrize(
        ("size", "free", "said"),
        [
            (10 * GiB, 40 * GiB, "need 80.0 GiB of host memory on node7 (8 rank(s), 10.0 GiB each), and 40.0 GiB are free."),
            (2**20, 3 * 2**20, "need 8 MiB of host memory on node7 (8 rank(s), 1 MiB each), and 3 MiB are free."),
        ],
    )  # fmt: skip
    def test_there_is_none(self, size: int, free: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fitting, "available_memory", lambda: free)
        monkeypatch.setattr(fitting.os, "uname", lambda: type("Name", (), {"nodename": "node7"}))  # type: ignore[attr-defined]
        assert copy_problem(size, 8) == (
            f"checkpoint.background = true: its copies of what is saved {said} Use more nodes, or checkpoint.background = false: "
            "training then waits while a checkpoint is written, and nothing is copied"
        )


def test_memory_of_this_machine() -> None:
    assert 2**26 < available_memory() < 2**50


class TestAvailableMemory:
    """Of a machine that has 1,000 KiB left, in made-up files."""

    MACHINE = 1000 * 1024

    def left(self, root: Path, groups: str, files: dict[str, str]) -> int:
        written = {"proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    1000 kB\n", "proc/self/cgroup": groups, **files}
        for name, content in written.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return available_memory(root)

    def version_2(self, folder: str, limit: str, used: int, inactive: int = 0) -> dict[str, str]:
        return {
            f"{folder}/memory.max": f"{limit}\n", f"{folder}/memory.current": f"{used}\n",
            f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 7\n",
        }  # fmt: skip

    def version_1(self, folder: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
        return {
            f"{folder}/memory.limit_in_bytes": f"{limit}\n", f"{folder}/memory.usage_in_bytes": f"{used}\n",
            f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}\n",
        }  # fmt: skip

    def test_no_control_group(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, "", {}) == self.MACHINE
        (tmp_path / "proc/self/cgroup").unlink()
        assert available_memory(tmp_path) == self.MACHINE

    def test_a_container_of_version_2(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, "0::/\n", self.version_2("sys/fs/cgroup", "5000", 3000)) == 2000

    def test_no_limit(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, "0::/\n", self.version_2("sys/fs/cgroup", "max", 3000)) == self.MACHINE

    def test_a_limit_above_what_the_machine_has(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, "0::/\n", self.version_2("sys/fs/cgroup", "5000000", 0)) == self.MACHINE

    def test_the_limit_of_an_outer_group(self, tmp_path: Path) -> None:
        files = {
            **self.version_2("sys/fs/cgroup/slurm/job_7", "9000", 3000),
            **self.version_2("sys/fs/cgroup/slurm/job_7/step_0", "max", 2000),
            **self.version_2("sys/fs/cgroup/slurm/job_8", "1", 0),
        }
        assert self.left(tmp_path, "0::/slurm/job_7/step_0\n", files) == 6000

    def test_files_that_were_read_make_room(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, "0::/\n", self.version_2("sys/fs/cgroup", "5000", 4900, inactive=4000)) == 4100

    def test_more_used_than_allowed(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, "0::/\n", self.version_2("sys/fs/cgroup", "5000", 6000)) == 0

    def test_version_1_beside_an_empty_version_2(self, tmp_path: Path) -> None:
        groups = "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/\n"
        files = {
            **self.version_1("sys/fs/cgroup/memory/job/step", 8000, 5000, inactive=500),
            **self.version_1("sys/fs/cgroup/memory", 9223372036854771712, 5000),
        }
        assert self.left(tmp_path, groups, files) == 3500

    def test_a_container_that_sees_its_group_as_the_outermost(self, tmp_path: Path) -> None:
        files = self.version_1("sys/fs/cgroup/memory", 8000, 5000)
        assert self.left(tmp_path, "4:memory:/docker/c0ffee\n", files) == 3000


def test_layers_for_a_7b_on_one_gpu(tmp_path: Path) -> None:
    setup = setup_of(configured(tmp_path), LLAMA_2_7B, ranks=8, ranks_per_node=8, ds_config=DS)
    assert layers_to_recompute(setup, usable_bytes(80 * GiB)) == 0
