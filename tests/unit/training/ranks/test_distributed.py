"""How a rank finds its GPU, with GPUs that aren't there; joining for real is in tests/distributed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from training.ranks.distributed import gpu_index, init_distributed, leave_distributed, shared_gpu
from training.recipe import ConfigError
from training.world import World, free_port


def alone(local_rank: int, local_size: int) -> World:
    """A world of one that believes to be one of several ranks on its node."""
    return World(
        rank=0, size=1, local_rank=local_rank, local_size=local_size, master_addr="127.0.0.1", master_port=free_port(),
        launcher="test",
    )  # fmt: skip


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Call it with a number of GPUs to pretend; it returns the devices that were chosen."""
    chosen: list[int] = []

    def pretend(number: int) -> list[int]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
        return chosen

    real = dist.init_process_group

    def over_gloo(backend: str, **more: Any) -> None:
        assert backend == "cpu:gloo,cuda:nccl"
        real("gloo", **more)

    monkeypatch.setattr(dist, "init_process_group", over_gloo)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    yield pretend
    leave_distributed()


@pytest.mark.parametrize(("local_rank", "shown", "index"), [(0, 1, 0), (3, 8, 3), (3, 1, 0), (0, 8, 0)])
def test_a_rank_takes_its_own_gpu_or_the_only_one(
    gpus: Callable[[int], list[int]], local_rank: int, shown: int, index: int
) -> None:
    """One is shown where Slurm gives every task its own (--gpus-per-task, --gpu-bind)."""
    chosen = gpus(shown)
    assert gpu_index(local_rank, shown) == index
    assert init_distributed(alone(local_rank, 8)) == torch.device("cuda", index)
    assert chosen == [index]
    assert os.environ["LOCAL_RANK"] == str(index)


def test_fewer_gpus_than_ranks_on_the_node(gpus: Callable[[int], list[int]]) -> None:
    chosen = gpus(2)
    with pytest.raises(ConfigError) as caught:
        init_distributed(alone(2, 8))
    assert caught.value.problems == [
        "rank 0 is number 2 on its node, which shows it 2 GPUs; start as many ranks per node as it has GPUs"
    ]
    assert chosen == []


def test_two_ranks_with_one_gpu() -> None:
    assert shared_gpu([None, None]) is None
    assert shared_gpu(["A of n1", "B of n1", "A of n2"]) is None
    assert shared_gpu(["A of n1", "B of n1", "C of n1", "B of n1"]) == (
        "ranks 1 and 3 were given the same GPU, B of n1; start as many ranks per node as it has GPUs, and let the launcher "
        "show each of them all of these or one of its own"
    )
