from __future__ import annotations

import dataclasses

import pytest
import torch

from training.ranks import fabric
from training.world import World

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, master_addr="127.0.0.1", master_port=0, launcher="none")


class TestMatmul:
    @pytest.mark.parametrize("side", [64, 192, 256])
    def test_a_right_product_is_exact(self, side: int) -> None:
        is_exact, flops = fabric.matmul(torch.device("cpu"), side, 1)
        assert is_exact
        assert flops > 0

    def test_a_wrong_one_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = torch.Tensor.__matmul__

        def wrong(left: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            product = right(left, other)
            product[17, 3] += 0.5
            return product

        monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
        assert not fabric.matmul(torch.device("cpu"), 128, 1)[0]


class TestLoad:
    def test_sums_stay_exact(self) -> None:
        # Of 4,096 ranks, each with its number added.
        assert 4096 * 250 + sum(range(4096)) < 2**24
        assert int(fabric._pattern(1000, torch.device("cpu")).max()) == 250

    def test_cpus_get_less(self) -> None:
        assert fabric.load_of("cpu").elements < fabric.load_of("cuda").elements


def test_one_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    found = fabric.measure(ALONE, torch.distributed.HashStore(), [[0]], fabric.load_of("cpu"), stages.append)
    fabric.leave(0)
    assert found == dataclasses.asdict(fabric.Measured())
    assert stages == ["join"]


def test_what_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Connection refused\nby somebody")

    monkeypatch.setattr(fabric.dist, "init_process_group", refuse)
    found = fabric.measure(ALONE, torch.distributed.HashStore(), [[0]], fabric.load_of("cpu"))
    assert (found["stopped_at"], found["error"]) == ("join", "Connection refused")


def test_a_gpu_for_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="rank 2 is number 2 and is shown 2"):
        fabric._take_gpu(dataclasses.replace(ALONE, rank=2, size=3, local_rank=2, local_size=3))
