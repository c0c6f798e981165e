import re

import pytest
import torch
from torch import nn

from monteclora import LoRAConfig, MonteCLoRAConfig, attach_adapter
from monteclora.config import count_adapter_parameters
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.monteclora import MonteCLoRALinear
from monteclora.penalty import variational_penalty


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.out = nn.Linear(8, 8), nn.Linear(8, 4, bias=False), nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.out(torch.tanh(self.v_proj(self.q_proj(x)))))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


def test_named_linears_are_replaced_and_everything_else_is_frozen() -> None:
    net = model()
    first = net[0].q_proj
    config = LoRAConfig(rank=2, targets=("?_proj",))
    adapter = attach_adapter(net, config)
    assert list(adapter.modules) == ["0.q_proj", "0.v_proj", "1.q_proj", "1.v_proj"]
    assert net.get_submodule("0.q_proj") is adapter.modules["0.q_proj"]
    assert net[0].q_proj.base is first
    assert type(net[0].out) is nn.Linear
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert {name: id(p) for name, p in trainable.items()} == {n: id(p) for n, p in adapter.parameters().items()}
    assert adapter.num_trainable == sum(p.numel() for p in trainable.values())
    assert adapter.num_trainable == count_adapter_parameters([(8, 8), (8, 4)] * 2, config)
    assert adapter.config is config
    assert adapter.penalty().item() == 0


def test_monteclora_parameters_are_counted_and_named() -> None:
    net = model()
    adapter = attach_adapter(net, MonteCLoRAConfig(rank=2, num_samples=3, targets=("0.q_proj",)))
    assert {name: tuple(p.shape) for name, p in adapter.parameters().items()} == {
        "0.q_proj.lora_A": (2, 8),
        "0.q_proj.lora_B": (8, 2),
        "0.q_proj.log_std": (2,),
        "0.q_proj.log_concentration": (3,),
    }
    assert adapter.num_trainable == 16 + 16 + 2 + 3


def test_first_values_depend_on_seed_and_name_alone() -> None:
    def values(seed: int, targets: tuple[str, ...], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        torch.manual_seed(id(targets) % 1000)
        return {
            n: p.detach()
            for n, p in attach_adapter(model().to(dtype), MonteCLoRAConfig(rank=2, targets=targets), seed=seed)
            .parameters()
            .items()
        }

    some, more = values(0, ("q_proj",)), values(0, ("q_proj", "v_proj"))
    assert all(torch.equal(value, more[name]) for name, value in some.items())
    assert not torch.equal(some["0.q_proj.lora_A"], some["1.q_proj.lora_A"])
    assert not torch.equal(some["0.q_proj.log_std"], values(1, ("q_proj",))["0.q_proj.log_std"])
    rounded = values(0, ("q_proj",), torch.bfloat16)
    assert all(torch.equal(value.bfloat16(), rounded[name]) for name, value in some.items())


def test_attaching_leaves_the_default_generator_alone() -> None:
    net = model()
    state = torch.get_rng_state()
    attach_adapter(net, MonteCLoRAConfig(rank=2, targets=("q_proj",)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shared_layer_is_adapted_once_in_both_places() -> None:
    shared = Block()
    net = nn.ModuleDict({"a": shared, "b": shared, "c": Block()})
    net["c"].q_proj = shared.q_proj
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("q_proj",)))
    assert list(adapter.modules) == ["a.q_proj"]
    assert net["a"].q_proj is net["b"].q_proj is net["c"].q_proj is adapter.modules["a.q_proj"]


def test_unmatched_patterns_are_named_with_what_there_is() -> None:
    message = "targets k_proj, 9.* match no linear layer; the model's linear layers are called out, q_proj, v_proj"
    with pytest.raises(AdapterError, match=f"^{re.escape(message)}$"):
        attach_adapter(model(), LoRAConfig(targets=("q_proj", "k_proj", "9.*")))
    with pytest.raises(AdapterError, match="the model has no linear layer"):
        attach_adapter(nn.Sequential(nn.ReLU()), LoRAConfig())


def test_settings_out_of_range_are_all_named_and_the_model_stays_as_it_was() -> None:
    net = model()
    with pytest.raises(AdapterError, match=r"rank is 0.*dropout is 2"):
        attach_adapter(net, LoRAConfig(rank=0, dropout=2.0))
    assert all(p.requires_grad for p in net.parameters())


def test_a_second_adapter_is_refused() -> None:
    net = model()
    attach_adapter(net, LoRAConfig(rank=2, targets=("q_proj",)))
    with pytest.raises(AdapterError, match="has an adapter already; merge it first"):
        attach_adapter(net, LoRAConfig(rank=2, targets=("v_proj",)))


def test_linears_with_a_forward_of_their_own_are_no_targets() -> None:
    class Quantised(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.round())

    class Renamed(nn.Linear):
        pass

    net = nn.ModuleDict({"q": Quantised(4, 4), "r": Renamed(4, 4), "m": nn.MultiheadAttention(4, 1)})
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("*",)))
    assert list(adapter.modules) == ["r"]


def test_penalty_is_the_mean_over_layers_and_its_gradient_has_the_weight_over_the_number_of_layers() -> None:
    net = model()
    config = MonteCLoRAConfig(rank=2, targets=("q_proj", "v_proj"), kl_weight=0.1)
    adapter = attach_adapter(net, config)
    assert adapter.penalty().item() == 0
    adapter.set_penalty_weight(3.0)
    torch.manual_seed(0)
    net(torch.randn(5, 8)).sum().backward()
    layers = [m for m in adapter.modules.values() if isinstance(m, MonteCLoRALinear)]
    values = [variational_penalty(layer.last_draw, config) for layer in layers if layer.last_draw is not None]
    assert len(values) == 4
    torch.testing.assert_close(adapter.penalty(), torch.stack(values).mean())
    assert not adapter.penalty().requires_grad
    # B is 0, so the loss gives t no gradient and all of it is the penalty's: 3 / 4 of d penalty / d t.
    layer = layers[0]
    found = layer.log_concentration.grad
    layer.log_concentration.grad = None
    layer.penalty_weight.value = 1.0
    torch.manual_seed(0)
    net(torch.randn(5, 8)).sum().backward()
    assert found is not None
    torch.testing.assert_close(found, 0.75 * layer.log_concentration.grad)


def test_layers_that_did_not_run_count_as_zero() -> None:
    net = model()
    config = MonteCLoRAConfig(rank=2, targets=("q_proj",))
    adapter = attach_adapter(net, config)
    net[0].q_proj(torch.randn(2, 8))
    draw = adapter.modules["0.q_proj"].last_draw
    torch.testing.assert_close(adapter.penalty(), variational_penalty(draw, config) / 2)


def test_training_moves_the_adapter_and_nothing_else() -> None:
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    adapter = attach_adapter(net, MonteCLoRAConfig(rank=2, targets=("q_proj", "v_proj")))
    adapter.set_penalty_weight(1.0)
    first = {name: p.detach().clone() for name, p in adapter.parameters().items()}
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=1e-2, weight_decay=0.0)
    x, y = torch.randn(16, 8), torch.randn(16, 8)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, first[name]) for name, p in adapter.parameters().items())
    for name, value in before.items():
        module, _, own = name.rpartition(".")
        now = net.get_submodule(module)
        now = now.base if isinstance(now, LoRALinear) else now
        assert torch.equal(now.get_parameter(own), value)
