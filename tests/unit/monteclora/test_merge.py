"""Adapters in and out of the weights: exact to rounding, plain models after merging, adapted ones after unmerging."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from monteclora import Adapter, LoRAConfig, MonteCLoRAConfig, attach_adapter, merge_adapter, unmerge_adapter
from monteclora.errors import AdapterError
from monteclora.merge import merged_weight
from monteclora.posterior import BlockPosterior
from tests.unit.monteclora.models import IDS, llama, logits, roberta, trained

LORA = LoRAConfig(rank=3, alpha=7.0, dropout=0.1, rank_pattern={"q_proj": 2})
MONTECLORA = MonteCLoRAConfig(rank=3, alpha=7.0, noise_scale=0.01)
CLASSIFIER = MonteCLoRAConfig(rank=2, targets=("query", "value", "dense"), modules_to_save=("classifier",))
CASES = [(llama, LORA), (llama, MONTECLORA), (roberta, CLASSIFIER)]
IN_WORDS = ["lora", "monteclora", "classifier"]


def half(maker: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: maker().bfloat16()


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of `dtype` at the size of each value (at least that of 2^-20)."""
    exponent = torch.frexp(value.double().abs().clamp(min=2.0**-20)).exponent - 1
    return torch.finfo(dtype).eps * torch.exp2(exponent.double())


class TestMerging:
    @pytest.mark.parametrize(("maker", "config"), CASES, ids=IN_WORDS)
    def test_the_model_is_plain_and_gives_the_same_logits(
        self, maker: Callable[[], nn.Module], config: LoRAConfig
    ) -> None:
        model, adapter = trained(maker, config)
        wanted = logits(model)
        merge_adapter(model)
        torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(wanted, logits(maker()), atol=1e-2)
        plain = maker()
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == set(adapter.saved)
        model.train()(IDS).logits.sum().isfinite()
        with pytest.raises(AdapterError, match="no adapter to merge; attach or load one first"):
            merge_adapter(model)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_the_sum_is_rounded_once(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8, bias=False)).to(dtype)
        layer = attach_adapter(net, LoRAConfig(rank=2, alpha=3.0, targets=("0",))).layers["0"]
        nn.init.normal_(layer.lora_B)
        exact = layer.weight.double() + 1.5 * layer.lora_B.double() @ layer.lora_A.double()
        merge_adapter(net)
        error = (net[0].weight.double() - exact).abs()
        # Half an ulp of the sum, and what fp32 arithmetic adds before it is rounded.
        slack = 4 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        assert (error <= 0.5 * ulp(exact, dtype) + slack).all()
        assert net[0].weight.dtype == dtype

    def test_an_adapter_in_fp32_beside_half_precision(self) -> None:
        model, adapter = trained(half(llama), LORA, dtype=torch.float32)
        name, layer = next(iter(adapter.layers.items()))
        wanted = (layer.weight.float() + layer.update()).bfloat16()
        merge_adapter(model)
        assert torch.equal(model.get_submodule(name).weight, wanted)

    def test_a_layer_shared_by_two_parents_is_merged_once(self) -> None:
        net, adapter = shared()
        x = torch.randn(2, 4)
        wanted = net["b"](x)
        merge_adapter(net)
        torch.testing.assert_close(net["b"](x), wanted)
        assert net["a"] is net["b"]
        unmerge_adapter(net, adapter)
        assert net["a"] is net["b"] is adapter.layers["a"]
        torch.testing.assert_close(net["a"](x), wanted)

    @pytest.mark.parametrize(("maker", "config"), [CASES[1], CASES[2]], ids=IN_WORDS[1:])
    def test_transformers_loads_what_was_merged(
        self, maker: Callable[[], nn.Module], config: LoRAConfig, tmp_path: Path
    ) -> None:
        model, _ = trained(maker, config)
        merge_adapter(model)
        model.save_pretrained(tmp_path)
        auto = AutoModelForCausalLM if maker is llama else AutoModelForSequenceClassification
        loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert torch.equal(logits(loaded.eval()), logits(model))
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]

    def test_sharded_weights_are_not_merged(self) -> None:
        model, adapter = trained(llama, MONTECLORA)
        *_, (name, last) = adapter.layers.items()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        weight = last.weight.data
        last.weight.data = torch.empty(0)
        with pytest.raises(AdapterError, match=f"{name} is sharded .* gather the full weights first"):
            merge_adapter(model)
        last.weight.data = weight
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "nothing was merged"

    def test_a_tied_weight_is_not_merged(self) -> None:
        model, _ = trained(lambda: llama(tied=True), LoRAConfig(rank=2, targets=("q_proj", "lm_head")))
        wanted = logits(model)
        with pytest.raises(
            AdapterError, match=r"lm_head shares its weight with model.embed_tokens, which merging would"
        ):
            merge_adapter(model)
        assert torch.equal(logits(model), wanted)
        untouched, _ = trained(lambda: llama(tied=True), LORA)
        merge_adapter(untouched)


