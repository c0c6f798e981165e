"""The random layer: its law, its gradients, and that checkpointing, evaluation and precision leave them what they are."""

import copy
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from monteclora import low_rank
from monteclora.adapter import Adapter
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.controls import Controls
from monteclora.distributions import VARIANCE_FLOOR, chi_square, sample_simplex
from monteclora.low_rank import standard_normal
from monteclora.monteclora import sampled_noise
from monteclora.posterior import BlockPosterior, LayerDraw
from tests.unit.monteclora.networks import (
    TARGETS,
    WIDTH,
    Block,
    CountOperations,
    Stack,
    adapt,
    assert_same_bits,
    gradients,
    two_sample_distance,
)

PLAIN = LoRAConfig(rank=3, rank_pattern={"o_proj": 2}, targets=TARGETS)
CONFIG = MonteCLoRAConfig(
    rank=3, rank_pattern={"o_proj": 2}, targets=TARGETS, noise_scale=0.3, kl_weight=0.1, coop_weight=0.7
)


def data(*, requires_grad: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 5, WIDTH, generator=generator).to(dtype).requires_grad_(requires_grad)


def as_lora(net: nn.Module, adapter: Adapter, config: LoRAConfig = PLAIN) -> tuple[nn.Module, Adapter]:
    """A plain LoRA of the same weights, and an adapter with the same A and B."""
    plain = Stack().to(data().dtype)
    other = adapt(plain, config)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "monteclora" not in k})
    return plain, other


# The same function as LoRA where there is no noise.


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_evaluation_is_lora_exactly(estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, estimator=estimator, dropout=0.3))
    plain, _ = as_lora(net, adapter)
    assert torch.equal(net.eval()(data()), plain.eval()(data()))
    with CountOperations() as one:
        net(data())
    with CountOperations() as two:
        plain(data())
    assert one.counts == two.counts


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_training_without_noise_is_lora_exactly(estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, noise_scale=0.0, estimator=estimator))
    plain, other = as_lora(net, adapter)
    found = gradients(net, adapter, data(requires_grad=True))
    wanted = gradients(plain, other, data(requires_grad=True))
    assert torch.equal(net(data()), plain(data()))
    assert_same_bits({name: found[name] for name in wanted}, wanted)


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_little_noise_is_nearly_lora(estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, noise_scale=1e-6, estimator=estimator))
    plain, other = as_lora(net, adapter)
    found = gradients(net, adapter, data(requires_grad=True))
    for name, wanted in gradients(plain, other, data(requires_grad=True)).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_before_the_first_step_with_noise_training_is_lora_exactly() -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, start_step=2, dropout=0.3))
    plain, other = as_lora(net, adapter, replace(PLAIN, dropout=0.3))
    wanted = gradients(plain, other, data())
    for step, is_lora in enumerate((True, True, False)):
        adapter.begin_step(step)
        found = gradients(net, adapter, data())
        assert (found["layers.0.monteclora.log_std"] is None) is is_lora
        same = [torch.equal(found[n], value) for n, value in wanted.items() if value is not None]  # type: ignore[arg-type]
        assert all(same) if is_lora else not any(same)
        assert (adapter.penalty().item() == 0) is is_lora


# Gradients.


