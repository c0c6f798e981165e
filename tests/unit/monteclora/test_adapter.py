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
    assert list(adapter.modules) == ["layers.0.q_proj", "layers.1.q_proj", "layers.1.o_proj"]
    assert net.get_submodule("layers.0.q_proj") is adapter.modules["layers.0.q_proj"]
    assert net.layers[0].q_proj.weight is weight
    assert type(net.layers[0].o_proj) is nn.Linear
    assert {name: id(p) for name, p in trainable(net).items()} == {n: id(p) for n, p in adapter.parameters().items()}
    assert adapter.config is config
    assert adapter.posteriors == adapter.saved == {}
    assert adapter.penalty().item() == 0


@pytest.mark.parametrize("config", [PLAIN, CONFIG, replace(CONFIG, num_samples=9, modules_to_save=("classifier",))])
def test_the_count_is_that_of_the_parameters_that_train(config: LoRAConfig) -> None:
    net = Classifier()
    adapter = attach_adapter(net, config)
    assert adapter.num_trainable == sum(p.numel() for p in trainable(net).values())
    assert {id(p) for p in trainable(net).values()} == {id(p) for p in adapter.parameters().values()}
    shapes = {name: (module.in_features, module.out_features) for name, module in adapter.modules.items()}
    saved = sum(p.numel() for p in adapter.saved.values())
    assert adapter.num_trainable == count_adapter_parameters(shapes, config) + saved
    # O(r + N) beyond LoRA per layer, exactly.
    if isinstance(config, MonteCLoRAConfig):
        extra = sum(p.numel() for posterior in adapter.posteriors.values() for p in posterior.parameters())
        assert extra == sum(module.rank + config.num_samples for module in adapter.modules.values())


