"""The handle on a model: what is adapted and what trains, in toy models and in those of transformers."""

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from monteclora.adapter import Adapter, attach_adapter, block_of, linear_names, wrap_linears
from monteclora.config import LoRAConfig, MonteCLoRAConfig, count_adapter_parameters
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.merge import merge_adapter, unmerge_adapter
from monteclora.monteclora import MonteCLoRALinear
from monteclora.penalty import variational_penalty
from tests.unit.monteclora.networks import TARGETS, WIDTH, Block, Stack, adapt, assert_same_bits, gradients

PLAIN = LoRAConfig(rank=3, rank_pattern={"o_proj": 2}, targets=TARGETS)
CONFIG = MonteCLoRAConfig(
    rank=3, rank_pattern={"o_proj": 2}, targets=TARGETS, noise_scale=0.3, kl_weight=0.1, coop_weight=0.7
)


class Classifier(nn.Module):
    """Blocks below a head of two layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Stack()
        self.classifier = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH), "norm": nn.LayerNorm(WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier["norm"](self.classifier["dense"](self.encoder(x)))


def data() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# What is adapted.


def test_named_linears_are_replaced_and_everything_else_is_frozen() -> None:
    net = Stack()
    weight = net.layers[0].q_proj.weight
    config = LoRAConfig(rank=2, targets=("q_proj", "layers.1.o_*"))
    adapter = attach_adapter(net, config)
    assert list(adapter.layers) == ["layers.0.q_proj", "layers.1.q_proj", "layers.1.o_proj"]
    assert net.get_submodule("layers.0.q_proj") is adapter.layers["layers.0.q_proj"]
    assert net.layers[0].q_proj.weight is weight
    assert type(net.layers[0].o_proj) is nn.Linear
    by_name = adapter.named_parameters()
    assert {name: id(p) for name, p in trainable(net).items()} == {name: id(p) for name, p in by_name.items()}
    assert [id(p) for p in adapter.parameters()] == [id(p) for p in by_name.values()]
    assert adapter.config is config
    assert adapter.posteriors == adapter.saved == {}
    assert adapter.penalty().item() == 0


@pytest.mark.parametrize("config", [PLAIN, CONFIG, replace(CONFIG, num_samples=9, modules_to_save=("classifier",))])
def test_the_count_is_that_of_the_parameters_that_train(config: LoRAConfig) -> None:
    net = Classifier()
    adapter = attach_adapter(net, config)
    assert adapter.num_trainable == sum(p.numel() for p in trainable(net).values())
    assert {id(p) for p in trainable(net).values()} == {id(p) for p in adapter.named_parameters().values()}
    shapes = {name: (module.in_features, module.out_features) for name, module in adapter.layers.items()}
    saved = sum(p.numel() for p in adapter.saved.values())
    assert adapter.num_trainable == count_adapter_parameters(shapes, config) + saved
    # O(r + N) beyond LoRA per layer, exactly.
    if isinstance(config, MonteCLoRAConfig):
        extra = sum(p.numel() for posterior in adapter.posteriors.values() for p in posterior.parameters())
        assert extra == sum(module.rank + config.num_samples for module in adapter.layers.values())


def test_monteclora_parameters_belong_to_their_block() -> None:
    adapter = attach_adapter(Stack(), replace(CONFIG, targets=("layers.0.*",), rank=2, num_samples=5))
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters().items()} == {
        "layers.0.q_proj.lora_A": (2, 6),
        "layers.0.q_proj.lora_B": (6, 2),
        "layers.0.o_proj.lora_A": (2, 6),
        "layers.0.o_proj.lora_B": (8, 2),
        "layers.0.down_proj.lora_A": (2, 8),
        "layers.0.down_proj.lora_B": (6, 2),
        "layers.0.monteclora.log_std": (6,),
        "layers.0.monteclora.log_concentration": (3, 5),
    }


def test_patterns_give_layers_ranks_and_scales_of_their_own() -> None:
    config = LoRAConfig(
        rank=3, targets=TARGETS, rank_pattern={"layers.1.*": 2}, alpha_pattern={"o_proj": 12}, alpha=None
    )
    modules = attach_adapter(Stack(), config).layers
    assert {name: (m.rank, m.scaling) for name, m in modules.items()} == {
        "layers.0.q_proj": (3, 2.0),
        "layers.0.o_proj": (3, 4.0),
        "layers.0.down_proj": (3, 2.0),
        "layers.1.q_proj": (2, 2.0),
        "layers.1.o_proj": (2, 6.0),
        "layers.1.down_proj": (2, 2.0),
    }
    assert modules["layers.1.q_proj"].lora_A.shape == (2, WIDTH)
    rslora = attach_adapter(Stack(), LoRAConfig(rank=4, alpha=16, rslora=True, targets=("q_proj",))).layers
    assert rslora["layers.0.q_proj"].scaling == 8
    assert MonteCLoRALinear in {type(m) for m in attach_adapter(Stack(), CONFIG).layers.values()}


def test_first_values_depend_on_seed_and_name_alone() -> None:
    def values(seed: int, targets: tuple[str, ...], **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(len(targets))
        adapter = attach_adapter(Stack(), MonteCLoRAConfig(rank=2, targets=targets), seed, **options)
        parameters = {name: p.detach() for name, p in adapter.named_parameters().items() if "lora_" in name}
        for posterior in adapter.posteriors.values():
            pieces = zip(posterior.layers, posterior.log_std.split(2), posterior.log_concentration, strict=True)
            parameters |= {f"{name}.{i}": p.detach() for name, *both in pieces for i, p in enumerate(both)}
        return parameters

    some, more = values(0, ("o_proj",)), values(0, ("q_proj", "o_proj"))
    assert all(torch.equal(value, more[name]) for name, value in some.items())
    assert not torch.equal(some["layers.0.o_proj.lora_A"], some["layers.1.o_proj.lora_A"])
    assert not torch.equal(some["layers.0.o_proj.0"], some["layers.1.o_proj.0"])
    other = values(1, ("o_proj",))
    assert not any(torch.equal(value, other[name]) for name, value in some.items() if "lora_B" not in name)
    rounded = values(0, ("o_proj",), dtype=torch.bfloat16)
    assert all(torch.equal(value.bfloat16(), rounded[name]) for name, value in some.items())


def test_attaching_leaves_the_default_generator_alone() -> None:
    net = Stack()
    state = torch.get_rng_state()
    attach_adapter(net, CONFIG)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_handle_is_used_as_a_module_is_and_described_in_one_line() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    gradients(net, adapter, data())
    nn.utils.clip_grad_norm_(adapter.parameters(), 1e-3)
    grads = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert torch.cat([grad.flatten() for grad in grads]).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert repr(adapter) == f"Adapter(config={CONFIG!r}, num_trainable={adapter.num_trainable})"


def test_adapters_may_be_wider_than_the_base() -> None:
    net = Stack().bfloat16()
    adapter = attach_adapter(net, CONFIG, dtype=torch.float32)
    assert {p.dtype for p in adapter.named_parameters().values()} == {torch.float32}
    assert {m.weight.dtype for m in adapter.layers.values()} == {torch.bfloat16}
    adapter.set_penalty_weight(1.0)
    y = net.train()(data().bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.named_parameters().values())


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("config", [PLAIN, CONFIG])
def test_adapters_are_at_least_fp32_unless_told_otherwise(
    base: torch.dtype, expected: torch.dtype, config: LoRAConfig
) -> None:
    assert {p.dtype for p in attach_adapter(Stack().to(base), config).parameters()} == {expected}
    narrow = attach_adapter(Stack().to(base), config, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("config", [PLAIN, CONFIG])
def test_beside_sharded_weights_adapters_have_their_dtype(config: LoRAConfig) -> None:
    """ZeRO-3 marks them with ds_id, and its optimizer keeps fp32 copies."""
    net = Stack().bfloat16()
    for number, parameter in enumerate(net.parameters()):
        parameter.ds_id = number  # type: ignore[attr-defined]
    assert {p.dtype for p in attach_adapter(net, config).parameters()} == {torch.bfloat16}


def moved(base: torch.dtype, dtype: torch.dtype | None) -> dict[str, float]:
    """The share of each parameter's numbers that 20 steps at a usual learning rate change, but for B, which starts at 0."""
    net = Stack().to(base)
    adapter = attach_adapter(net.train(), CONFIG, dtype=dtype)
    values = {name: p.detach() for name, p in adapter.named_parameters().items() if "lora_B" not in name}
    first = {name: value.clone() for name, value in values.items()}
    optimizer = torch.optim.AdamW(adapter.parameter_groups(lr=2e-4))
    for step in range(20):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(data().to(base)).square().mean().backward()
        optimizer.step()
    return {name: (value != first[name]).float().mean().item() for name, value in values.items()}


