"""Draws of a block's layers: their gradients in closed form, when they are made, and when they are forgotten."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monteclora import posterior as posterior_module
from monteclora.adapter import Adapter
from monteclora.config import MonteCLoRAConfig
from monteclora.controls import Controls
from monteclora.distributions import VARIANCE_FLOOR, sample_simplex, sample_std
from monteclora.errors import AdapterError
from monteclora.penalty import Draw, variational_penalty
from monteclora.posterior import BlockPosterior
from tests.unit.monteclora.networks import TARGETS, WIDTH, Block, Stack, adapt, assert_same_bits, gradients

CONFIG = MonteCLoRAConfig(
    rank=3, rank_pattern={"o_proj": 2}, targets=TARGETS, noise_scale=0.3, kl_weight=0.1, coop_weight=0.7
)
RANKS = (1, 4, 3)


def posterior(
    config: MonteCLoRAConfig = CONFIG,
    ranks: tuple[int, ...] = RANKS,
    *,
    dtype: torch.dtype = torch.float32,
    controls: Controls | None = None,
    block: str = "layers.0",
) -> BlockPosterior:
    return BlockPosterior(
        block,
        {f"layer{number}": rank for number, rank in enumerate(ranks)},
        config,
        controls or Controls(),
        generators=[torch.Generator().manual_seed(number) for number in range(len(ranks))],
        device=torch.device("cpu"),
        dtype=dtype,
    )


@pytest.mark.parametrize("num_samples", [1, 2, 4, 64])
@pytest.mark.parametrize("analytic_kl", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.8])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_closed_form_is_the_gradient_of_the_composition(
    num_samples: int, analytic_kl: bool, weight: float, num_layers: int
) -> None:
    config = replace(CONFIG, num_samples=num_samples, analytic_kl=analytic_kl, dirichlet_prior=0.3)
    made = posterior(config, RANKS[-num_layers:], dtype=torch.float64)
    with torch.no_grad():
        made.log_std[0] = -20  # under the floor
    s, t = made.log_std, made.log_concentration
    sizes = made.sizes(s)
    noise = torch.Generator().manual_seed(0)
    chi2, z, upstream = (
        torch.rand(s.shape, dtype=s.dtype, generator=noise) * 5,
        torch.randn(t.shape, dtype=t.dtype, generator=noise),
        torch.randn(s.shape, dtype=s.dtype, generator=noise),
    )

    scale, std, pi = posterior_module._collapsed(s, t, chi2, z, sizes, weight, config)
    found = torch.autograd.grad(scale, (s, t), upstream)

    # The equations one by one, layer by layer.
    wanted_std, wanted_pi = sample_std(s, chi2), sample_simplex(t, z)
    parts = zip(wanted_std.split(made.ranks), wanted_pi, strict=True)
    wanted_scale = torch.cat([config.noise_scale * weights.square().sum().sqrt() * part for part, weights in parts])
    penalty = variational_penalty(Draw(s, t, wanted_std, wanted_pi), sizes.rank, config)
    wanted = torch.autograd.grad((wanted_scale * upstream).sum() + weight * penalty, (s, t))

    torch.testing.assert_close(scale, wanted_scale, rtol=1e-14, atol=0)
    assert torch.equal(std, wanted_std)
    assert torch.equal(pi, wanted_pi)
    assert std[0] == VARIANCE_FLOOR**0.5
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


def test_ranks_are_laid_out_one_after_the_other() -> None:
    made = posterior()
    assert made.log_std.shape == (8,)
    assert made.log_concentration.shape == (3, CONFIG.num_samples)
    rank, layer, members = made.sizes(made.log_std)
    assert rank.tolist() == [1, 4, 4, 4, 4, 3, 3, 3]
    assert layer.tolist() == [0, 1, 1, 1, 1, 2, 2, 2]
    assert members.sum(1).tolist() == [1, 4, 3]
    assert members.sum(0).tolist() == [1] * 8
    assert repr(made) == "BlockPosterior(ranks=[1, 4, 3], num_samples=4)"


def test_first_values_are_uniform_and_only_rounded_to_the_dtype() -> None:
    config = replace(CONFIG, num_samples=300)
    made, rounded = (posterior(config, (400, 500), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for name in ("log_std", "log_concentration"):
        values = made.get_parameter(name)
        assert 0 <= values.min() < 0.05
        assert 0.95 < values.max() < 1
        assert values.mean().item() == pytest.approx(0.5, abs=0.05)
        assert torch.equal(values.bfloat16(), rounded.get_parameter(name))


def test_a_draw_is_in_fp32_and_its_layers_have_seeds_of_their_own() -> None:
    made = posterior(dtype=torch.bfloat16)
    draws = made.draw()
    assert [len(draw.scale) for draw in draws] == [1, 4, 3]
    assert len({draw.seed for draw in draws}) == 3
    assert all(draw.scale.dtype == draw.pi.dtype == torch.float32 for draw in draws)
    torch.testing.assert_close(torch.stack([draw.pi.sum() for draw in draws]), torch.ones(3))
    torch.cat([draw.scale for draw in draws]).sum().backward()
    assert made.log_std.grad is not None
    assert made.log_std.grad.dtype == torch.bfloat16


def test_draws_follow_the_default_generator() -> None:
    made = posterior()
    torch.manual_seed(0)
    one, two = made(), made()
    torch.manual_seed(0)
    again = made()
    assert torch.equal(one[0], again[0])
    assert one[2] == again[2]
    assert not torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])
    assert one[2] != two[2]


def test_a_draw_for_inference_is_a_function_of_seed_number_and_block() -> None:
    controls = Controls(sample=(0, 0))
    state = torch.get_rng_state()
    made = posterior(controls=controls)
    one = made()
    torch.manual_seed(1)
    again = made()
    assert torch.equal(one[0], again[0])
    assert one[2] == again[2]
    others = [posterior(controls=controls, block="layers.1")()]
    for sample in ((0, 1), (1, 0)):
        controls.sample = sample
        others.append(made())
    assert len({one[2], *(other[2] for other in others)}) == 4
    assert all(not torch.equal(one[0], other[0]) for other in others)
    torch.set_rng_state(state)
    made()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_samples", [1, 64, 256])
@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_gradients_are_finite_in_fp32_for_large_mixtures(num_samples: int, estimator: Any) -> None:
    config = replace(CONFIG, num_samples=num_samples, estimator=estimator, dirichlet_prior=0.1)
    made = posterior(config, (64, 256), controls=Controls(penalty_weight=1.0))
    scale, pi, _ = made()
    (scale.sum() + (pi.sum() if pi.requires_grad else 0)).backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        # A mixture of one has nothing to learn.
        assert parameter.grad.abs().max() > 0 or (num_samples == 1 and parameter is made.log_concentration)


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_a_parameter_that_is_not_a_number_is_not_hidden_and_spoils_only_its_own_draw(estimator: Any) -> None:
    made = posterior(replace(CONFIG, estimator=estimator))
    torch.manual_seed(0)
    wanted = made.draw()
    good = made.log_std.detach().clone()
    made.log_std.data[1] = math.nan
    torch.manual_seed(0)
    draws = made.draw()
    assert draws[1].scale.isnan().tolist() == [True, False, False, False]
    draws[1].scale.sum().backward()
    assert made.log_std.grad is not None
    assert made.log_std.grad[1].isnan()
    made.log_std.data.copy_(good)
    torch.manual_seed(0)
    assert all(torch.equal(one.scale, two.scale) for one, two in zip(made.draw(), wanted, strict=True))


def test_last_draw_is_that_of_training_and_holds_no_graph() -> None:
    made = posterior()
    made.eval().controls.sample = (0, 0)
    made()
    assert made.last_draw is None
    made.train().controls.sample = None
    scale, pi, _ = made()
    assert made.last_draw is not None
    assert not any(part.requires_grad for part in made.last_draw)
    assert torch.equal(made.last_draw.pi, pi)
    made.eval().controls.sample = (0, 0)
    made()
    assert torch.equal(made.last_draw.pi, pi)
    assert dict(made.named_buffers()) == {}
    assert scale.requires_grad


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_training_may_follow_a_draw_in_inference_mode(estimator: Any) -> None:
    made = posterior(replace(CONFIG, estimator=estimator, analytic_kl=True), controls=Controls(penalty_weight=1.0))
    with torch.inference_mode():
        made()
    scale, pi, _ = made()
    (scale.sum() + (pi.sum() if pi.requires_grad else 0)).backward()
    assert made.log_std.grad is not None


def test_autocast_around_backward_changes_no_bit() -> None:
    results = []
    for enabled in (False, True):
        made = posterior(controls=Controls(penalty_weight=1.0))
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            made()[0].square().sum().backward()
        results.append({name: p.grad for name, p in made.named_parameters()})
    assert_same_bits(*results)


# When a draw is made and forgotten.


def data(*, requires_grad: bool = False) -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_(requires_grad)


def test_a_block_is_drawn_once_per_forward_with_every_layer_in_it() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    calls: list[str] = []
    for name, made in adapter.posteriors.items():
        made.register_forward_hook(lambda *_, name=name: calls.append(name))
    net(data())
    assert calls == ["layers.0.monteclora", "layers.1.monteclora"]
    first = adapter.posteriors["layers.0.monteclora"]
    assert first.layers == ("layers.0.q_proj", "layers.0.o_proj", "layers.0.down_proj")
    assert first.ranks == (3, 2, 3)
    assert net.layers[0].get_submodule("monteclora") is first
    net.eval()(data())
    assert len(calls) == 2


def alone(block: Any, seed: int = 5) -> Tensor:
    """Output of the layer that most blocks here run last, called by itself."""
    torch.manual_seed(seed)
    output: Tensor = block.down_proj(torch.ones(2, WIDTH + 2))
    return output


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_a_draw_ends_with_its_forward_though_a_layer_did_not_take_its_part(estimator: Any) -> None:
    class Stops(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.o_proj(self.q_proj(x))

    net: Any = nn.Sequential(Stops())
    adapt(net, replace(CONFIG, estimator=estimator))
    wanted = alone(net[0])
    net(data())
    assert torch.equal(alone(net[0]), wanted)
    assert not torch.equal(alone(net[0], seed=6), wanted)


def test_a_draw_ends_with_a_forward_that_fails() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    wanted, wanted_alone = gradients(net, adapter, data()), alone(net.layers[0])
    bad = net.layers[0].down_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(data())
    bad.remove()
    assert torch.equal(alone(net.layers[0]), wanted_alone)
    assert_same_bits(gradients(net, adapter, data()), wanted)


class Routed(Block):
    """A block that leaves one of its layers out, as a mixture of experts does."""

    skips = False

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(torch.tanh(x @ torch.ones(WIDTH, WIDTH + 2)) if self.skips else self.o_proj(x))


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_the_draw_of_a_layer_that_was_left_out_is_never_used(estimator: Any) -> None:
    nets: list[Any] = [nn.Sequential(Routed()), nn.Sequential(Routed())]
    nets[1].load_state_dict(nets[0].state_dict())
    adapters = [adapt(net, replace(CONFIG, estimator=estimator)) for net in nets]
    nets[0][0].skips = True
    found = gradients(nets[0], adapters[0], data())
    assert found["0.o_proj.lora_A"] is None
    s = found["0.monteclora.log_std"]
    assert s is not None
    assert s.abs().min() > 0  # the penalty's part, for the layer left out too
    nets[0][0].skips = False
    assert_same_bits(gradients(nets[0], adapters[0], data()), gradients(nets[1], adapters[1], data()))


class HooksOutside(Routed):
    """Recomputes its forward and not its call, as transformers' layers do."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_part_left_over_from_recomputation_is_never_used(reentrant: bool) -> None:
    nets: list[Any] = [nn.Sequential(HooksOutside()), nn.Sequential(Routed())]
    nets[1].load_state_dict(nets[0].state_dict())
    adapters = [adapt(net, CONFIG) for net in nets]
    nets[0][0].reentrant = reentrant
    for skips in (True, False):
        for net in nets:
            net[0].skips = skips
        found = [gradients(*pair, data(requires_grad=True)) for pair in zip(nets, adapters, strict=True)]
        assert_same_bits(*found)
        # The recomputation drew for the layer that was skipped too; called by itself, it does not take that.
        torch.manual_seed(5)
        one = nets[0][0].o_proj(data())
        torch.manual_seed(5)
        assert torch.equal(nets[1][0].o_proj(data()), one)


