"""The random layer: its law, its gradients, and that nothing around it (eval, checkpointing, copying) breaks them."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.distributions import sample_simplex, sample_std
from monteclora.lora import LoRALinear
from monteclora.monteclora import MonteCLoRALinear, collapsed_noise, sampled_noise
from monteclora.penalty import variational_penalty

CONFIG = MonteCLoRAConfig(rank=4, alpha=8, num_samples=4, noise_scale=0.1, kl_weight=1e-2)
NAMES = ["lora_A", "lora_B", "log_std", "log_concentration"]


def layer(config: MonteCLoRAConfig = CONFIG, dtype: torch.dtype = torch.float32) -> MonteCLoRALinear:
    torch.manual_seed(0)
    made = MonteCLoRALinear(nn.Linear(6, 5).to(dtype), config)
    with torch.no_grad():
        made.lora_B.normal_()
    return made


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_initial_values() -> None:
    made = MonteCLoRALinear(nn.Linear(6, 5), replace(CONFIG, rank=400, num_samples=300))
    assert all(0 <= p.min() < 0.05 and 0.95 < p.max() < 1 for p in (made.log_std, made.log_concentration))
    assert made.log_std.shape == (400,)
    assert made.log_concentration.shape == (300,)


def test_evaluation_is_lora_exactly() -> None:
    made, x = layer().eval(), torch.randn(3, 6)
    plain = LoRALinear(made.base, LoRAConfig(rank=4, alpha=8))
    plain.load_state_dict(made.state_dict(), strict=False)
    assert torch.equal(made(x), plain(x))
    assert made.last_draw is None


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_without_noise_is_lora_exactly(estimator: Any, dtype: torch.dtype) -> None:
    made = layer(replace(CONFIG, noise_scale=0.0, estimator=estimator), dtype)
    x = torch.randn(3, 6, dtype=dtype)
    assert torch.equal(made(x), made.eval()(x))
    assert not torch.equal(layer(dtype=dtype)(x), made(x))


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input_needs_grad", [False, True])
def test_gradients_reach_all_four_parameters(estimator: Any, dtype: torch.dtype, input_needs_grad: bool) -> None:
    made = layer(replace(CONFIG, estimator=estimator), dtype)
    made(torch.randn(3, 6, dtype=dtype, requires_grad=input_needs_grad)).float().square().sum().backward()
    found = gradients(made)
    assert sorted(found) == sorted(NAMES)
    assert all(grad.dtype == dtype and grad.isfinite().all() and grad.abs().sum() > 0 for grad in found.values())


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_gradient_of_loss_and_penalty_by_finite_differences(estimator: Any, num_samples: int) -> None:
    config = replace(CONFIG, estimator=estimator, num_samples=num_samples)
    made = layer(config, torch.float64)
    made.penalty_weight.value = 0.6
    x = torch.randn(3, 6, dtype=torch.float64)

    def objective() -> Tensor:
        torch.manual_seed(1)
        loss = made(x).square().sum()
        assert made.last_draw is not None
        return loss.detach() + 0.6 * variational_penalty(made.last_draw, config), loss

    objective()[1].backward()
    for name in NAMES:
        parameter = made.get_parameter(name)
        flat = parameter.data.view(-1)
        for index in range(min(len(flat), 4)):
            original, step = flat[index].item(), 1e-6
            flat[index] = original + step
            above = objective()[0]
            flat[index] = original - step
            below = objective()[0]
            flat[index] = original
            numeric = (above - below) / (2 * step)
            torch.testing.assert_close(parameter.grad.view(-1)[index], numeric, rtol=1e-6, atol=1e-6)


def test_penalty_gradient_is_the_same_with_a_frozen_a() -> None:
    """The post-hoc phase trains s and t alone."""
    made, x = layer(), torch.randn(3, 6)
    made.penalty_weight.value = 1.0
    torch.manual_seed(1)
    made(x).sum().backward()
    wanted = gradients(made)
    made.zero_grad()
    made.lora_A.requires_grad_(False)
    made.lora_B.requires_grad_(False)
    torch.manual_seed(1)
    made(x).sum().backward()
    found = gradients(made)
    assert sorted(found) == ["log_concentration", "log_std"]
    assert all(torch.equal(found[name], wanted[name]) for name in found)


class Net(nn.Module):
    def __init__(self, mode: bool | None, *, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = replace(CONFIG, dropout=dropout)
        self.layers = nn.ModuleList(MonteCLoRALinear(nn.Linear(6, 6), config) for _ in range(4))
        for made in self.layers:
            nn.init.normal_(made.lora_B)
            made.penalty_weight.value = 0.5
        self.blocks = [nn.Sequential(one, nn.Tanh(), two) for one, two in (self.layers[:2], self.layers[2:])]
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.mode is None else checkpoint(block, x, use_reentrant=self.mode)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_gives_the_same_bits(reentrant: bool, dropout: float) -> None:
    results = []
    for mode in (None, reentrant):
        net = Net(mode, dropout=dropout)
        torch.manual_seed(7)
        x = torch.randn(3, 6).requires_grad_()
        loss = net(x).square().sum()
        loss.backward()
        results.append((loss.detach(), gradients(net), torch.stack([made.last_draw for made in net.layers])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][2], results[1][2])
    assert results[0][1].keys() == results[1][1].keys()
    assert len(results[0][1]) == 16
    for name, grad in results[0][1].items():
        assert torch.equal(grad, results[1][1][name]), name


@pytest.mark.parametrize("mode", [None, True, False])
def test_penalty_gradient_is_present_with_and_without_checkpointing(mode: bool | None) -> None:
    found = []
    for weight in (0.0, 0.5):
        net = Net(mode)
        for made in net.layers:
            made.penalty_weight.value = weight
        torch.manual_seed(7)
        net(torch.randn(3, 6).requires_grad_()).sum().backward()
        found.append(gradients(net))
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]) is not name.endswith(("log_std", "log_concentration"))


def test_noise_follows_the_default_generator() -> None:
    made, x = layer(), torch.randn(3, 6)
    torch.manual_seed(5)
    first, second = made(x), made(x)
    torch.manual_seed(5)
    assert torch.equal(made(x), first)
    assert not torch.equal(first, second)


def test_nothing_of_a_forward_stays_in_the_module() -> None:
    made, x = layer(), torch.randn(3, 6)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made(x).sum().backward()
    assert made.last_draw is not None
    assert not made.last_draw.requires_grad
    assert dict(made.named_buffers()) == {}
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    twin = copy.deepcopy(made)
    torch.manual_seed(2)
    wanted = made(x)
    torch.manual_seed(2)
    assert torch.equal(twin(x), wanted)


def test_an_in_place_activation_may_follow() -> None:
    made = layer()
    made.penalty_weight.value = 1.0
    nn.Sequential(made, nn.ReLU(inplace=True))(torch.randn(3, 6)).sum().backward()
    assert made.log_std.grad is not None


def test_autocast_keeps_the_noise_in_fp32() -> None:
    made = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        cast = made.sample_a()
    torch.manual_seed(1)
    assert torch.equal(made.sample_a(), cast)


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_a_step_never_waits_for_a_value(estimator: Any) -> None:
    """On the meta device there are no values: whatever would make the host wait for one raises."""
    made = MonteCLoRALinear(nn.Linear(6, 5, device="meta"), replace(CONFIG, estimator=estimator, dropout=0.1))
    made.penalty_weight.value = 1.0
    made(torch.empty(3, 6, device="meta")).sum().backward()
    assert sorted(gradients(made)) == sorted(NAMES)


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_step_has_few_operations_whatever_the_size_of_the_mixture() -> None:
    def count(made: LoRALinear) -> int:
        with CountOperations() as mode:
            made(torch.randn(3, 6)).sum().backward()
        return mode.count

    plain = count(LoRALinear(nn.Linear(6, 5), CONFIG))
    counts = []
    for num_samples in (2, 64):
        made = layer(replace(CONFIG, num_samples=num_samples))
        made.penalty_weight.value = 1.0
        counts.append(count(made) - plain)
    assert counts[0] == counts[1]
    assert counts[0] <= 85


def test_mean_and_variance_of_the_noise() -> None:
    torch.manual_seed(0)
    made = MonteCLoRALinear(nn.Linear(2000, 2, bias=False), replace(CONFIG, noise_scale=0.5))
    with torch.no_grad():
        draws = torch.stack([made.sample_a() - made.lora_A for _ in range(300)])
        pi = sample_simplex(made.log_concentration, torch.randn(50_000, 4))
    collision = pi.square().sum(-1).mean()
    expected = 0.25 * collision * 4 * (2 * made.log_std.detach()).exp()
    variance = draws.square().mean((0, 2))
    torch.testing.assert_close(variance, expected, rtol=0.15, atol=0)
    assert draws.mean((0, 2)).abs().max() < 4 * (expected.max() / 600_000).sqrt()


def test_collapsed_and_sampled_noise_have_the_same_moments() -> None:
    torch.manual_seed(0)
    std, pi = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.2, 0.7])
    collapsed, sampled = (form(std, pi, 200_000) for form in (collapsed_noise, sampled_noise))
    second = std.square() * pi.square().sum()
    for draw in (collapsed, sampled):
        torch.testing.assert_close(draw.square().mean(1), second, rtol=0.02, atol=0)
        torch.testing.assert_close(draw.pow(4).mean(1), 3 * second.square(), rtol=0.05, atol=0)
        assert torch.corrcoef(draw).triu(1).abs().max() < 0.01


def test_collapsed_gradient_of_t_has_the_mean_of_the_sampled_one_and_less_variance() -> None:
    """A quadratic loss, so that the gradient with respect to t does not vanish on average."""
    torch.manual_seed(0)
    draws, rank, width, size = 20_000, 4, 6, 4
    target = torch.randn(rank, width)
    t = torch.rand(size)
    found = []
    for form in ("collapsed", "sampled"):
        ts = t.expand(draws, size).clone().requires_grad_()
        pi = sample_simplex(ts, torch.randn(draws, size))
        std = sample_std(torch.zeros(rank), torch.randn(draws, rank, rank))
        if form == "collapsed":
            mixture = pi.norm(dim=-1).view(-1, 1, 1) * torch.randn(draws, rank, width)
        else:
            mixture = torch.einsum("bn,bnrd->brd", pi, torch.randn(draws, size, rank, width))
        (std.unsqueeze(-1) * mixture - target).square().sum().backward()
        assert ts.grad is not None
        found.append(ts.grad)
    collapsed, sampled = found
    error = ((collapsed.var(0) + sampled.var(0)) / draws).sqrt()
    assert ((collapsed.mean(0) - sampled.mean(0)).abs() < 4 * error).all()
    assert collapsed.mean(0).abs().max() > 4 * error.max()
    assert collapsed.var(0).sum() < 0.9 * sampled.var(0).sum()


def test_layers_of_both_estimators_learn_alike() -> None:
    """The mean of the layer's own gradients agrees between the two forms, for all four parameters."""
    torch.manual_seed(0)
    x, grads = torch.randn(8, 6), {}
    for estimator in ("collapsed", "sampled"):
        made = layer(replace(CONFIG, estimator=estimator, noise_scale=0.3))  # type: ignore[arg-type]
        made.penalty_weight.value = 1.0
        rows = []
        for _ in range(150):
            made.zero_grad()
            made(x).square().mean().backward()
            rows.append(torch.cat([made.get_parameter(name).grad.flatten() for name in NAMES]))  # type: ignore[union-attr]
        grads[estimator] = torch.stack(rows)
    one, two = grads.values()
    error = ((one.var(0) + two.var(0)) / len(one)).sqrt()
    assert ((one.mean(0) - two.mean(0)).abs() / error).max() < 4.5
    assert math.isfinite(error.sum().item())