def test_small_updates_beside_a_base_in_half_precision_are_not_lost() -> None:
    for base in (torch.bfloat16, torch.float16):
        assert min(moved(base, None).values()) > 0.95
    assert max(moved(torch.bfloat16, torch.bfloat16).values()) < 0.5


@pytest.mark.parametrize("config", [PLAIN, CONFIG])
def test_a_shared_layer_is_adapted_once_in_both_places(config: LoRAConfig) -> None:
    net = Stack()
    net.layers[1].q_proj = net.layers[0].q_proj
    adapter = adapt(net, replace(config, targets=("q_proj",), rank_pattern={}))
    assert list(adapter.layers) == ["layers.0.q_proj"]
    assert net.layers[0].q_proj is net.layers[1].q_proj is adapter.layers["layers.0.q_proj"]
    assert adapter.num_trainable == sum(p.numel() for p in trainable(net).values())
    first, again = (gradients(net, adapter, data()) for _ in range(2))
    assert all(value is not None for name, value in first.items() if name != "x")
    assert_same_bits(first, again)


def test_linears_with_a_forward_of_their_own_are_no_targets() -> None:
    class Quantised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.round())

    class Renamed(nn.Linear):
        pass

    net = nn.ModuleDict({"q": Quantised(4, 4), "r": Renamed(4, 4), "m": nn.MultiheadAttention(4, 1)})
    assert linear_names(net) == ["r"]
    assert list(attach_adapter(net, LoRAConfig(rank=2, targets=("*",))).layers) == ["r"]