class Parts(Block):
    """A block of which each part of so many layers is recomputed or not."""

    parts: tuple[tuple[int, bool | None], ...] = ()
    """Number of layers, and whether their checkpoint is reentrant; None: none."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self.children())[:3]
        for size, reentrant in self.parts:
            part, layers = nn.Sequential(*layers[:size]), layers[size:]
            x = part(x) if reentrant is None else checkpoint(part, x, use_reentrant=reentrant)
        return x


def in_parts(*parts: tuple[int, bool | None]) -> tuple[nn.Module, Adapter]:
    net = Stack(2)
    for block in net.layers:
        block.__class__ = Parts
        block.parts = parts
    return net, adapt(net, CONFIG)


@pytest.mark.parametrize("size", [1, 2])
def test_a_reentrant_checkpoint_of_a_part_with_the_first_layer_is_refused(size: int) -> None:
    """It draws without recording gradients; drawn once more with them, the penalty would be counted twice."""
    net, adapter = in_parts((size, True), (3 - size, None))
    message = (
        r"^layers\.0 runs with gradients in one part and without in another, as under activation checkpointing of a "
        r"part \(reentrant\); checkpoint layers\.0 as a whole$"
    )
    with pytest.raises(AdapterError, match=message):
        gradients(net, adapter, data(requires_grad=True))
    # The block is as if it had not run.
    for block in net.layers:  # type: ignore[union-attr]
        block.parts = ((3, None),)
    assert_same_bits(
        gradients(net, adapter, data(requires_grad=True)),
        gradients(*in_parts((3, None)), data(requires_grad=True)),
    )


def test_reentrant_checkpoints_of_all_parts_are_refused() -> None:
    """As of the attention and of the feed-forward: the second could not draw again what the first drew for it."""
    net, adapter = in_parts((1, True), (2, True))
    message = (
        r"^activation checkpointing recomputes layers\.1\.o_proj by itself, but it was drawn with the other layers of "
        r"layers\.1; checkpoint that as a whole$"
    )
    with pytest.raises(AdapterError, match=message):
        gradients(net, adapter, data(requires_grad=True))


@pytest.mark.parametrize("size", [1, 2])
def test_the_other_checkpoint_may_hold_a_part_with_the_first_layer(size: int) -> None:
    """It records gradients at once, and its recomputation restores what was saved and adds nothing."""
    assert_same_bits(
        gradients(*in_parts((size, False), (3 - size, None)), data(requires_grad=True)),
        gradients(*in_parts((3, None)), data(requires_grad=True)),
    )


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_a_layer_used_twice_in_a_forward_draws_twice_and_may_be_recomputed(reentrant: bool | None) -> None:
    class Twice(Block):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((self.q_proj(x), self.q_proj(x)))

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) if reentrant is None else checkpoint(self[0], x, use_reentrant=reentrant)

    def build(kind: type[nn.Sequential]) -> tuple[nn.Module, Adapter]:
        torch.manual_seed(0)
        net = kind(Twice())
        return net, adapt(net, CONFIG)

    plain, net = build(nn.Sequential), build(Net)
    one, two = plain[0](data())
    assert not torch.equal(one, two)
    assert_same_bits(gradients(*plain, data(requires_grad=True)), gradients(*net, data(requires_grad=True)))


class Loose(nn.Module):
    """Calls the layers of its blocks, and never the blocks."""

    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.reentrant = nn.ModuleList([Block()]), reentrant

    def forward(self, x: Tensor) -> Tensor:
        block: Any = self.layers[0]
        for layer in (block.q_proj, block.o_proj, block.down_proj):
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


def test_layers_called_without_their_block_draw_for_themselves_and_share_the_penalty() -> None:
    """The gradients of KL terms that depend on no draw are the same both ways."""
    config = replace(CONFIG, analytic_kl=True, coop_weight=0.0, noise_scale=0.0)
    found = []
    for net in (Loose(), Stack(1)):
        adapter = adapt(net, config)
        grads = gradients(net, adapter, data())
        found.append([grads["layers.0.monteclora.log_std"], grads["layers.0.monteclora.log_concentration"]])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_called_without_their_block_may_be_recomputed_alone(reentrant: bool) -> None:
    found = []
    for kind in (None, reentrant):
        net = Loose(reentrant=kind)
        found.append(gradients(net, adapt(net, CONFIG), data(requires_grad=True)))
    assert_same_bits(*found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputing_a_part_of_a_block_is_refused(reentrant: bool) -> None:
    """Its draw, made when the block began, could not be made again: gradients would be silently wrong."""

    class Partly(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(checkpoint(self.o_proj, self.q_proj(x), use_reentrant=reentrant))

    net = Stack(1)
    net.layers[0].__class__ = Partly
    adapter = adapt(net, CONFIG)
    message = (
        r"^activation checkpointing recomputes layers\.0\.o_proj by itself, but it was drawn with the other layers of "
        r"layers\.0; checkpoint that as a whole$"
    )
    with pytest.raises(AdapterError, match=message):
        gradients(net, adapter, data(requires_grad=True))
    # Where nothing is drawn, there is nothing to lose.
    gradients(net.eval(), adapter, data(requires_grad=True))


def test_a_block_in_evaluation_is_lora_beside_one_in_training() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    net.layers[0].eval()
    one, two = (net.layers[0](data()) for _ in range(2))
    assert torch.equal(one, two)
    grads = gradients(net, adapter, data())
    assert grads["layers.0.monteclora.log_std"] is None
    assert grads["layers.1.monteclora.log_std"] is not None
    assert grads["layers.0.q_proj.lora_A"] is not None
    # One layer alone: it is plain, the others of its block are drawn.
    net.train().layers[0].q_proj.eval()
    layer = net.layers[0].q_proj
    assert torch.equal(layer(data()), layer(data()))
    assert not torch.equal(net.layers[0](data()), net.layers[0](data()))
    # The reverse: the layer is drawn by itself, and a posterior in evaluation adds no penalty.
    net.eval().layers[0].o_proj.train()
    assert not torch.equal(net.layers[0](data()), net.layers[0](data()))
    grads = gradients(net, adapter, data())
    assert grads["layers.0.monteclora.log_std"] is not None
    assert grads["layers.1.monteclora.log_std"] is None


def test_a_training_forward_without_gradients_is_the_same_function() -> None:
    net = Stack()
    adapt(net, CONFIG)
    torch.manual_seed(0)
    with torch.no_grad():
        plain = net(data())
    torch.manual_seed(0)
    assert torch.equal(net(data()), plain)
    assert not plain.requires_grad


def test_a_copy_made_after_a_forward_is_a_model_of_its_own() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    gradients(net, adapter, data())
    twin, twin_adapter = copy.deepcopy((net, adapter))
    assert_same_bits(gradients(twin, twin_adapter, data()), gradients(net, adapter, data()))
    with torch.no_grad():
        twin_adapter.posteriors["layers.0.monteclora"].log_std.add_(1)
    torch.manual_seed(0)
    one = net(data())
    torch.manual_seed(0)
    assert not torch.equal(twin(data()), one)
    twin_adapter.begin_step(0)
    twin_adapter.controls.is_random = False
    assert torch.equal(twin(data()), twin(data()))
    assert not torch.equal(net(data()), net(data()))


def test_a_posterior_leaves_nothing_behind_in_its_block() -> None:
    block = Block()
    made = posterior()
    made.attach(block)
    assert block.get_submodule("monteclora") is made
    assert len(block._forward_pre_hooks) == len(block._forward_hooks) == 1
    made.detach(block)
    assert "monteclora" not in dict(block.named_children())
    assert not block._forward_pre_hooks
    assert not block._forward_hooks