def test_monteclora_parameters_belong_to_their_block() -> None:
    adapter = attach_adapter(Stack(), replace(CONFIG, targets=("layers.0.*",), rank=2, num_samples=5))
    assert {name: tuple(p.shape) for name, p in adapter.parameters().items()} == {
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
    modules = attach_adapter(Stack(), config).modules
    assert {name: (m.rank, m.scaling) for name, m in modules.items()} == {
        "layers.0.q_proj": (3, 2.0),
        "layers.0.o_proj": (3, 4.0),
        "layers.0.down_proj": (3, 2.0),
        "layers.1.q_proj": (2, 2.0),
        "layers.1.o_proj": (2, 6.0),
        "layers.1.down_proj": (2, 2.0),
    }
    assert modules["layers.1.q_proj"].lora_A.shape == (2, WIDTH)
    rslora = attach_adapter(Stack(), LoRAConfig(rank=4, alpha=16, rslora=True, targets=("q_proj",))).modules
    assert rslora["layers.0.q_proj"].scaling == 8
    assert MonteCLoRALinear in {type(m) for m in attach_adapter(Stack(), CONFIG).modules.values()}


def test_first_values_depend_on_seed_and_name_alone() -> None:
    def values(seed: int, targets: tuple[str, ...], **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(len(targets))
        adapter = attach_adapter(Stack(), MonteCLoRAConfig(rank=2, targets=targets), seed, **options)
        parameters = {name: p.detach() for name, p in adapter.parameters().items() if "lora_" in name}
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


def test_adapters_may_be_wider_than_the_base() -> None:
    net = Stack().bfloat16()
    adapter = attach_adapter(net, CONFIG, dtype=torch.float32)
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    assert {m.weight.dtype for m in adapter.modules.values()} == {torch.bfloat16}
    adapter.set_penalty_weight(1.0)
    y = net.train()(data().bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.parameters().values())
    assert {p.dtype for p in attach_adapter(Stack().bfloat16(), CONFIG).parameters().values()} == {torch.bfloat16}


@pytest.mark.parametrize("config", [PLAIN, CONFIG])
def test_a_shared_layer_is_adapted_once_in_both_places(config: LoRAConfig) -> None:
    net = Stack()
    net.layers[1].q_proj = net.layers[0].q_proj
    adapter = adapt(net, replace(config, targets=("q_proj",), rank_pattern={}))
    assert list(adapter.modules) == ["layers.0.q_proj"]
    assert net.layers[0].q_proj is net.layers[1].q_proj is adapter.modules["layers.0.q_proj"]
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
    assert list(attach_adapter(net, LoRAConfig(rank=2, targets=("*",))).modules) == ["r"]


def test_exactly_the_named_layers_are_wrapped() -> None:
    names = ["layers.1.q_proj", "layers.0.down_proj"]
    assert list(wrap_linears(Stack(), names, replace(CONFIG, rank_pattern={})).modules) == names


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
    assert list(adapter.modules) == ["encoder.layers.0.q_proj", "encoder.layers.1.q_proj"]
    assert list(adapter.saved) == [
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.norm.weight",
        "classifier.norm.bias",
    ]
    assert all(p.requires_grad for p in adapter.saved.values())
    assert adapter.saved.items() <= adapter.parameters().items()


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
    groups = {group["name"]: group for group in adapter.parameter_groups(weight_decay=0.1)}
    found = {name: [names[id(p)] for p in group["params"]] for name, group in groups.items()}
    assert found["saved"] == ["classifier.dense.weight"]
    assert found["saved_no_decay"] == ["classifier.dense.bias", "classifier.norm.weight", "classifier.norm.bias"]
    assert found["low_rank_A"] == [f"{name}.lora_A" for name in adapter.modules]
    assert found["low_rank_B"] == [f"{name}.lora_B" for name in adapter.modules]
    assert sorted(found["variational"]) == sorted(
        f"{name}.{own}" for name in adapter.posteriors for own in ("log_std", "log_concentration")
    )
    assert sum(map(len, found.values())) == len(trainable(net))
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay == {"low_rank_A": 0.1, "low_rank_B": 0.1, "variational": 0.0, "saved": 0.1, "saved_no_decay": 0.0}
    ratios = []
    for step in (0, 1):
        adapter.set_step(step)
        ratios.append({name: adapter.lr_ratio(name) for name in groups})
    assert ratios[0] == {"low_rank_A": 1, "low_rank_B": 16, "variational": 1, "saved": 1, "saved_no_decay": 1}
    assert ratios[1] == {name: 5 * ratio for name, ratio in ratios[0].items()}


def test_groups_of_plain_lora() -> None:
    adapter = attach_adapter(Stack(), replace(PLAIN, loraplus_ratio=4.0))
    assert [group["name"] for group in adapter.parameter_groups()] == ["low_rank_A", "low_rank_B"]
    adapter.set_step(7)
    assert [adapter.lr_ratio(name) for name in ("low_rank_A", "low_rank_B")] == [1, 4]


def test_a_post_hoc_phase_leaves_a_and_b_as_lora_made_them() -> None:
    """With momentum and weight decay, which would both go on moving them."""
    net = Classifier()
    config = replace(CONFIG, posthoc=True, start_step=3, coop_lr_ratio=5.0, modules_to_save=("classifier",))
    adapter = adapt(net, config)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(weight_decay=0.1), lr=0.0)
    history = []
    for step in range(6):
        adapter.set_step(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * adapter.lr_ratio(group["name"])
        gradients(net, adapter, data(), seed=step)
        if step >= 3:
            low_rank = [p.grad for name, p in adapter.parameters().items() if "lora_" in name]
            assert all(grad is not None and not grad.any() for grad in low_rank)
        optimizer.step()
        history.append({name: p.detach().clone() for name, p in adapter.parameters().items()})
    for name in history[0]:
        moved = [not torch.equal(one[name], two[name]) for one, two in itertools.pairwise(history)]
        # Before the cooperative phase s and t get no gradient at all.
        assert moved == ([False, False, True, True, True] if "monteclora" in name else [True, True] + [False] * 3), name


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


def test_unmatched_patterns_are_named_with_what_there_is() -> None:
    called = "the model's linear layers are called down_proj, o_proj, q_proj"
    refused(
        Stack(),
        LoRAConfig(rank=2, targets=("q_proj", "k_proj", "9.*")),
        f"targets k_proj, 9.* match no linear layer; {called}",
    )
    refused(
        Stack(),
        LoRAConfig(rank=2, targets=("q_proj",), rank_pattern={"v_proj": 2}, alpha_pattern={"w": 3, "q_proj": 3}),
        f"rank_pattern v_proj match no linear layer; {called}; alpha_pattern w match no linear layer; {called}",
    )
    refused(
        Classifier(),
        LoRAConfig(rank=2, targets=("q_proj",), modules_to_save=("score", "classifier")),
        "modules_to_save score match no module; the model consists of encoder, classifier",
    )
    refused(
        nn.Sequential(nn.ReLU()),
        LoRAConfig(rank=2, targets=("*",)),
        "targets * match no linear layer; the model has no linear layer",
    )


def test_targets_inside_modules_to_save_alone_are_refused() -> None:
    refused(
        Classifier(),
        LoRAConfig(rank=2, targets=("dense",), modules_to_save=("classifier",)),
        "targets match only layers inside modules_to_save, which train in full; take them out of one",
    )


def test_settings_out_of_range_are_all_named() -> None:
    refused(
        Stack(),
        LoRAConfig(rank=0, dropout=2.0),
        "the adapter cannot be built: rank is 0; a low-rank update needs a rank of 1 or more; "
        "dropout is 2.0; give a probability in [0, 1)",
    )


def test_a_rank_that_is_not_low_is_refused() -> None:
    refused(
        Stack(),
        LoRAConfig(rank=6, targets=TARGETS),
        "rank = 6 is no low rank for layers.0.q_proj, which is 6 x 6; give less than 6, for this layer alone with "
        "rank_pattern",
    )
    refused(
        Stack(),
        LoRAConfig(rank=2, targets=TARGETS, rank_pattern={"o_proj": 7}),
        "rank_pattern o_proj = 7 is no low rank for layers.0.o_proj, which is 6 x 8; give less than 6, for this layer "
        "alone with rank_pattern",
    )


def test_a_second_adapter_is_refused() -> None:
    net = Stack()
    attach_adapter(net, LoRAConfig(rank=2, targets=("q_proj",)))
    refused(
        net,
        LoRAConfig(rank=2, targets=("o_proj",)),
        "the model has an adapter already; merge it first (merge_adapter), or start from the base",
    )


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
    optimizer = torch.optim.AdamW(adapter.parameter_groups(weight_decay=0.01), lr=1e-2)
    model.train()
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss = model(**batch).loss
        loss.backward()
        if step:  # at the first, B is 0
            assert all(p.grad is not None and p.grad.any() for p in adapter.parameters().values())
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
    assert list(adapter.modules) == [name for name in linear_names(llama()) if name.rpartition(".")[2] in SEVEN]
    assert len(adapter.modules) == 14
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
        results.append({name: p.grad for name, p in adapter.parameters().items()})
    assert_same_bits(*results)


@pytest.mark.parametrize("config", [LoRAConfig(rank=4), MonteCLoRAConfig(rank=4, noise_scale=5e-3)])
def test_roberta_learns_with_a_head_that_trains_in_full(config: LoRAConfig) -> None:
    model = roberta()
    config = replace(config, targets=("query", "key", "value", "dense"), modules_to_save=("classifier",))
    adapter = attach_adapter(model, config)
    # Four projections, the attention's output and two of the feed-forward: the head's own `dense` is not among them.
    assert len(adapter.modules) == 12
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
    assert all(p.grad is not None for p in adapter.parameters().values())
    assert isinstance(model.lm_head, LoRALinear)