def test_exactly_the_named_layers_are_wrapped() -> None:
    names = ["layers.1.q_proj", "layers.0.down_proj"]
    assert list(wrap_linears(Stack(), names, replace(CONFIG, rank_pattern={})).layers) == names


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.1.attention.q_proj", "model.layers.1"),
        ("model.layers.1.experts.0.up", "model.layers.1.experts.0"),
        ("model.layers.1.chain.0", "model.layers.1"),
        ("model.pairs.0.0", "model"),
        ("model.bare.0", "model"),
        ("head", ""),
    ],
)
def test_the_block_of_a_layer(name: str, block: str) -> None:
    class Part(nn.Module):
        def __init__(self, **children: nn.Module) -> None:
            super().__init__()
            for own, child in children.items():
                self.add_module(own, child)

    def linear() -> nn.Linear:
        return nn.Linear(4, 4)

    layer = Part(
        attention=Part(q_proj=linear()),
        experts=nn.ModuleList([Part(up=linear())]),
        chain=nn.Sequential(linear()),
    )
    pairs, bare = nn.ModuleList([nn.ModuleList([linear()])]), nn.ModuleList([linear()])
    net = Part(model=Part(layers=nn.ModuleList([Block(), layer]), pairs=pairs, bare=bare), head=linear())
    assert block_of(net, name) == block


def test_a_layer_with_only_containers_around_it_is_its_own_block() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    adapter = attach_adapter(net, MonteCLoRAConfig(rank=2, targets=("*",)))
    assert list(adapter.posteriors) == ["0.monteclora", "1.0.monteclora"]
    net(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None for p in trainable(net).values())


# What else trains.


def test_modules_to_save_train_in_full_and_get_no_update() -> None:
    net = Classifier()
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("q_proj", "dense"), modules_to_save=("classifier",)))
    assert list(adapter.layers) == ["encoder.layers.0.q_proj", "encoder.layers.1.q_proj"]
    assert list(adapter.saved) == [
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.norm.weight",
        "classifier.norm.bias",
    ]
    assert all(p.requires_grad for p in adapter.saved.values())
    assert adapter.saved.items() <= adapter.named_parameters().items()