@pytest.mark.parametrize(
    ("config", "requires_grad"),
    [
        (PLAIN, True),
        (replace(PLAIN, dropout=0.4, rslora=True, alpha=4.0), False),
        (CONFIG, True),
        (CONFIG, False),
        (replace(CONFIG, analytic_kl=True), True),
        (replace(CONFIG, dropout=0.4), True),
        (replace(CONFIG, num_samples=1), False),
        (replace(CONFIG, estimator="sampled"), True),
        (replace(CONFIG, estimator="sampled", analytic_kl=True, dropout=0.4), False),
    ],
    ids=lambda value: "",
)
def test_every_gradient_is_that_of_finite_differences(config: LoRAConfig, requires_grad: bool) -> None:
    net = Stack(1).double()
    adapter = adapt(net, config, penalty_weight=0.6)
    for posterior in adapter.posteriors.values():
        posterior.log_std.data[0] = -20  # under the floor
    x = data(requires_grad=requires_grad, dtype=torch.float64)
    found = gradients(net, adapter, x)

    def objective() -> float:
        torch.manual_seed(3)
        with torch.no_grad():
            return float(net(x).square().mean() + 0.6 * adapter.penalty())

    step = 1e-6
    for name, tensor in adapter.named_parameters().items() | ({"x": x} if requires_grad else {}).items():
        numeric, flat = torch.empty(tensor.numel(), dtype=torch.float64), tensor.data.view(-1)
        for index, value in enumerate(flat.tolist()):
            flat[index] = value + step
            above = objective()
            flat[index] = value - step
            numeric[index] = (above - objective()) / (2 * step)
            flat[index] = value
        torch.testing.assert_close(found[name], numeric.view_as(tensor), rtol=1e-6, atol=2e-8)
        assert tensor.numel() == 1 or numeric.abs().max() > 0 or config == replace(CONFIG, num_samples=1), name
    assert requires_grad or found["x"] is None


class Recomputed(nn.Module):
    """Calls its inner model, as a whole or module by module, under activation checkpointing."""

    def __init__(self, inner: nn.Module, kind: Literal["reentrant", "other"] | None, *, one_by_one: bool) -> None:
        super().__init__()
        self.inner, self.kind, self.one_by_one = inner, kind, one_by_one

    def forward(self, x: Tensor) -> Tensor:
        for module in self.inner.children() if self.one_by_one else (self.inner,):
            x = module(x) if self.kind is None else checkpoint(module, x, use_reentrant=self.kind == "reentrant")
        return x


def stack(kind: Any) -> nn.Module:
    return Stack(checkpointing=kind)


def stack_as_a_whole(kind: Any) -> nn.Module:
    return Recomputed(Stack(), kind, one_by_one=False)


def sequence(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return Recomputed(nn.Sequential(Block(), nn.Tanh(), Block()), kind, one_by_one=True)


class Chain(nn.Sequential):
    """Linear layers with no module around them but this container: each is a block of its own."""

    kind: Literal["reentrant", "other"] | None = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) if self.kind is None else checkpoint(layer, x, use_reentrant=self.kind == "reentrant")
        return x


