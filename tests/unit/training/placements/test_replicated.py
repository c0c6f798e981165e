"""The replicated placement on one rank against plain torch; several ranks are in tests/distributed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.unit.training.minimal import minimal_config
from training.config import Config
from training.placements import replicated
from training.placements.replicated import Bucket, Replicated
from training.world import World

CPU = torch.device("cpu")


def world(rank: int = 0, size: int = 1) -> World:
    return World(
        rank=rank, size=size, local_rank=rank, local_size=size, master_addr="x", master_port=1, launcher="none"
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3, bias=False))


def groups_of(module: nn.Module, config: Config) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    common = {"lr": config.optim.lr, "initial_lr": config.optim.lr, "uses_muon": False}
    return [
        {"name": "decay", "params": matrices, "weight_decay": 0.1, **common},
        {"name": "no_decay", "params": others, "weight_decay": 0.0, **common},
    ]


def placed(tmp_path: Path, *overrides: str) -> Replicated:
    config = minimal_config(tmp_path, "--train.placement", "replicated", "--optim.lr", "0.05", *overrides)
    module = network()
    return Replicated(module, groups_of(module, config), config, world(), CPU)


def state_of(placement: Replicated) -> dict[str, torch.Tensor]:
    return {name: view.clone() for name, view in placement.local_views()}


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)


def loss_of(module: nn.Module, number: int) -> torch.Tensor:
    x, y = batch(number)
    return (module(x) - y).square().mean()


def take_step(placement: Replicated, first: int, micro_batches: int = 2) -> tuple[float, bool]:
    for number in range(micro_batches):
        placement.backward(loss_of(placement.module, first + number), is_last=number == micro_batches - 1)
    norm, is_applied = placement.update()
    return float(norm), bool(is_applied)


@pytest.mark.parametrize("bucket_elements", [1, 40, 1 << 25])
@pytest.mark.parametrize("clipping", [0.0, 0.3])
def test_equals_plain_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_elements: int, clipping: float
) -> None:
    monkeypatch.setattr(replicated, "BUCKET_ELEMENTS", bucket_elements)
    placement = placed(tmp_path, "--train.gradient_clipping", str(clipping))
    plain = network()
    config = minimal_config(tmp_path, "--optim.lr", "0.05")
    optimizer = torch.optim.AdamW(
        [{k: v for k, v in group.items() if k in ("params", "weight_decay")} for group in groups_of(plain, config)],
        lr=0.05, betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.eps,
    )  # fmt: skip
    for step in range(6):
        found, is_applied = take_step(placement, 10 * step)
        (loss_of(plain, 10 * step) + loss_of(plain, 10 * step + 1)).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clipping or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        assert is_applied
        assert found == pytest.approx(float(norm), rel=1e-5)
        for ours, theirs in zip(placement.module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
            assert ours.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["adamw", "lionw"])
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, value: float, kind: str) -> None:
    placement = placed(tmp_path, "--optim.kind", kind)
    take_step(placement, 0)
    before, steps = state_of(placement), placement.optimizer_steps()
    weights = [p.detach().clone() for p in placement.module.parameters()]
    placement.backward(loss_of(placement.module, 3) * value, is_last=False)
    placement.backward(loss_of(placement.module, 4), is_last=True)
    norm, is_applied = placement.update()
    assert not bool(is_applied)
    assert not math.isfinite(float(norm))
    after = state_of(placement)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert placement.optimizer_steps() == steps
    assert all(torch.equal(a, b) for a, b in zip(weights, placement.module.parameters(), strict=True))
    # Nothing of it is left in the next step either.
    assert take_step(placement, 5)[1]


def test_state_makes_the_rest_of_the_run_the_same(tmp_path: Path) -> None:
    first = placed(tmp_path)
    take_step(first, 0)
    take_step(first, 2)
    state, steps = state_of(first), first.optimizer_steps()
    assert steps == {"decay": 2, "no_decay": 2}
    assert set(state) == {
        f"{name}{suffix}" for name, _ in network().named_parameters() for suffix in ("", "/exp_avg", "/exp_avg_sq")
    }
    second = placed(tmp_path)
    second.load_local_state(state.items(), steps)
    assert take_step(first, 4) == take_step(second, 4)
    for ours, theirs in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_group_can_forget_its_steps(tmp_path: Path) -> None:
    placement = placed(tmp_path)
    take_step(placement, 0)
    placement.reset_optimizer_steps("no_decay")
    placement.reset_optimizer_steps("there is none")
    assert placement.optimizer_steps() == {"decay": 1, "no_decay": 0}


def test_a_parameter_without_gradient_keeps_no_old_one(tmp_path: Path) -> None:
    placement = placed(tmp_path, "--optim.weight_decay", "0")
    take_step(placement, 0)
    x, y = batch(1)
    first = placement.module[0].weight.detach().clone()  # type: ignore[index]
    for group in placement.optimizer.param_groups:
        group["weight_decay"] = 0.0
    state = state_of(placement)["0.weight/exp_avg"]
    placement.backward((placement.module[3].weight.sum() * x.sum() - y.sum()) * 1e-3, is_last=True)  # type: ignore[index]
    placement.update()
    # Its moment only decays.
    torch.testing.assert_close(state_of(placement)["0.weight/exp_avg"], state * 0.9)
    assert not torch.equal(first, placement.module[0].weight)  # type: ignore[index]


def test_whole_parameters_are_those_of_the_module(tmp_path: Path) -> None:
    placement = placed(tmp_path)
    found = dict(placement.full_parameters())
    assert found.keys() == dict(network().named_parameters()).keys()
    assert [name for name, _ in placement.full_parameters(["3.weight"])] == ["3.weight"]
    assert all(
        torch.equal(value, p) for (_, p), value in zip(placement.module.named_parameters(), found.values(), strict=True)
    )  # type: ignore[arg-type]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=4),
    size=st.integers(1, 9),
)
def test_rows_of_a_bucket_are_the_ranks_slices(shapes: list[tuple[int, int]], size: int) -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    buckets = [Bucket("g", parameters, world(rank, size), CPU) for rank in range(size)]
    gradients = {id(p): torch.randn_like(p) for p in parameters}
    for parameter in parameters:
        for _ in range(2):
            buckets[0].add(parameter, gradients[id(parameter)])
    for parameter in parameters:
        numel, width = parameter.numel(), math.ceil(parameter.numel() / size)
        place = buckets[0].places[parameter]
        joined = torch.cat([bucket.master[place] for bucket in buckets])
        assert torch.equal(joined[:numel], parameter.detach().flatten())
        assert not joined[numel:].any()
        collected = buckets[0].gradients[:, place].reshape(-1)
        assert torch.equal(collected[:numel], 2 * gradients[id(parameter)].flatten())
        assert not collected[numel:].any()
        assert place.stop - place.start == width
        for rank, bucket in enumerate(buckets):
            piece = next(
                each
                for each in bucket.slices({id(p): str(id(p)) for p in parameters})
                if each.name == str(id(parameter))
            )
            assert (piece.start, piece.offset) == (rank * width, place.start)
            assert piece.numel == max(0, min(width, numel - rank * width))
