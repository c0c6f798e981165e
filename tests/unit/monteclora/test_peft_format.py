"""Files that PEFT itself reads, our own round trip, and merging."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from monteclora import Adapter, LoRAConfig, MonteCLoRAConfig, attach_adapter, load_peft, merge_adapter, save_peft
from monteclora.errors import AdapterError

IDS = torch.tensor([[1, 5, 9, 2, 30, 7]])
CONFIGS = {
    "lora": LoRAConfig(rank=3, alpha=7.0, dropout=0.1),
    "monteclora": MonteCLoRAConfig(rank=3, alpha=7.0, num_samples=2, noise_scale=0.01, estimator="sampled"),
    "wildcards": LoRAConfig(rank=3, targets=("[qk]_proj", "model.layers.1.mlp.*")),
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).eval()


def trained(config: LoRAConfig) -> tuple[LlamaForCausalLM, Adapter]:
    model = llama()
    adapter = attach_adapter(model, config, seed=4)
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.3)
    return model, adapter


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


# transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@PEFT_WARNS
@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_reads_it_to_the_same_logits(kind: str, tmp_path: Path) -> None:
    model, adapter = trained(CONFIGS[kind])
    save_peft(adapter, tmp_path, "some/base")
    theirs = PeftModel.from_pretrained(llama(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(model), logits(llama()), atol=1e-3)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert (tmp_path / "monteclora.json").exists() is (kind == "monteclora")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_restores_everything(kind: str, tmp_path: Path) -> None:
    model, adapter = trained(CONFIGS[kind])
    save_peft(adapter, tmp_path)
    again = llama()
    loaded = load_peft(again, tmp_path)
    wanted, got = adapter.parameters(), loaded.parameters()
    assert list(wanted) == list(got) or set(wanted) == set(got)
    assert all(torch.equal(wanted[name], got[name]) and got[name].requires_grad for name in wanted)
    assert torch.equal(logits(again), logits(model))
    assert loaded.num_trainable == adapter.num_trainable
    if kind != "wildcards":
        assert loaded.config == adapter.config
    assert not any(p.requires_grad for name, p in again.named_parameters() if name not in got)


@PEFT_WARNS
def test_an_adapter_made_by_peft_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = get_peft_model(
        llama(), LoraConfig(r=2, lora_alpha=5, target_modules=r".*layers\.0\..*_proj", init_lora_weights=False)
    ).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = llama()
    adapter = load_peft(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)
    assert len(adapter.modules) == 7
    assert adapter.config.scaling == 2.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_model_gives_the_same_logits_and_has_plain_layers(kind: str) -> None:
    model, _ = trained(CONFIGS[kind])
    wanted = logits(model)
    merge_adapter(model)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-6)
    assert model.state_dict().keys() == llama().state_dict().keys()
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    with pytest.raises(AdapterError, match="no adapter to merge"):
        merge_adapter(model)


def test_merging_half_precision_rounds_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False)).bfloat16()
    adapter = attach_adapter(net, LoRAConfig(rank=2, alpha=3.0, targets=("0",)))
    layer = adapter.modules["0"]
    with torch.no_grad():
        layer.lora_B.normal_()
    expected = (layer.base.weight.float() + 1.5 * layer.lora_B.float() @ layer.lora_A.float()).bfloat16()
    merge_adapter(net)
    assert torch.equal(net[0].weight, expected)


def test_a_layer_shared_by_two_parents_is_merged_once() -> None:
    linear = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": linear, "b": linear})
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("a", "b")))
    nn.init.normal_(adapter.modules["a"].lora_B)
    x = torch.randn(2, 4)
    wanted = net["b"](x)
    merge_adapter(net)
    torch.testing.assert_close(net["b"](x), wanted)
    assert net["a"] is net["b"] is linear


def test_tensors_of_the_caller_are_saved(tmp_path: Path) -> None:
    _, adapter = trained(CONFIGS["monteclora"])
    full = {name: torch.full_like(p, 0.5) for name, p in adapter.parameters().items()}
    for parameter in adapter.parameters().values():
        parameter.data = torch.empty(0)
    with pytest.raises(
        AdapterError, match=r"56 tensors hold nothing, first model\.layers\.0\..*gather the full values"
    ):
        save_peft(adapter, tmp_path)
    save_peft(adapter, tmp_path, tensors=full)
    assert all((value == 0.5).all() for value in load_peft(llama(), tmp_path).parameters().values())
    name = next(iter(full))
    del full[name]
    with pytest.raises(AdapterError, match=f"1 adapter tensors are missing, first {name}"):
        save_peft(adapter, tmp_path, tensors=full)
    with pytest.raises(AdapterError, match="1 tensors are not part of the adapter, first other"):
        save_peft(adapter, tmp_path, tensors={**adapter.parameters(), "other": torch.zeros(1)})


def test_saving_a_lora_over_a_monteclora_leaves_nothing_of_it(tmp_path: Path) -> None:
    save_peft(trained(CONFIGS["monteclora"])[1], tmp_path)
    save_peft(trained(CONFIGS["lora"])[1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert type(load_peft(llama(), tmp_path).config) is LoRAConfig


def test_sharded_weights_are_not_merged() -> None:
    model, adapter = trained(CONFIGS["lora"])
    next(iter(adapter.modules.values())).base.weight.data = torch.empty(0)
    with pytest.raises(AdapterError, match=r"q_proj is sharded .* gather the full weights"):
        merge_adapter(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "holds a IA3 adapter; only LORA"),
        ({"use_dora": True}, "sets use_dora to True, which is more than a plain LoRA"),
        ({"use_rslora": True}, "sets use_rslora"),
        ({"rank_pattern": {"q_proj": 1}}, "sets rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"r": None}, "no usable r, lora_alpha, lora_dropout"),
        ({"r": 2}, r"has shape \[3, \d+\], this model needs \[2, "),
    ],
)
def test_other_kinds_of_adapter_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_peft(trained(CONFIGS["lora"])[1], tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        load_peft(llama(), tmp_path)


def test_damaged_directories_are_reported(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing; give the directory"):
        load_peft(llama(), tmp_path)
    save_peft(trained(CONFIGS["monteclora"])[1], tmp_path)

    own = tmp_path / "monteclora.json"
    text = own.read_text()
    own.write_text(json.dumps(json.loads(text) | {"a_later_setting": 1}))
    load_peft(llama(), tmp_path)
    own.write_text(json.dumps(json.loads(text) | {"schema": 99}))
    with pytest.raises(AdapterError, match="has schema 99, this version reads 1"):
        load_peft(llama(), tmp_path)
    own.write_text(json.dumps(json.loads(text) | {"num_samples": 0}))
    with pytest.raises(AdapterError, match="num_samples is 0"):
        load_peft(llama(), tmp_path)
    own.write_text(text[:20])
    with pytest.raises(AdapterError, match="is not JSON"):
        load_peft(llama(), tmp_path)
    own.write_text("[]")
    with pytest.raises(AdapterError, match="holds no JSON object"):
        load_peft(llama(), tmp_path)
    own.write_text(text)

    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({"base_model.model.lm_head.weight": torch.zeros(1), **tensors}, weights)
    with pytest.raises(AdapterError, match=r"holds base_model.model.lm_head.weight, which is not part of a LoRA"):
        load_peft(llama(), tmp_path)
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    with pytest.raises(AdapterError, match="1 adapter tensors are missing"):
        load_peft(llama(), tmp_path)
    weights.write_bytes(b"half a fi")
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is damaged"):
        load_peft(llama(), tmp_path)
    weights.unlink()
    with pytest.raises(AdapterError, match="is missing; save the adapter again, in safetensors format"):
        load_peft(llama(), tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_peft(trained(CONFIGS["lora"])[1], tmp_path)
    with pytest.raises(
        AdapterError, match="which is not a linear layer of this model; load the model it was trained on"
    ):
        load_peft(nn.Sequential(nn.Linear(2, 2)), tmp_path)


def test_a_loaded_adapter_goes_on_training(tmp_path: Path) -> None:
    save_peft(trained(CONFIGS["monteclora"])[1], tmp_path)
    model = llama()
    adapter = load_peft(model, tmp_path)
    adapter.set_penalty_weight(1.0)
    twin = copy.deepcopy(model)
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters().values())
    assert adapter.penalty() > 0
    assert logits(twin).isfinite().all()
