"""What holds for every optimizer that a recipe can choose."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.optim import LionW, Muon, make_optimizer, materialised, state_names

KINDS = get_args(get_type_hints(OptimConfig)["kind"])
MATRIX, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def made(kind: Any, **settings: Any) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """A matrix and a vector, and their optimizer."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        MATRIX: nn.Parameter(torch.randn(6, 4, generator=generator)),
        NORM: nn.Parameter(torch.randn(5, generator=generator)),
    }
    config = OptimConfig(kind=kind, **{"lr": 0.1, **settings})
    groups = [
        {"name": name, "params": [p], "lr": config.lr, "initial_lr": config.lr, "weight_decay": 0.1,
         "uses_muon": kind == "muon" and name == MATRIX}
        for name, p in parameters.items()
    ]  # fmt: skip
    return parameters, make_optimizer(groups, config)


def set_gradients(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters.values():
        p.grad = torch.randn(p.shape, generator=generator)


def snapshot(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    values = {name: p.detach().clone() for name, p in parameters.items()}
    for name, p in parameters.items():
        values |= {f"{name}/{key}": value.clone() for key, value in optimizer.state[p].items()}
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_class_of_its_own(kind: Any) -> None:
    _, optimizer = made(kind)
    assert type(optimizer) is {"adamw": torch.optim.AdamW, "lionw": LionW, "muon": Muon}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_reach_every_group(kind: Any) -> None:
    _, optimizer = made(kind, beta1=0.7, beta2=0.8, eps=1e-3)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.7, 0.8)
        assert (group["lr"], group["weight_decay"]) == (0.1, 0.1)
        assert kind == "lionw" or group["eps"] == 1e-3


def test_adamw_takes_the_steps_of_its_formulas() -> None:
    parameters, optimizer = made("adamw", beta1=0.8, beta2=0.9, eps=1e-2)
    p = parameters[NORM]
    w, m, v = p.detach().double(), torch.zeros(5).double(), torch.zeros(5).double()
    for step in range(1, 6):
        set_gradients(parameters, step)
        assert p.grad is not None
        g = p.grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w = w * (1 - 0.1 * 0.1) - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-2)
        optimizer.step()
    torch.testing.assert_close(p.detach().double(), w, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_called_off_changes_nothing(kind: Any) -> None:
    """Not even when it is the first, nor with gradients that are no numbers."""
    parameters, optimizer = made(kind)
    other_parameters, other = made(kind)
    for seed in range(4):
        before = snapshot(parameters, optimizer)
        for p in parameters.values():
            p.grad = torch.full_like(p, float("nan" if seed % 2 else "inf"))
        optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
        optimizer.step()
        after = snapshot(parameters, optimizer)
        for name, value in before.items():
            assert torch.equal(after[name], value), name
        if seed == 0:
            assert all(not value.any() for name, value in after.items() if "/" in name)
        # What is not called off is an ordinary step.
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
        set_gradients(parameters, seed)
        optimizer.step()
        set_gradients(other_parameters, seed)
        other.step()
        torch.testing.assert_close(snapshot(parameters, optimizer), snapshot(other_parameters, other), rtol=0, atol=0)
    for p in parameters.values():
        assert optimizer.state[p]["step"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_states_have_the_names_they_are_said_to_have(kind: Any) -> None:
    parameters, optimizer = made(kind)
    set_gradients(parameters, 0)
    optimizer.step()
    for name, p in parameters.items():
        names = state_names(OptimConfig(kind=kind), name, p.shape)
        state = optimizer.state[p]
        assert state.keys() == {*names, "step"}
        assert all(state[key].shape == p.shape for key in names)
        assert (state["step"].dtype, state["step"].item()) == (torch.float32, 1.0)


def test_states_of_muon_depend_on_the_parameter() -> None:
    config = OptimConfig(kind="muon")
    assert state_names(config, MATRIX, (6, 4)) == ("momentum_buffer",)
    for name, shape in ((NORM, (5,)), ("model.layers.0.input_layernorm.weight", (4,)), ("lm_head.weight", (9, 4)),
                        ("model.embed_tokens.weight", (9, 4))):  # fmt: skip
        assert state_names(config, name, shape) == ("exp_avg", "exp_avg_sq")


@pytest.mark.parametrize("kind", KINDS)
def test_states_can_be_made_before_the_first_step(kind: Any) -> None:
    parameters, optimizer = made(kind)
    other_parameters, other = made(kind)
    for name, p in parameters.items():
        state = materialised(optimizer, p)
        assert state.keys() == {*state_names(OptimConfig(kind=kind), name, p.shape), "step"}
        assert not any(value.any() for value in state.values())
        assert not any(value.requires_grad for value in state.values())
        assert materialised(optimizer, p) is state
    for seed in range(2):
        set_gradients(parameters, seed)
        set_gradients(other_parameters, seed)
        optimizer.step()
        other.step()
    torch.testing.assert_close(snapshot(parameters, optimizer), snapshot(other_parameters, other), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["lionw", "muon"])
def test_the_host_never_waits_for_a_value(kind: Any) -> None:
    """Tensors without values: whatever asks for one fails."""
    p = nn.Parameter(torch.empty(6, 4, device="meta"))
    group = {"params": [p], "lr": 0.1, "initial_lr": 0.1, "weight_decay": 0.1, "uses_muon": True}
    optimizer = make_optimizer([group], OptimConfig(kind=kind))
    p.grad = torch.empty_like(p)
    optimizer.found_inf = torch.empty((), device="meta")  # type: ignore[attr-defined]
    optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.state[p]["step"].item()