def bare_layers(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = Chain()
    layers.kind = kind
    for name in TARGETS:
        layers.add_module(name, nn.Linear(WIDTH, WIDTH))
    return layers


def module_without_a_list(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return Recomputed(Block(), kind, one_by_one=False)


@pytest.mark.parametrize("kind", ["reentrant", "other"])
@pytest.mark.parametrize("build", [stack, stack_as_a_whole, sequence, bare_layers, module_without_a_list])
@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_activation_checkpointing_changes_no_bit(kind: Any, build: Any, estimator: Any, dropout: float) -> None:
    results, penalties = [], []
    for which in (None, kind):
        net = build(which)
        adapter = adapt(net, replace(CONFIG, estimator=estimator, dropout=dropout))
        results.append(gradients(net, adapter, data(requires_grad=True)))
        penalties.append(adapter.penalty())
    assert_same_bits(*results)
    assert torch.equal(*penalties)
    assert all(value is not None and value.abs().sum() > 0 for value in results[0].values())


@pytest.mark.parametrize("kind", [None, "reentrant", "other"])
@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_the_penalty_reaches_the_variational_parameters_alone(kind: Any, estimator: Any) -> None:
    results = []
    for weight in (0.0, 0.5):
        net = Stack(checkpointing=kind)
        adapter = adapt(net, replace(CONFIG, estimator=estimator), penalty_weight=weight)
        results.append(gradients(net, adapter, data(requires_grad=True)))
    for name, value in results[0].items():
        assert value is not None
        assert torch.equal(value, results[1][name]) is ("monteclora" not in name), name  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_a_frozen_low_rank_gets_gradients_of_zeros_and_the_rest_what_it_had(estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, estimator=estimator))
    wanted = gradients(net, adapter, data())
    adapter.controls.freezes_low_rank = True
    found = gradients(net, adapter, data())
    for name, value in wanted.items():
        if "lora_" in name:
            assert torch.equal(found[name], torch.zeros_like(adapter.named_parameters()[name]))  # type: ignore[arg-type]
        elif value is not None:
            assert torch.equal(found[name], value)  # type: ignore[arg-type]


# Noise: the same where it should be, else another, and none kept.


def test_equal_seeds_draw_equal_noise() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    one, again, other = (gradients(net, adapter, data(), seed=seed) for seed in (3, 3, 4))
    assert_same_bits(one, again)
    assert not any(torch.equal(value, other[name]) for name, value in one.items() if value is not None)  # type: ignore[arg-type]


def test_layers_of_a_block_have_noise_of_their_own() -> None:
    """Equal layers on equal inputs with equal scales give different outputs."""
    torch.manual_seed(0)
    first = nn.Linear(WIDTH, WIDTH)
    net = nn.ModuleDict({"q_proj": first, "o_proj": copy.deepcopy(first), "down_proj": copy.deepcopy(first)})

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = net

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([layer(x) for layer in self.each.values()])

    model = Parallel()
    adapter = adapt(model, replace(CONFIG, rank_pattern={}, num_samples=1))
    assert list(adapter.posteriors) == ["monteclora"]
    with torch.no_grad():
        adapter.posteriors["monteclora"].log_std.fill_(0.3)
        for layer in adapter.layers.values():
            layer.lora_A.fill_(1.0)
            layer.lora_B.fill_(1.0)
    one, two, three = model(data())
    assert not torch.allclose(one, two)
    assert not torch.allclose(two, three)
    assert not torch.allclose(one, three)
    assert torch.equal(model.eval()(data())[0], model(data())[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_an_input_that_is_not_finite_reaches_everything_and_spoils_no_later_step(value: float, estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, estimator=estimator))
    wanted = gradients(net, adapter, data())
    bad = data()
    bad[0, 0, 0] = value
    assert not net(bad)[0, 0].isfinite().any()
    assert net(bad)[1].isfinite().all()
    found = gradients(net, adapter, bad)
    # tanh holds an infinity down, a NaN goes through all layers.
    names = [n for n in found if n != "x" and (math.isnan(value) or "layers.1.q_proj" in n)]
    assert names
    for name in names:
        grad = found[name]
        assert grad is not None
        assert grad.isnan().any(), name
    assert_same_bits(gradients(net, adapter, data()), wanted)


def test_nothing_of_the_size_of_the_noise_is_kept_for_backward() -> None:
    width, rank = 40, 16
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("q_proj", nn.Linear(width, width, bias=False))
    adapter = adapt(net, MonteCLoRAConfig(rank=rank, targets=("q_proj",), noise_scale=0.1, dropout=0.1))
    x = torch.randn(3, 50, width, requires_grad=True)
    known = {p.untyped_storage().data_ptr() for p in (*net.parameters(), x)}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = net(x)
    extra = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in known]
    # A_eff drop(x), the mask of dropout, and draws of [R]; the noise would be [r, in].
    large = [(tensor.dtype, tensor.numel()) for tensor in extra if tensor.numel() > rank]
    assert sorted(large, key=str) == [(torch.bool, x.numel()), (torch.float32, 3 * 50 * rank)]
    # What nodes hold themselves, and what modules do.
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [after for after, _ in node.next_functions]
        held = (
            [value for value in vars(node).values() if isinstance(value, Tensor)] if hasattr(node, "__dict__") else []
        )
        assert all(value.numel() <= rank for value in held)
    (posterior,) = adapter.posteriors.values()
    assert posterior.last_draw is not None
    assert max(part.numel() for part in posterior.last_draw) == rank
    assert dict(net.named_buffers()) == {}


class Seven(nn.Module):
    """As many linear layers as a LLaMA block has."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({f"p{i}": nn.Linear(WIDTH, WIDTH, bias=False) for i in range(7)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.projections.values():
            x = layer(x)
        return x


def sevens(config: LoRAConfig, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    net = nn.ModuleList([Seven(), Seven()]).to(device)
    model = Recomputed(net, None, one_by_one=False)
    model.forward = lambda x: net[1](net[0](x))  # type: ignore[method-assign]
    adapter = adapt(model, replace(config, targets=("p?",), rank=2, rank_pattern={}))
    assert len(adapter.posteriors) == 2 * isinstance(config, MonteCLoRAConfig)
    return model


def step_counts(config: LoRAConfig) -> dict[str, int]:
    """Operations of a forward and backward of two blocks of seven layers, the loss's own left out."""
    model = sevens(config)
    for _ in range(2):
        model.zero_grad()
        x = torch.randn(3, WIDTH, requires_grad=True)
        with CountOperations() as counter:
            y = model(x)
        with torch.no_grad():
            upstream = torch.ones_like(y)
        with counter:
            y.backward(upstream)
    return counter.counts


def test_a_layer_takes_at_most_thirty_operations_whatever_the_size_of_the_mixture() -> None:
    plain = sum(step_counts(PLAIN).values()) / 14
    few, many = (sum(step_counts(replace(CONFIG, num_samples=size)).values()) / 14 for size in (2, 64))
    assert plain <= 10
    assert few == many <= 30


def test_one_number_is_read_back_per_block_and_that_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = step_counts(CONFIG)
    assert counts["aten._local_scalar_dense.default"] == 2
    assert counts["aten.randint.default"] == 2
    assert "aten.nonzero.default" not in counts
    assert "aten._local_scalar_dense.default" not in step_counts(PLAIN)
    # Tensors of the meta device have no values: to wait for one of them is an error.
    monkeypatch.setattr(low_rank, "standard_normal", lambda like, seed: torch.randn_like(like))
    model = sevens(CONFIG, "meta")
    model(torch.empty(3, WIDTH, device="meta")).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# Precision.


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_autocast_is_close_and_gradients_have_the_parameters_dtype(estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, estimator=estimator))
    wanted = gradients(net, adapter, data())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net.layers[0].q_proj(data())
        torch.manual_seed(3)
        loss = net(data()).float().square().mean()
    assert output.dtype == torch.bfloat16
    for parameter in adapter.named_parameters().values():
        parameter.grad = None
    loss.backward()
    for name, parameter in adapter.named_parameters().items():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        exact = wanted[name]
        assert exact is not None
        assert (parameter.grad - exact).norm() < 0.05 * exact.norm(), name


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_base_in_half_precision(estimator: Any, dtype: torch.dtype) -> None:
    net = Stack().bfloat16()
    adapter = adapt(net, replace(CONFIG, estimator=estimator))
    for parameter in adapter.named_parameters().values():
        parameter.data = parameter.data.to(dtype)
    found = gradients(net, adapter, data(dtype=torch.bfloat16))
    assert net(data(dtype=torch.bfloat16)).dtype == torch.bfloat16
    for name, grad in found.items():
        if name != "x":
            assert grad is not None
            assert grad.dtype == dtype
            assert grad.isfinite().all()
            assert grad.abs().max() > 0


