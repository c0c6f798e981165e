"""What is left for other software, written from an engine that hands out whole weights one by one."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from monteclora import Adapter, LoRAConfig, MonteCLoRAConfig, attach_adapter, load_peft, merge_adapter
from monteclora.errors import AdapterError
from training.config import ArchitectureConfig
from training.export import export, export_merged
from training.model.build import random_model

# transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.tensor([[1, 5, 9, 2]])
CONFIGS = {
    "lora": LoRAConfig(rank=2, rank_pattern={"q_proj": 3}),
    "monteclora": MonteCLoRAConfig(rank=2),
    "head in full": LoRAConfig(rank=2, modules_to_save=("lm_head", "*norm")),
}


class OneRank:
    """The part of an engine that an export uses: parameters are whole only when it hands them out, on rank 0."""

    def __init__(self, model: nn.Module, adapter: Adapter | None, *, rank: int = 0) -> None:
        self.model, self.adapter, self.world = model, adapter, SimpleNamespace(rank=rank)
        self.yielded: list[str] = []
        self.values = {name: p.data for name, p in model.named_parameters()}
        for p in model.parameters():
            p.data = torch.empty(0, dtype=p.dtype)

    def full_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor | None]]:
        for name, value in self.values.items():
            if names is None or name in names:
                self.yielded.append(name)
                yield name, value.clone() if self.world.rank == 0 else None

    def barrier(self) -> None:
        pass


def base(*, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    shape = ArchitectureConfig(
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        vocab_size=32,
        tie_embeddings=tied,
    )
    return random_model(shape, dtype=torch.float32, seed=seed).eval()


def trained(config: LoRAConfig, *, tied: bool = False) -> tuple[LlamaForCausalLM, Adapter]:
    model = base(tied=tied)
    adapter = attach_adapter(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model, adapter


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Configuration and tokenizer of a run."""
    (tmp_path / "tokenizer.model").write_bytes(b"tokens")
    return SimpleNamespace(
        config=SimpleNamespace(run=SimpleNamespace(dir=tmp_path / "run"), model=SimpleNamespace(base="some/base")),
        tokenizer=SimpleNamespace(files=[tmp_path / "tokenizer.model"]),
    )


def written(how: Any, engine: OneRank, run: Any) -> Path:
    folder: Path = how(engine, run.tokenizer, run.config)
    assert folder == run.config.run.dir / "export"
    assert (folder / "tokenizer.model").read_bytes() == b"tokens"
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_is_written_for_peft_and_for_us(kind: str, run: Any) -> None:
    model, adapter = trained(CONFIGS[kind])
    wanted = logits(model)
    engine = OneRank(model, adapter)
    folder = written(export, engine, run)
    theirs = PeftModel.from_pretrained(base(), str(folder)).eval()
    torch.testing.assert_close(logits(theirs), wanted, rtol=1e-5, atol=1e-5)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "some/base"
    assert settings["task_type"] == "CAUSAL_LM"
    ours = base()
    load_peft(ours, folder)
    assert torch.equal(logits(ours), wanted)
    with pytest.raises(AdapterError, match="another base"):
        load_peft(base(seed=1), folder)
    assert len(engine.yielded) == len(set(engine.yielded)), "each is gathered once"
    assert set(engine.yielded) == {*adapter.named_parameters(), *(f"{name}.weight" for name in adapter.layers)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merged_model_is_what_merging_gives(kind: str, run: Any) -> None:
    model, adapter = trained(CONFIGS[kind])
    reference, _ = trained(CONFIGS[kind])
    merge_adapter(reference)
    engine = OneRank(model, adapter)
    folder = written(export_merged, engine, run)
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = reference.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    ours = base()
    load_peft(ours, folder / "adapter")
    torch.testing.assert_close(logits(ours), logits(reference), rtol=1e-5, atol=1e-5)
    assert engine.yielded == list(engine.values), "each is gathered once"
    assert all(p.numel() == 0 for p in model.parameters()), "the live model is as it was"


def test_a_full_model_is_written_for_transformers(run: Any) -> None:
    model = base()
    wanted = logits(model)
    folder = written(export, OneRank(model, None), run)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder).eval()), wanted)


@pytest.mark.parametrize("how", [export, export_merged])
def test_the_other_ranks_gather_and_write_nothing(how: Any, run: Any) -> None:
    model, adapter = trained(CONFIGS["lora"])
    engine, first = OneRank(model, adapter, rank=1), OneRank(*trained(CONFIGS["lora"]))
    how(engine, run.tokenizer, run.config)
    assert not run.config.run.dir.exists()
    how(first, run.tokenizer, run.config)
    assert engine.yielded == first.yielded, "a collective, in the same order on all ranks"


@pytest.mark.parametrize("how", [export, export_merged])
def test_others_may_read_all_of_it(how: Any, run: Any) -> None:
    folder = written(how, OneRank(*trained(CONFIGS["lora"])), run)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json"}
    (folder / "new").touch()
    assert {path.stat().st_mode for path in files} == {(folder / "new").stat().st_mode}


def test_an_older_export_is_replaced(run: Any) -> None:
    old = run.config.run.dir / "export"
    (old / "adapter").mkdir(parents=True)
    (old / "left.safetensors").touch()
    (run.config.run.dir / ".export.unfinished").mkdir()
    folder = written(export, OneRank(*trained(CONFIGS["lora"])), run)
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "palimpsest.json", "tokenizer.model",
    }  # fmt: skip


@pytest.mark.parametrize("in_full", [(), ("lm_head",)])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_tied_weights(in_full: tuple[str, ...], run: Any) -> None:
    config = LoRAConfig(rank=2, modules_to_save=in_full)
    model, adapter = trained(config, tied=True)
    wanted = logits(model)
    engine = OneRank(model, adapter)
    folder = written(export, engine, run)
    theirs = PeftModel.from_pretrained(base(tied=True), str(folder)).eval()
    torch.testing.assert_close(logits(theirs), wanted, rtol=1e-5, atol=1e-5)
    folder = written(export_merged, engine, run)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-5, atol=1e-5)


def test_an_adapted_tied_weight_is_exported_but_not_merged(run: Any) -> None:
    model, adapter = trained(LoRAConfig(rank=2, targets=("lm_head",)), tied=True)
    wanted = logits(model)
    engine = OneRank(model, adapter)
    folder = written(export, engine, run)
    ours = base(tied=True)
    load_peft(ours, folder)
    assert torch.equal(logits(ours), wanted)
    with pytest.raises(AdapterError, match=r"lm_head shares its weight with model.embed_tokens"):
        export_merged(engine, run.tokenizer, run.config)