class TestUnmerging:
    @pytest.mark.parametrize(("maker", "config"), CASES, ids=IN_WORDS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_weights_come_back_to_rounding(
        self, maker: Callable[[], nn.Module], config: LoRAConfig, dtype: torch.dtype
    ) -> None:
        model, adapter = trained(lambda: maker().to(dtype), config, dtype=torch.float32)
        before = {name: layer.weight.clone() for name, layer in adapter.layers.items()}
        merge_adapter(model)
        merged = {name: model.get_submodule(name).weight.clone() for name in before}
        unmerge_adapter(model, adapter)
        for name, layer in adapter.layers.items():
            assert model.get_submodule(name) is layer
            error = (layer.weight.double() - before[name].double()).abs()
            size = torch.maximum(merged[name].abs(), before[name].abs())
            assert (error <= ulp(size, dtype)).all()
        merge_adapter(model)
        for name, value in merged.items():
            again = model.get_submodule(name).weight
            assert ((again.double() - value.double()).abs() <= ulp(value, dtype)).all()

    @pytest.mark.parametrize(("maker", "config"), CASES, ids=IN_WORDS)
    def test_the_adapter_is_back_and_trains(self, maker: Callable[[], nn.Module], config: LoRAConfig) -> None:
        model, adapter = trained(maker, config)
        wanted, names = logits(model), [name for name, _ in model.named_parameters()]
        merge_adapter(model)
        unmerge_adapter(model, adapter)
        torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
        assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
        model.train()
        torch.manual_seed(1)
        first = model(IDS).logits
        first.square().sum().backward()
        assert all(p.grad is not None for p in adapter.named_parameters().values())
        assert adapter.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert not isinstance(config, MonteCLoRAConfig) or len(adapter.posteriors) == 2

    def test_it_takes_over_the_mode_of_the_model(self) -> None:
        model, adapter = trained(llama, MONTECLORA)
        merge_adapter(model)
        model.train()
        unmerge_adapter(model, adapter)
        assert all(module.training for module in model.modules())
        assert any(isinstance(module, BlockPosterior) for module in model.modules())

    def test_copies_of_both_can_be_unmerged(self) -> None:
        model, adapter = trained(llama, LORA)
        wanted = logits(model)
        merge_adapter(model)
        twin, its_adapter = copy.deepcopy((model, adapter))
        unmerge_adapter(twin, its_adapter)
        torch.testing.assert_close(logits(twin), wanted, rtol=1e-5, atol=1e-5)

    def test_only_the_merged_model_is_unmerged(self) -> None:
        model, adapter = trained(llama, LORA)
        with pytest.raises(AdapterError, match=r"q_proj has an adapter; only a model that merge_adapter has changed"):
            unmerge_adapter(model, adapter)
        merge_adapter(model)
        other = llama()
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(
            AdapterError, match=r"no layer of the model holds the weight that model.layers.0.* merged into"
        ):
            unmerge_adapter(other, adapter)
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
        unmerge_adapter(model, adapter)

    def test_sharded_weights_are_not_unmerged(self) -> None:
        model, adapter = trained(llama, LORA)
        merge_adapter(model)
        *_, last = adapter.layers.values()
        last.weight.data = torch.empty(0)
        with pytest.raises(AdapterError, match=r"is sharded .* gather the full weights first"):
            unmerge_adapter(model, adapter)


def test_merged_weight_in_half_precision_is_rounded_from_fp32() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(5, 4).bfloat16(), torch.randn(2, 4).bfloat16(), torch.randn(5, 2).bfloat16()
    exact = weight.double() - 0.7 * (b.double() @ a.double())
    torch.testing.assert_close(merged_weight(weight, a, b, -0.7), exact.bfloat16(), rtol=0, atol=0)


def shared() -> tuple[nn.ModuleDict, Adapter]:
    linear = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": linear, "b": linear})
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("a", "b")))
    nn.init.normal_(adapter.layers["a"].lora_B)
    return net, adapter