def test_a_saved_module_trains_though_its_weight_has_another_name_first() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.q_proj = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.lm_head = nn.Linear(4, 7, bias=False)
            self.lm_head.weight = self.embed.weight

    net = Tied()
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",)))
    assert list(adapter.saved) == ["lm_head.weight"]
    assert net.embed.weight.requires_grad
    both = attach_adapter(Tied(), LoRAConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head", "embed")))
    assert list(both.saved) == ["embed.weight"]
    assert both.num_trainable == 2 * 4 + 4 * 2 + 28


def test_groups_of_the_optimizer_and_their_learning_rates() -> None:
    config = replace(CONFIG, modules_to_save=("classifier",), loraplus_ratio=16.0, coop_lr_ratio=5.0, start_step=1)
    net = Classifier()
    adapter = attach_adapter(net, config)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = {group["name"]: group for group in adapter.parameter_groups(1e-2, weight_decay=0.1)}
    found = {name: [names[id(p)] for p in group["params"]] for name, group in groups.items()}
    assert found["saved"] == ["classifier.dense.weight"]
    assert found["saved_no_decay"] == ["classifier.dense.bias", "classifier.norm.weight", "classifier.norm.bias"]
    assert found["low_rank_A"] == [f"{name}.lora_A" for name in adapter.layers]
    assert found["low_rank_B"] == [f"{name}.lora_B" for name in adapter.layers]
    assert sorted(found["variational"]) == sorted(
        f"{name}.{own}" for name in adapter.posteriors for own in ("log_std", "log_concentration")
    )
    assert sum(map(len, found.values())) == len(trainable(net))
    assert {name: group["lr"] for name, group in groups.items()} == {
        name: 0.16 if name == "low_rank_B" else 0.01 for name in groups
    }
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay == {"low_rank_A": 0.1, "low_rank_B": 0.1, "variational": 0.0, "saved": 0.1, "saved_no_decay": 0.0}
    optimizer = torch.optim.AdamW(groups.values())
    ratios, rates = [], []
    for step in (0, 1):
        adapter.begin_step(step, optimizer, lr=0.25)
        ratios.append({name: adapter.lr_ratio(name) for name in groups})
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    assert ratios[0] == {"low_rank_A": 1, "low_rank_B": 16, "variational": 1, "saved": 1, "saved_no_decay": 1}
    assert ratios[1] == {name: 5 * ratio for name, ratio in ratios[0].items()}
    assert rates == [{name: 0.25 * ratio for name, ratio in ratio.items()} for ratio in ratios]


@pytest.mark.parametrize(
    ("settings", "ratios"),
    [
        ({}, (1, 1, 1)),
        ({"coop_lr_ratio": 5.0}, (5, 5, 5)),
        ({"coop_lr_ratio": 5.0, "start_step": 1}, (1, 1, 1)),
        ({"posthoc": True, "coop_lr_ratio": 5.0}, (0, 0, 5)),
        ({"posthoc": True, "start_step": 1}, (1, 1, 1)),
    ],
)
def test_groups_start_with_the_learning_rates_of_the_first_step(
    settings: dict[str, Any], ratios: tuple[float, ...]
) -> None:
    adapter = attach_adapter(Stack(), replace(CONFIG, **settings))
    groups = adapter.parameter_groups(0.5)
    assert [group["name"] for group in groups] == ["low_rank_A", "low_rank_B", "variational"]
    first = [group["lr"] for group in groups]
    assert first == [0.5 * ratio for ratio in ratios]
    adapter.begin_step(0, torch.optim.SGD(groups), lr=0.5)
    assert [group["lr"] for group in groups] == first


def test_groups_of_plain_lora() -> None:
    adapter = attach_adapter(Stack(), replace(PLAIN, loraplus_ratio=4.0))
    groups = adapter.parameter_groups(0.5)
    assert [(group["name"], group["lr"]) for group in groups] == [("low_rank_A", 0.5), ("low_rank_B", 2.0)]
    adapter.begin_step(7)
    assert [adapter.lr_ratio(name) for name in ("low_rank_A", "low_rank_B")] == [1, 4]


def test_a_learning_rate_is_only_known_of_the_adapters_own_groups() -> None:
    adapter = attach_adapter(Stack(), replace(PLAIN, loraplus_ratio=4.0))
    message = (
        "^'lora_B' is no group of the adapter's parameters; those are low_rank_A, low_rank_B, variational, saved, "
        "saved_no_decay$"
    )
    with pytest.raises(AdapterError, match=message):
        adapter.lr_ratio("lora_B")
    nameless = torch.optim.AdamW(adapter.parameters(), lr=0.125)
    with pytest.raises(AdapterError, match=r"has no name; make the optimizer from adapter\.parameter_groups\(lr\)$"):
        adapter.begin_step(0, nameless, lr=1.0)
    assert nameless.param_groups[0]["lr"] == 0.125


def test_a_step_has_an_optimizer_and_a_learning_rate_or_neither() -> None:
    adapter = attach_adapter(Stack(), replace(CONFIG, start_step=5))
    optimizer = torch.optim.AdamW(adapter.parameter_groups(0.125))
    for arguments in ((optimizer, None), (None, 0.5)):
        with pytest.raises(
            AdapterError, match=r"^begin_step needs both optimizer and lr to set the learning rates, or neither$"
        ):
            adapter.begin_step(5, *arguments)
    adapter.begin_step(5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}
    adapter.begin_step(5, optimizer, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}


@pytest.mark.parametrize("settings", [{"start_step": 2}, {"posthoc": True}, {"coop_lr_ratio": 5.0}])
def test_training_that_depends_on_the_step_needs_to_know_it(settings: dict[str, Any]) -> None:
    net = Stack()
    adapter = attach_adapter(net, replace(CONFIG, **settings))
    message = (
        r"^start_step, posthoc and coop_lr_ratio depend on the step: call adapter\.begin_step\(step, optimizer, lr\) "
        "before every optimizer step$"
    )
    with pytest.raises(AdapterError, match=message):
        net.train()(data())
    net.eval()(data())
    with adapter.sampled(0):
        net(data())
    adapter.begin_step(0)
    net.train()(data())


def test_training_that_depends_on_no_step_needs_none() -> None:
    for config in (PLAIN, replace(PLAIN, loraplus_ratio=4.0), CONFIG):
        net = Stack()
        attach_adapter(net, config)
        net.train()(data())


@pytest.mark.parametrize("start_step", [0, 3])
def test_a_post_hoc_phase_leaves_a_and_b_as_lora_made_them(start_step: int) -> None:
    """With momentum and weight decay, which would both go on moving them."""
    net = Classifier()
    config = replace(CONFIG, posthoc=True, start_step=start_step, coop_lr_ratio=5.0, modules_to_save=("classifier",))
    adapter = attach_adapter(net, config)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.lora_B.fill_(0.3)
    net.train()
    optimizer = torch.optim.AdamW(adapter.parameter_groups(lr=1e-2, weight_decay=0.1))
    values = {name: p.detach() for name, p in adapter.named_parameters().items()}
    history = [{name: p.clone() for name, p in values.items()}]
    for step in range(6):
        adapter.begin_step(step, optimizer, lr=1e-2)
        torch.manual_seed(step)
        net(data()).square().mean().backward()
        if step >= start_step:
            low_rank = [p.grad for name, p in adapter.named_parameters().items() if "lora_" in name]
            assert all(grad is not None and not grad.any() for grad in low_rank)
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: p.clone() for name, p in values.items()})
    before = [True] * start_step + [False] * (6 - start_step)
    for name in values:
        moved = [not torch.equal(one[name], two[name]) for one, two in itertools.pairwise(history)]
        # Before the cooperative phase s and t get no gradient at all.
        assert moved == [is_before is not ("monteclora" in name) for is_before in before], name