# The law, by draws of many equal layers at once.


def equal_layers(estimator: Any, *, rank: int = 4, **settings: Any) -> BlockPosterior:
    """Posterior of 400 layers with the same s and t, whose draws are independent."""
    config = replace(CONFIG, estimator=estimator, noise_scale=0.5, **settings)
    return BlockPosterior(
        "",
        {str(number): rank for number in range(400)},
        config,
        Controls(),
        generators=[torch.Generator().manual_seed(0) for _ in range(400)],
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def noise(made: BlockPosterior, width: int, generator: torch.Generator) -> Tensor:
    """Noise [layers, r, width] of one draw of every layer, on the path of its gradient."""
    scale, pi, _ = made()
    (count, size), rank = pi.shape, made.ranks[0]
    scale = scale.view(count, rank, 1)
    if made.config.estimator == "collapsed":
        return scale * torch.randn(count, rank, width, generator=generator)
    return scale * torch.einsum("ln,lnrw->lrw", pi, torch.randn(count, size, rank, width, generator=generator))


def noises(made: BlockPosterior, width: int, seed: int, count: int = 20_000) -> Tensor:
    """Independent draws of a layer's noise [count, r, width]."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return torch.cat([noise(made, width, generator) for _ in range(count // 400)])


def test_noise_of_a_layer_is_its_draw_times_its_standard_normals() -> None:
    """What `noise` above does for many layers at once is what a layer does: read off a layer whose output is A_eff."""
    for estimator in ("collapsed", "sampled"):
        torch.manual_seed(0)
        net = nn.Sequential()
        net.add_module("q_proj", nn.Linear(6, 4, bias=False))
        adapter = adapt(net, replace(CONFIG, estimator=estimator, alpha=3, rank_pattern={}, targets=("q_proj",)))
        layer, (posterior,) = adapter.layers["q_proj"], adapter.posteriors.values()
        with torch.no_grad():
            layer.weight.zero_()
            layer.lora_B.copy_(torch.eye(4, 3))
        torch.manual_seed(1)
        effective = layer(torch.eye(6))[:, :3].T
        torch.manual_seed(1)
        (draw,) = posterior.draw()
        if estimator == "collapsed":
            expected = draw.scale.unsqueeze(1) * standard_normal(layer.lora_A, draw.seed)
            assert posterior.last_draw is not None
            torch.testing.assert_close(draw.scale, 0.3 * posterior.last_draw.std * draw.pi.norm())
        else:
            expected = sampled_noise(layer.lora_A, draw)
        torch.testing.assert_close(effective - layer.lora_A, expected)


def test_sampled_noise_is_the_weighted_sum_of_independent_gaussians() -> None:
    scale, pi = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.2, 0.7])
    drawn = sampled_noise(torch.empty(3, 100_000), LayerDraw(scale, pi, seed=5))
    variance = scale.square() * pi.square().sum()
    torch.testing.assert_close(drawn.var(1), variance, rtol=0.02, atol=0)
    assert (torch.corrcoef(drawn) - torch.eye(3)).abs().max() < 4 / math.sqrt(100_000)
    alone = sampled_noise(torch.empty(3, 8), LayerDraw(scale, torch.tensor([0.0, 1.0, 0.0]), seed=5))
    generator = torch.Generator().manual_seed(5)
    torch.testing.assert_close(alone, scale.unsqueeze(1) * torch.randn(3, 3, 8, generator=generator)[1])


@pytest.mark.parametrize("num_samples", [1, 2, 4, 8])
def test_collapsed_and_sampled_noise_have_the_same_law(num_samples: int) -> None:
    count = 20_000
    one, two = (
        noises(equal_layers(estimator, num_samples=num_samples), 2, seed)
        for seed, estimator in enumerate(("collapsed", "sampled"))
    )
    # Second and fourth moments, each within 4 standard errors: a false alarm in 1.6e4 per moment.
    for power in (2, 4):
        moments = [sample.pow(power).mean((1, 2)) for sample in (one, two)]
        error = math.sqrt(sum(moment.var().item() for moment in moments) / count)
        assert abs(moments[0].mean() - moments[1].mean()) < 4 * error
    # One entry, and functions of several, which would see a wrong dependence between entries. Kolmogorov-Smirnov: equal
    # laws exceed 2.23 with probability 1e-4 each.
    functions = (
        lambda z: z[:, 0, 0],
        lambda z: z.square().sum((1, 2)),
        lambda z: z[:, 0, 0] * z[:, 1, 1],
        lambda z: z[:, 0].abs().sum(-1) - z[:, 1].abs().sum(-1),
    )
    for function in functions:
        assert math.sqrt(count / 2) * two_sample_distance(function(one), function(two)) < 2.23
    # The test sees a law that is off by a little: the sampled one with 10 % more noise.
    assert math.sqrt(count / 2) * two_sample_distance(functions[1](one), functions[1](1.1 * two)) > 2.23


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_mean_and_variance_of_the_noise(estimator: Any) -> None:
    """Variance eps^2 E ||pi||^2 r exp(2 s): pi and the chi-squares are independent."""
    count, width, rank = 20_000, 2, 4
    made = equal_layers(estimator, rank=rank)
    drawn = noises(made, width, 0)
    with torch.no_grad():
        s, t = made.log_std[:rank], made.log_concentration[0]
        pi = sample_simplex(t, torch.randn(200_000, len(t)))
        chi2 = chi_square(torch.full((200_000, rank), float(rank)))
    variance = 0.25 * pi.square().sum(-1).mean() * rank * (2 * s).exp()
    floored = 0.25 * pi.square().sum(-1).mean() * (chi2 * (2 * s).exp()).clamp_min(VARIANCE_FLOOR).mean(0)
    torch.testing.assert_close(floored, variance, rtol=0.01, atol=0)  # the floor is far below
    found = drawn.square().mean(-1)
    error = found.std(0) / math.sqrt(count)
    assert ((found.mean(0) - variance).abs() < 4 * error).all()
    assert (error < 0.02 * variance).all()
    mean = drawn.mean((0, 2))
    assert (mean.abs() < 4 * (variance / (count * width)).sqrt()).all()


def test_collapsed_gradients_are_those_of_the_sampled_ones_with_less_variance_in_t() -> None:
    """A quadratic loss, so that the gradients do not vanish on average; a row of gradients per draw."""
    count, width, rank = 40_000, 6, 4
    target = torch.randn(rank, width, generator=torch.Generator().manual_seed(9))
    found: list[list[Tensor]] = []
    for seed, estimator in enumerate(("collapsed", "sampled")):
        made = equal_layers(estimator, rank=rank)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for _ in range(count // 400):
            made.zero_grad()
            drawn = noise(made, width, generator)
            drawn.retain_grad()
            (drawn - target).square().sum().backward()
            s, t = made.log_std.grad, made.log_concentration.grad
            assert s is not None
            assert t is not None
            assert drawn.grad is not None
            rows.append((t, s.view(-1, rank), drawn.grad.flatten(1)))
        found.append([torch.cat(part) for part in zip(*rows, strict=True)])
    for one, two in zip(*found, strict=True):
        error = ((one.var(0) + two.var(0)) / count).sqrt()
        # 32 comparisons at 4.5 standard errors: a false alarm in 4,600.
        assert ((one.mean(0) - two.mean(0)).abs() < 4.5 * error).all()
        assert one.mean(0).abs().max() > 10 * error.max()
    (t_collapsed, s_collapsed, a_collapsed), (t_sampled, s_sampled, a_sampled) = found
    assert t_collapsed.var(0).sum() < 0.6 * t_sampled.var(0).sum()
    # Those of s and A keep their law; equal laws exceed 2.23 with probability 1e-4 each.
    pairs = [*zip(s_collapsed.T, s_sampled.T, strict=True), *zip(a_collapsed.T, a_sampled.T, strict=True)]
    for one, two in pairs:
        assert math.sqrt(count / 2) * two_sample_distance(one, two) < 2.23


def test_layers_of_both_estimators_learn_alike() -> None:
    """The mean of a network's own gradients, all layers and the penalty together, agrees for all parameters."""
    x, means, errors = data(), [], []
    for estimator in ("collapsed", "sampled"):
        net = Stack(1)
        adapter = adapt(net, replace(CONFIG, estimator=estimator, noise_scale=0.1))
        rows = []
        for seed in range(400):
            found = gradients(net, adapter, x, seed=seed)
            rows.append(torch.cat([value.flatten() for value in found.values() if value is not None]))
        means.append(torch.stack(rows).mean(0))
        errors.append(torch.stack(rows).var(0) / len(rows))
    deviation = (means[0] - means[1]) / (errors[0] + errors[1]).sqrt()
    # Some 130 means, so a false alarm in about 1,000 at 4.5 standard errors.
    assert deviation.abs().max() < 4.5


def test_the_mean_output_of_a_layer_is_that_of_lora() -> None:
    """E[A_eff] = A, and a layer is linear in A."""
    net = Stack()
    adapt(net, CONFIG)
    layer = net.layers[0].q_proj
    outputs = torch.stack([layer(data()).detach() for _ in range(2_000)])
    error = outputs.std(0) / math.sqrt(len(outputs))
    assert ((outputs.mean(0) - layer.eval()(data())).abs() < 4.5 * error).all()
    frozen = F.linear(data(), layer.weight, layer.bias)
    assert (layer(data()) - frozen).abs().mean() > 10 * error.mean()
