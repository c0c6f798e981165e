"""Files that PEFT itself reads and writes, our own round trip, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from monteclora import (
    Adapter,
    LoRAConfig,
    MonteCLoRAConfig,
    attach_adapter,
    load_peft,
    merge_adapter,
    save_peft,
    unmerge_adapter,
)
from monteclora.errors import AdapterError
from monteclora.fingerprint import adapter_fingerprint
from monteclora.peft_format import load_weights
from tests.unit.monteclora.models import IDS, llama, logits, roberta, trained

# transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = LoRAConfig(rank=3, alpha=7.0, dropout=0.1)
MONTECLORA = MonteCLoRAConfig(
    rank=3,
    alpha=7.0,
    num_samples=2,
    noise_scale=0.01,
    estimator="sampled",
    start_step=5,
    posthoc=True,
    coop_lr_ratio=5.0,
)
HEAD = {"targets": ("query", "value", "dense"), "modules_to_save": ("classifier",)}
CASES = {
    "lora": (llama, LORA),
    "monteclora": (llama, MONTECLORA),
    "wildcards": (llama, LoRAConfig(rank=3, targets=("[qk]_proj", "model.layers.1.mlp.*"), loraplus_ratio=16.0)),
    "rank by kind": (llama, LoRAConfig(rank=3, rank_pattern={"?_proj": 2, "down*": 4}, alpha_pattern={"q_proj": 0.5})),
    "rank by layer": (
        llama,
        LoRAConfig(
            rank=3, rank_pattern={"model.layers.1.*": 5, "up_proj": 2}, alpha_pattern={"model.layers.0.mlp.*": 9.0}
        ),
    ),
    "rslora": (llama, LoRAConfig(rank=4, alpha=6.0, rslora=True, rank_pattern={"model.layers.0.*": 2})),
    "embeddings": (llama, LoRAConfig(rank=3, modules_to_save=("embed_tokens", "*norm", "lm_head"))),
    "classifier": (roberta, LoRAConfig(rank=3, **HEAD)),
    "classifier without its head": (roberta, LoRAConfig(rank=3, targets=("query",))),
    "bayesian classifier": (roberta, MonteCLoRAConfig(rank=2, num_samples=3, rank_pattern={"query": 4}, **HEAD)),
}
TASKS = {"classifier": "SEQ_CLS", "bayesian classifier": "SEQ_CLS", "classifier without its head": None}


@pytest.mark.parametrize("case", CASES)
def test_peft_reads_it_to_the_same_logits(case: str, tmp_path: Path) -> None:
    maker, config = CASES[case]
    model, adapter = trained(maker, config)
    save_peft(adapter, tmp_path, "some/base")
    theirs = PeftModel.from_pretrained(maker(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), logits(maker()), atol=1e-2)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "some/base"
    assert written["task_type"] == TASKS.get(case, "CAUSAL_LM")
    assert (tmp_path / "variational.safetensors").exists() is isinstance(config, MonteCLoRAConfig)
    assert not list(tmp_path.glob("*.tmp"))


def test_peft_reads_it_without_knowing_the_task(tmp_path: Path) -> None:
    model, adapter = trained(*CASES["classifier"])
    save_peft(adapter, tmp_path)
    theirs = PeftModel.from_pretrained(roberta(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_restores_everything(case: str, tmp_path: Path) -> None:
    maker, config = CASES[case]
    model, adapter = trained(maker, config)
    save_peft(adapter, tmp_path)
    again = maker()
    loaded = load_peft(again, tmp_path)
    wanted, got = adapter.named_parameters(), loaded.named_parameters()
    assert set(wanted) == set(got)
    assert all(torch.equal(wanted[name], got[name]) and got[name].requires_grad for name in wanted)
    assert torch.equal(logits(again), logits(model))
    assert loaded.num_trainable == adapter.num_trainable
    assert loaded.config == config
    assert type(loaded.config) is type(config)
    assert not any(p.requires_grad for name, p in again.named_parameters() if name not in got)


def test_nothing_on_disk_depends_on_blocks(tmp_path: Path) -> None:
    _, adapter = trained(*CASES["bayesian classifier"])
    save_peft(adapter, tmp_path)
    on_disk = load_file(tmp_path / "variational.safetensors")
    sizes = {
        f"{name}.{own}": size
        for name in adapter.layers
        for own, size in (("log_std", 4 if name.endswith("query") else 2), ("log_concentration", 3))
    }
    assert {name: value.numel() for name, value in on_disk.items()} == sizes
    query = "roberta.encoder.layer.0.attention.self.query"
    assert next(iter(adapter.layers)) == query
    posterior = next(iter(adapter.posteriors.values()))
    assert torch.equal(on_disk[f"{query}.log_std"], posterior.log_std[:4])


def test_the_dtype_of_the_adapter_can_be_chosen(tmp_path: Path) -> None:
    _, adapter = trained(llama, LORA)
    save_peft(adapter, tmp_path)
    loaded = load_peft(llama().bfloat16(), tmp_path, dtype=torch.float32)
    assert all(torch.equal(p, adapter.named_parameters()[name]) for name, p in loaded.named_parameters().items())


@pytest.mark.parametrize(
    "theirs",
    [
        {"r": 2, "lora_alpha": 5, "target_modules": r".*layers\.0\..*_proj"},
        {"r": 2, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"^model.*down_proj": 3}},
        {"r": 3, "target_modules": ["k_proj"], "rank_pattern": {r"layers\.1\..*": 5, r"^model\.layers\.0.*": 2}, "use_rslora": True},
        {"r": 2, "target_modules": "all-linear", "modules_to_save": ["embed_tokens", "model.norm"], "task_type": "CAUSAL_LM"},
        {"r": 2, "target_modules": ["up_proj"], "layers_to_transform": [1], "lora_dropout": 0.25},
        {"r": 2, "target_modules": ["q_proj", "o_proj"], "init_lora_weights": "orthogonal", "exclude_modules": ["q_proj"]},
    ],
    ids=["regex", "patterns", "rslora", "in full", "some blocks", "excluded"],
)  # fmt: skip
def test_an_adapter_made_by_peft_is_read(theirs: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = get_peft_model(llama(), LoraConfig(**{"init_lora_weights": False} | theirs)).eval()
    change(made)
    made.save_pretrained(str(tmp_path))
    ours = llama()
    adapter = load_peft(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(made), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours), logits(llama()), atol=1e-3)
    assert adapter.config.dropout == theirs.get("lora_dropout", 0.0)
    assert len(adapter.saved) == len(theirs.get("modules_to_save", []))


def test_a_classifier_made_by_peft_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS", init_lora_weights=False)
    made = get_peft_model(roberta(), config).eval()
    change(made)
    made.save_pretrained(str(tmp_path))
    ours = roberta()
    adapter = load_peft(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(made), rtol=1e-5, atol=1e-5)
    # PEFT's own list has `score` too, which no RoBERTa has.
    assert adapter.config.modules_to_save == ("classifier",)
    assert adapter.config.targets == ("query", "dense") or set(adapter.config.targets) == {"query", "dense"}
    assert len(adapter.saved) == 4
    again = tmp_path / "again"
    save_peft(adapter, again)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(roberta(), str(again)).eval()), logits(made), rtol=1e-5, atol=1e-5
    )


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name or ".lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)


def test_auto_classes_find_the_base(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    model, adapter = trained(llama, LORA)
    save_peft(adapter, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


class TestTied:
    """One weight as both embedding and output projection."""

    @pytest.mark.parametrize("saved", [("embed_tokens",), ("lm_head",), ("lm_head", "embed_tokens")])
    def test_it_is_saved_for_both(self, saved: tuple[str, ...], tmp_path: Path) -> None:
        def tied() -> nn.Module:
            return llama(tied=True)

        config = LoRAConfig(rank=2, modules_to_save=saved)
        model, adapter = trained(tied, config)
        save_peft(adapter, tmp_path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
            theirs = PeftModel.from_pretrained(tied(), str(tmp_path)).eval()
        torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
        again, fresh = tied(), tied()
        load_peft(again, tmp_path)
        load_weights(attach_adapter(fresh, config), tmp_path)
        assert torch.equal(logits(again), logits(model))
        assert torch.equal(logits(fresh), logits(model))

    def test_weights_that_peft_has_untied_are_refused(self, tmp_path: Path) -> None:
        model, adapter = trained(llama, LoRAConfig(rank=2, modules_to_save=("lm_head",)))
        save_peft(adapter, tmp_path)
        (tmp_path / "palimpsest.json").unlink()
        with pytest.raises(
            AdapterError,
            match=r"holds model.embed_tokens.weight but not|holds lm_head.weight but not model.embed_tokens.weight",
        ):
            load_peft(llama(tied=True), tmp_path)
        again = llama()
        load_peft(again, tmp_path)
        assert torch.equal(logits(again), logits(model))

    def test_other_values_under_its_other_name_are_refused(self, tmp_path: Path) -> None:
        def tied() -> nn.Module:
            return llama(tied=True)

        config = LoRAConfig(rank=2, modules_to_save=("embed_tokens", "lm_head"))
        _, adapter = trained(tied, config)
        save_peft(adapter, tmp_path)
        edit_tensors(tmp_path, lambda tensors: tensors["base_model.model.lm_head.weight"].add_(1))
        message = (
            r"^.* holds other values for lm_head.weight than for model.embed_tokens.weight, which this model ties to "
            r"it; give the model a weight for each before loading$"
        )
        with pytest.raises(AdapterError, match=message):
            load_peft(tied(), tmp_path)
        with pytest.raises(AdapterError, match=message):
            load_weights(attach_adapter(tied(), config), tmp_path)

    def test_equal_values_alone_do_not_make_a_copy(self, tmp_path: Path) -> None:
        config = LoRAConfig(rank=2, modules_to_save=("embed_tokens",))
        _, adapter = trained(lambda: llama(tied=True), config)
        save_peft(adapter, tmp_path)
        message = "1 tensors are not part of the adapter, first lm_head.weight"
        with pytest.raises(AdapterError, match=message):
            load_peft(llama(), tmp_path, check_base=False)
        with pytest.raises(AdapterError, match=message):
            load_weights(attach_adapter(llama(), config), tmp_path, check_base=False)


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")


def test_a_shared_layer_is_adapted_in_both_places(tmp_path: Path) -> None:
    def shared() -> nn.ModuleDict:
        torch.manual_seed(0)
        linear = nn.Linear(4, 4)
        return nn.ModuleDict({"a": linear, "b": linear})

    net = shared()
    adapter = attach_adapter(net, LoRAConfig(rank=2, targets=("a", "b")))
    nn.init.normal_(adapter.layers["a"].lora_B)
    save_peft(adapter, tmp_path)
    again = shared()
    load_peft(again, tmp_path)
    assert again["a"] is again["b"]
    x = torch.randn(2, 4)
    assert torch.equal(again["b"](x), net["b"](x))


class TestSharded:
    """Tensors that hold nothing here, as under ZeRO-3."""

    def test_tensors_of_the_caller_are_saved(self, tmp_path: Path) -> None:
        _, adapter = trained(llama, MONTECLORA)
        full = {name: torch.full_like(p, 0.5) for name, p in adapter.named_parameters().items()}
        for parameter in adapter.named_parameters().values():
            parameter.data = torch.empty(0)
        with pytest.raises(AdapterError, match=r"32 tensors hold nothing, first model\..*gather the full values"):
            save_peft(adapter, tmp_path)
        save_peft(adapter, tmp_path, tensors=full)
        assert all((value == 0.5).all() for value in load_peft(llama(), tmp_path).named_parameters().values())
        name = next(iter(full))
        del full[name]
        with pytest.raises(AdapterError, match=f"1 adapter tensors are missing, first {name}"):
            save_peft(adapter, tmp_path, tensors=full)
        with pytest.raises(AdapterError, match="1 tensors are not part of the adapter, first other"):
            save_peft(adapter, tmp_path, tensors={**adapter.named_parameters(), "other": torch.zeros(1)})

    def test_a_base_without_values_has_no_fingerprint_unless_given(self, tmp_path: Path) -> None:
        _, adapter = trained(llama, LORA)
        wanted = adapter_fingerprint(adapter)
        for layer in adapter.layers.values():
            layer.weight.data = torch.empty(0)
        save_peft(adapter, tmp_path)
        assert json.loads((tmp_path / "palimpsest.json").read_text())["base_fingerprint"] is None
        load_peft(llama(seed=1), tmp_path)
        save_peft(adapter, tmp_path, base_fingerprint=wanted)
        load_peft(llama(), tmp_path)
        with pytest.raises(AdapterError, match="another base"):
            load_peft(llama(seed=1), tmp_path)

    def test_weights_are_loaded_beside_a_sharded_base(self, tmp_path: Path) -> None:
        config = LoRAConfig(rank=3, modules_to_save=("lm_head",))
        model, adapter = trained(llama, config)
        save_peft(adapter, tmp_path)
        wanted = logits(model)
        base = llama()
        fresh = attach_adapter(base, config, seed=9)
        held: dict[int, torch.Tensor] = {}
        for parameter in (*(layer.weight for layer in fresh.layers.values()), *fresh.saved.values()):
            held[id(parameter)], parameter.ds_shape = parameter.data, parameter.shape
            parameter.data = torch.empty(0)

        @contextlib.contextmanager
        def gather(parameter: torch.Tensor) -> Iterator[None]:
            parameter.data = held[id(parameter)]
            yield
            held[id(parameter)] = parameter.data
            parameter.data = torch.empty(0)

        with pytest.raises(AdapterError, match=r"lm_head.weight is sharded and cannot be set; .*`gather`"):
            load_weights(fresh, tmp_path)
        with pytest.raises(AdapterError, match="another base"):
            load_weights(fresh, tmp_path, "0" * 64, gather=gather)
        load_weights(fresh, tmp_path, gather=gather)
        for parameter in base.parameters():
            parameter.data = held.get(id(parameter), parameter.data)
        assert torch.equal(logits(base), wanted)
        with torch.no_grad():
            held[id(next(iter(fresh.layers.values())).weight)].zero_()
        with pytest.raises(AdapterError, match="another base"):
            load_weights(fresh, tmp_path, gather=gather)

    def test_a_sharded_adapter_cannot_be_set(self, tmp_path: Path) -> None:
        _, adapter = trained(llama, LORA)
        save_peft(adapter, tmp_path)
        name, parameter = next(iter(adapter.named_parameters().items()))
        parameter.data = torch.empty(0)
        with pytest.raises(AdapterError, match=rf"{name} is sharded and cannot be set; load weights before"):
            load_weights(adapter, tmp_path)


class TestLoadWeights:
    @pytest.mark.parametrize(("saved", "attached"), [(LORA, LORA), (MONTECLORA, MONTECLORA), (MONTECLORA, LORA)])
    def test_what_both_have_is_set(self, saved: LoRAConfig, attached: LoRAConfig, tmp_path: Path) -> None:
        model, adapter = trained(llama, saved)
        save_peft(adapter, tmp_path)
        again = llama()
        fresh = attach_adapter(again, attached, seed=11)
        load_weights(fresh, tmp_path)
        assert torch.equal(logits(again), logits(model))
        wanted = adapter.named_parameters()
        assert all(torch.equal(p, wanted[name]) for name, p in fresh.named_parameters().items())

    def test_a_bayesian_run_starts_from_a_lora(self, tmp_path: Path) -> None:
        model, adapter = trained(llama, LORA)
        save_peft(adapter, tmp_path)
        again = llama()
        fresh = attach_adapter(again, MONTECLORA, seed=11)
        untouched = {
            name: p.clone()
            for name, p in fresh.named_parameters().items()
            if name.startswith("log_", name.rfind(".") + 1)
        }
        load_weights(fresh, tmp_path)
        assert torch.equal(logits(again), logits(model))
        assert len(untouched) == 4
        assert all(torch.equal(fresh.named_parameters()[name], value) for name, value in untouched.items())

    def test_an_adapter_of_peft_is_a_start_too(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        made = get_peft_model(
            llama(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
        )
        made.eval().save_pretrained(str(tmp_path))
        ours = llama()
        load_weights(attach_adapter(ours, MonteCLoRAConfig(rank=2, targets=("q_proj",))), tmp_path)
        torch.testing.assert_close(logits(ours), logits(made), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("attached", "message"),
        [
            ({"rank": 4}, r"q_proj.lora_A in .* has shape \[3, 16\], here it needs \[4, 16\]; give the new adapter"),
            ({"alpha": 3.0}, r"q_proj in .* is scaled by 2.33333, in this adapter by 1, .*set alpha"),
            ({"rslora": True}, r"is scaled by 2.33333, in this adapter by 4.04145, .*rslora"),
            ({"targets": ("q_proj",)}, r"24 tensors are not part of the adapter, first model.layers.0.mlp"),
            ({"targets": ("*_proj", "lm_head")}, r"2 tensors of the adapter are missing, first lm_head.lora_A; give"),
            ({"modules_to_save": ("lm_head",)}, r"1 tensors of the adapter are missing, first lm_head.weight"),
        ],
    )
    def test_another_adapter_is_refused(self, attached: dict[str, Any], message: str, tmp_path: Path) -> None:
        _, adapter = trained(llama, LORA)
        save_peft(adapter, tmp_path)
        fresh = attach_adapter(llama(), LoRAConfig(**{"rank": 3, "alpha": 7.0} | attached))
        before = {name: p.clone() for name, p in fresh.named_parameters().items()}
        with pytest.raises(AdapterError, match=message):
            load_weights(fresh, tmp_path)
        assert all(torch.equal(p, before[name]) for name, p in fresh.named_parameters().items())

    def test_another_number_of_gaussians_is_refused(self, tmp_path: Path) -> None:
        save_peft(trained(llama, MONTECLORA)[1], tmp_path)
        fresh = attach_adapter(llama(), MonteCLoRAConfig(rank=3, alpha=7.0, num_samples=5))
        with pytest.raises(AdapterError, match=r"log_concentration in .* has shape \[2\], here it needs \[5\]"):
            load_weights(fresh, tmp_path)

    def test_another_base_is_refused(self, tmp_path: Path) -> None:
        save_peft(trained(llama, LORA)[1], tmp_path)
        fresh = attach_adapter(llama(seed=1), LORA)
        with pytest.raises(AdapterError, match="another base"):
            load_weights(fresh, tmp_path)
        load_weights(fresh, tmp_path, check_base=False)


class TestBase:
    def test_another_base_of_the_same_shape_is_refused(self, tmp_path: Path) -> None:
        _, adapter = trained(llama, LORA)
        save_peft(adapter, tmp_path)
        other = llama(seed=1)
        before = copy.deepcopy(other.state_dict())
        ours, theirs = (
            str(adapter_fingerprint(adapter))[:12],
            str(adapter_fingerprint(attach_adapter(llama(seed=1), LORA)))[:12],
        )
        with pytest.raises(
            AdapterError,
            match=rf"palimpsest.json: .* fingerprint {ours}, where this one has {theirs}; load the model .* check_base=False",
        ):
            load_peft(other, tmp_path)
        after = other.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        load_peft(other, tmp_path, check_base=False)

    def test_a_merged_base_is_another(self, tmp_path: Path) -> None:
        model, adapter = trained(llama, LORA)
        save_peft(adapter, tmp_path)
        merge_adapter(model)
        with pytest.raises(AdapterError, match="nothing merged into it"):
            load_peft(model, tmp_path)

    def test_its_precision_does_not_matter(self, tmp_path: Path) -> None:
        save_peft(trained(llama, LORA)[1], tmp_path)
        load_peft(llama().bfloat16(), tmp_path)
        save_peft(trained(lambda: llama().bfloat16(), LORA)[1], tmp_path)
        load_peft(llama(), tmp_path)


def test_saving_a_lora_over_a_monteclora_leaves_nothing_of_it(tmp_path: Path) -> None:
    save_peft(trained(llama, MONTECLORA)[1], tmp_path)
    save_peft(trained(llama, LORA)[1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "palimpsest.json",
    ]
    assert type(load_peft(llama(), tmp_path).config) is LoRAConfig


def test_without_our_file_the_lora_is_read(tmp_path: Path) -> None:
    model, adapter = trained(llama, MONTECLORA)
    save_peft(adapter, tmp_path)
    (tmp_path / "palimpsest.json").unlink()
    again = llama()
    assert type(load_peft(again, tmp_path).config) is LoRAConfig
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_peft(trained(llama, LORA)[1], tmp_path)
    with pytest.raises(
        AdapterError, match="which is not a linear layer of this model; load the model it was trained on"
    ):
        load_peft(nn.Sequential(nn.Linear(2, 2)), tmp_path)


def test_a_model_that_has_an_adapter_is_refused(tmp_path: Path) -> None:
    model, adapter = trained(llama, LORA)
    save_peft(adapter, tmp_path)
    before = logits(model)
    with pytest.raises(
        AdapterError,
        match=r"^the model has an adapter already; merge it first \(merge_adapter\), or start from the base$",
    ):
        load_peft(model, tmp_path)
    assert torch.equal(logits(model), before)


def test_a_loaded_adapter_goes_on_training(tmp_path: Path) -> None:
    save_peft(trained(llama, MonteCLoRAConfig(rank=3))[1], tmp_path)
    model = llama()
    adapter: Adapter = load_peft(model, tmp_path)
    adapter.set_penalty_weight(1.0)
    twin = copy.deepcopy(model)
    model.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.named_parameters().values())
    assert adapter.penalty() > 0
    assert logits(twin).isfinite().all()


def test_a_merged_adapter_is_not_saved(tmp_path: Path) -> None:
    model, adapter = trained(llama, LORA)
    merge_adapter(model)
    with pytest.raises(
        AdapterError, match=r"^the adapter is merged into its model, .*; do this before merging, or unmer"
    ):
        save_peft(adapter, tmp_path)
    unmerge_adapter(model, adapter)
    save_peft(adapter, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