# The penalty.


def test_penalty_is_the_mean_over_layers_of_the_latest_forward() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    assert adapter.penalty().item() == 0
    net(data())
    values = [
        variational_penalty(p.last_draw, p.sizes(p.log_std).rank, CONFIG)
        for p in adapter.posteriors.values()
        if p.last_draw is not None
    ]
    assert len(values) == 2
    torch.testing.assert_close(adapter.penalty(), torch.stack(values).sum() / 6)
    assert not adapter.penalty().requires_grad
    before = adapter.penalty()
    net(data())
    assert adapter.penalty() != before
    latest = adapter.penalty()
    net.eval()(data())
    with adapter.sampled(0):
        net(data())
    assert torch.equal(adapter.penalty(), latest)


def test_layers_that_did_not_run_count_as_zero() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    net.layers[0](data())
    posterior = adapter.posteriors["layers.0.monteclora"]
    assert posterior.last_draw is not None
    expected = variational_penalty(posterior.last_draw, posterior.sizes(posterior.log_std).rank, CONFIG) / 6
    torch.testing.assert_close(adapter.penalty(), expected)


def test_the_gradient_of_the_penalty_has_the_weight_whatever_comes_from_the_loss() -> None:
    """Two micro-batches at half the weight, and a loss scaled up, get the penalty's gradient once."""

    def variational(weight: float, scale: float, micro_batches: int) -> Tensor:
        net = Stack()
        adapter = adapt(net, replace(CONFIG, analytic_kl=True, noise_scale=0.0, coop_weight=0.0), penalty_weight=weight)
        for _ in range(micro_batches):
            (scale * net(data()).square().mean()).backward()
        grad = adapter.posteriors["layers.0.monteclora"].log_std.grad
        assert grad is not None
        return grad

    once = variational(1.0, 1.0, 1)
    assert once.abs().min() > 0
    torch.testing.assert_close(variational(0.5, 1.0, 2), once)
    assert torch.equal(variational(1.0, 1024.0, 1), once)
    torch.testing.assert_close(variational(3.0, 1.0, 1), 3 * once)


def test_the_penalty_has_its_full_weight_until_told_otherwise() -> None:
    found = []
    for weight in (None, 1.0, 0.5):
        net = Stack()
        adapter = attach_adapter(net.train(), CONFIG)
        if weight is not None:
            adapter.set_penalty_weight(weight)
        found.append(gradients(net, adapter, data()))
    assert_same_bits(found[0], found[1])
    name = "layers.1.monteclora.log_std"
    assert found[0][name] is not None
    # B is 0, so nothing but the penalty reaches s.
    torch.testing.assert_close(found[2][name], 0.5 * found[0][name])  # type: ignore[operator]


@pytest.mark.parametrize("weight", [math.nan, math.inf, -0.5])
def test_a_penalty_weight_that_is_none_is_refused(weight: float) -> None:
    net = Stack()
    adapter = adapt(net, CONFIG, penalty_weight=0.25)
    wanted = gradients(net, adapter, data())
    message = f"^the weight of the penalty is {weight}; give 0 \\(off\\) or a positive number$"
    with pytest.raises(AdapterError, match=message):
        adapter.set_penalty_weight(weight)
    assert_same_bits(gradients(net, adapter, data()), wanted)
    adapter.set_penalty_weight(0.0)


# Draws for inference.


def sampled_output(net: nn.Module, adapter: Adapter, index: int, seed: int = 0) -> Tensor:
    with adapter.sampled(index, seed):
        return net(data()).detach()


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_a_draw_for_inference_is_the_same_in_every_forward(estimator: Any) -> None:
    net = Stack()
    adapter = adapt(net, replace(CONFIG, estimator=estimator, dropout=0.3))
    net.eval()
    mean, state = net(data()), torch.get_rng_state()
    one = sampled_output(net, adapter, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert torch.equal(sampled_output(net, adapter, 0), one)
    with adapter.sampled(0):
        assert torch.equal(net(data()), net(data()))
    others = [sampled_output(net, adapter, 1), sampled_output(net, adapter, 0, seed=1), mean]
    assert not any(torch.allclose(one, other) for other in others)
    assert torch.equal(net(data()), mean)


def test_draws_may_be_nested_and_end_with_an_exception() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    net.eval()
    one, two = (sampled_output(net, adapter, index) for index in (1, 2))
    with adapter.sampled(1):
        with adapter.sampled(2):
            assert torch.equal(net(data()), two)
        assert torch.equal(net(data()), one)
        with pytest.raises(ZeroDivisionError), adapter.sampled(2):
            _ = 1 / 0
        assert torch.equal(net(data()), one)
    assert adapter.controls.sample is None


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_gradients_pass_through_a_draw_for_inference(estimator: Any) -> None:
    """And the penalty, which is training's, does not join them."""
    net = Stack()
    adapter = adapt(net, replace(CONFIG, estimator=estimator))
    net.eval()
    results = []
    for weight in (0.0, 5.0):
        adapter.set_penalty_weight(weight)
        with adapter.sampled(3):
            results.append(gradients(net, adapter, data()))
    assert_same_bits(*results)
    assert all(value is not None and value.any() for name, value in results[0].items() if name != "x")


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_the_mean_over_draws_is_the_posterior_mean(estimator: Any) -> None:
    """A layer is linear in A, so the mean of its outputs is its output at the mean."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    adapter = adapt(net, MonteCLoRAConfig(rank=3, targets=("*",), noise_scale=0.3, estimator=estimator))
    mean = net.eval()(data())
    outputs = torch.stack([sampled_output(net, adapter, index) for index in range(1_000)])
    error = outputs.std(0) / math.sqrt(len(outputs))
    # 30 means, so a false alarm in about 5,000 at 4.5 standard errors.
    assert ((outputs.mean(0) - mean).abs() < 4.5 * error).all()
    assert (outputs[0] - mean).abs().max() > 20 * error.max()


def test_training_may_use_a_fixed_draw() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    with adapter.sampled(0):
        assert torch.equal(net(data()), net(data()))
        assert torch.equal(net(data()), sampled_output(net.eval(), adapter, 0))


# Messages.


def refused(model: nn.Module, config: LoRAConfig, message: str) -> None:
    before = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(AdapterError, match=f"^{re.escape(message)}$"):
        attach_adapter(model, config)
    assert [(name, id(p), p.requires_grad) for name, p in model.named_parameters()] == before


def test_what_does_not_fit_the_model_is_all_named() -> None:
    """Its messages are those of `model_problems`, tested there."""
    called = "the model's linear layers are called down_proj, o_proj, q_proj"
    refused(
        Stack(),
        LoRAConfig(rank=6, targets=("q_proj", "9.*"), rank_pattern={"v_proj": 2}, modules_to_save=("score",)),
        f"the adapter does not fit the model: targets '9.*' matches no linear layer; {called}; a pattern with a dot is "
        "compared with the full name, of which one is layers.0.q_proj; rank_pattern 'v_proj' matches no layer that "
        "targets adapt; one of those is layers.0.q_proj; modules_to_save 'score' matches no module; the model consists "
        "of layers; rank is 6, no low rank for layers.0.q_proj, which is 6 x 6; give less than 6, for this layer alone "
        "with rank_pattern, or leave it out of targets",
    )
    refused(
        nn.Sequential(nn.ReLU()),
        LoRAConfig(rank=2, targets=("*",)),
        "the adapter does not fit the model: targets '*' matches no linear layer; the model has no linear layer",
    )
    refused(
        Classifier(),
        LoRAConfig(rank=2, targets=("dense",), modules_to_save=("classifier",)),
        "the adapter does not fit the model: targets match only layers inside modules_to_save, which train in full; "
        "take them out of one",
    )


@pytest.mark.parametrize("targets", [("lm_head",), ("*",), ("q_proj", "lm_head")])
def test_a_weight_is_not_frozen_and_trained_in_full_at_once(targets: tuple[str, ...]) -> None:
    refused(
        llama(tie_word_embeddings=True),
        LoRAConfig(rank=2, targets=targets, modules_to_save=("embed_tokens",)),
        "targets freeze the weight of lm_head, which is tied to model.embed_tokens.weight, and modules_to_save train "
        "that in full; take one of them out",
    )
    untied = llama(tie_word_embeddings=False)
    adapter = attach_adapter(untied, LoRAConfig(rank=2, targets=targets, modules_to_save=("embed_tokens",)))
    assert "lm_head" in adapter.layers
    assert list(adapter.saved) == ["model.embed_tokens.weight"]


def test_settings_out_of_range_are_all_named() -> None:
    refused(
        Stack(),
        LoRAConfig(rank=0, dropout=2.0),
        "the adapter cannot be built: rank is 0; a low-rank update needs a rank of 1 or more; "
        "dropout is 2.0; give a probability in [0, 1)",
    )


def test_an_adapter_is_made_from_a_configuration() -> None:
    with pytest.raises(
        AdapterError, match=r"^an adapter is made from a LoRAConfig or a MonteCLoRAConfig, not from dict$"
    ):
        attach_adapter(Stack(), {"rank": 4})  # type: ignore[arg-type]


def test_settings_of_a_wrong_type_are_named() -> None:
    refused(
        Stack(),
        LoRAConfig(rank="8", targets="q_proj"),  # type: ignore[arg-type]
        "the adapter cannot be built: rank is '8'; give a whole number; targets is 'q_proj'; give a list, each entry a text",
    )
    assert list(attach_adapter(Stack(), LoRAConfig(rank=2, targets=["q_proj"])).layers) == [  # type: ignore[arg-type]
        "layers.0.q_proj",
        "layers.1.q_proj",
    ]


@pytest.mark.parametrize("targets", [("q_proj",), ("o_proj",)])
def test_a_second_adapter_is_refused(targets: tuple[str, ...]) -> None:
    """With the same settings too, which find no linear layer any more."""
    net = Stack()
    attach_adapter(net, LoRAConfig(rank=2, targets=("q_proj",)))
    refused(
        net,
        LoRAConfig(rank=2, targets=targets),
        "the model has an adapter already; merge it first (merge_adapter), or start from the base",
    )


def test_a_merged_adapter_is_not_in_place() -> None:
    net = Stack()
    adapter = adapt(net, CONFIG)
    adapter.check_in_place()
    merge_adapter(net)
    message = (
        r"^the adapter is merged into its model, whose layers are plain ones with other weights now; do this before "
        r"merging, or unmerge it first \(unmerge_adapter\)$"
    )
    with pytest.raises(AdapterError, match=message):
        adapter.check_in_place()
    with pytest.raises(AdapterError, match=message), adapter.sampled(0):
        pass
    assert adapter.controls.sample is None
    unmerge_adapter(net, adapter)
    adapter.check_in_place()


def test_names_of_no_linear_layer_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"^no linear layers named a, layers\.0 to adapt; the model's linear layers"):
        wrap_linears(Stack(), ["layers.0.q_proj", "a", "layers.0"], replace(PLAIN, rank_pattern={}))


def test_plain_lora_has_nothing_to_sample() -> None:
    adapter = attach_adapter(Stack(), PLAIN)
    message = "^a plain LoRA has no posterior to sample from; train a MonteCLoRAConfig adapter$"
    with pytest.raises(AdapterError, match=message), adapter.sampled(0):
        pass


# Models of transformers.

SEVEN = LoRAConfig().targets


def llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, max_position_embeddings=64, **settings))


def roberta() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61}
    return RobertaForSequenceClassification(
        RobertaConfig(**shape, num_attention_heads=4, max_position_embeddings=40, num_labels=3, pad_token_id=1)
    )


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def fit(model: nn.Module, adapter: Adapter, batch: dict[str, Tensor]) -> list[float]:
    """A few steps on one batch; the losses."""
    adapter.set_penalty_weight(1.0)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2, weight_decay=0.01), lr=1e-2)
    model.train()
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss = model(**batch).loss
        loss.backward()
        if step:  # at the first, B is 0
            assert all(p.grad is not None and p.grad.any() for p in adapter.named_parameters().values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(rank=4),
        MonteCLoRAConfig(rank=4, noise_scale=5e-3),
        MonteCLoRAConfig(rank=4, noise_scale=5e-3, estimator="sampled"),
    ],
    ids=["lora", "collapsed", "sampled"],
)
@pytest.mark.parametrize("rope", [None, LLAMA_3_ROPE], ids=["llama2", "llama3"])
def test_llama_learns(config: LoRAConfig, rope: dict[str, Any] | None) -> None:
    model = llama(rope_parameters=rope) if rope else llama()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = attach_adapter(model, config)
    assert list(adapter.layers) == [name for name in linear_names(llama()) if name.rpartition(".")[2] in SEVEN]
    assert len(adapter.layers) == 14
    if isinstance(config, MonteCLoRAConfig):
        assert list(adapter.posteriors) == ["model.layers.0.monteclora", "model.layers.1.monteclora"]
    ids = torch.randint(61, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = fit(model, adapter, {"input_ids": ids, "labels": ids})
    assert losses[-1] < 0.96 * losses[0]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_llama_changes_no_bit(reentrant: bool) -> None:
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))
    results = []
    for is_checkpointed in (False, True):
        model = llama()
        adapter = adapt(model, MonteCLoRAConfig(rank=4, noise_scale=0.1, dropout=0.1))
        if is_checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        torch.manual_seed(1)
        model(input_ids=ids, labels=ids).loss.backward()
        results.append({name: p.grad for name, p in adapter.named_parameters().items()})
    assert_same_bits(*results)


@pytest.mark.parametrize("config", [LoRAConfig(rank=4), MonteCLoRAConfig(rank=4, noise_scale=5e-3)])
def test_roberta_learns_with_a_head_that_trains_in_full(config: LoRAConfig) -> None:
    model = roberta()
    config = replace(config, targets=("query", "key", "value", "dense"), modules_to_save=("classifier",))
    adapter = attach_adapter(model, config)
    # Four projections, the attention's output and two of the feed-forward: the head's own `dense` is not among them.
    assert len(adapter.layers) == 12
    assert type(model.classifier.dense) is nn.Linear
    assert {name.rpartition(".")[0] for name in adapter.saved} == {"classifier.dense", "classifier.out_proj"}
    assert adapter.num_trainable == sum(p.numel() for p in trainable(model).values())
    if isinstance(config, MonteCLoRAConfig):
        assert list(adapter.posteriors) == [f"roberta.encoder.layer.{i}.monteclora" for i in range(2)]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 61, (6, 16), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(6) % 3}
    assert isinstance(model.config, PretrainedConfig)
    losses = fit(model, adapter, batch)
    assert losses[-1] < 0.9 * losses[0]


def test_the_output_layer_of_a_model_is_drawn_with_the_model() -> None:
    model = llama(tie_word_embeddings=True)
    adapter = adapt(model, MonteCLoRAConfig(rank=4, targets=("lm_head", "q_proj"), noise_scale=0.1))
    assert set(adapter.posteriors) == {"monteclora", "model.layers.0.monteclora", "model.layers.1.monteclora"}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(8).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in adapter.named_parameters().values())
    assert isinstance(model.lm_head, LoRALinear)
