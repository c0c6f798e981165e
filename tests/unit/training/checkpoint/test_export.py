"""Exports from checkpoints against those that a run writes itself at its end, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_pipeline import load_tokenizer
from monteclora import Adapter, attach_adapter
from tests.ranks import ROOT
from tests.unit.training.checkpoint.stored import store
from tests.unit.training.test_export import OneRank
from training.checkpoint.__main__ import main
from training.config import Config, to_dict
from training.export import export, export_merged
from training.model.build import DTYPES, folder_fingerprint, random_model
from training.model.loading import load_base, replicated
from training.recipe import load_config

pytestmark = [
    # transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

LORA = ("--adapter.kind", "lora", "--adapter.rank_pattern", '{"*.q_proj" = 3}')
MONTECLORA = ("--adapter.kind", "monteclora")
IN_FULL = ("--adapter.modules_to_save", "lm_head,*norm")
MERGED = ("--checkpoint.export_merged", "true")
BF16 = ("--train.precision", "bf16")
REPLICATED = ("--train.placement", "replicated")
DRAWN = (
    "--model.base", "none", "--model.architecture.hidden_size", "16", "--model.architecture.num_heads", "2",
    "--model.architecture.num_kv_heads", "1", "--model.architecture.intermediate_size", "24",
)  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    "full": (),
    "full bf16": BF16,
    "full without base": (*DRAWN, "--model.architecture.tie_embeddings", "false"),
    "full without base, tied, bf16": (*DRAWN, *BF16),
    "lora": LORA,
    "lora bf16": (*LORA, *BF16, *IN_FULL),
    "lora bf16 replicated": (*LORA, *BF16, *IN_FULL, *REPLICATED),
    "monteclora bf16": (*MONTECLORA, *BF16),
    "lora merged": (*LORA, *MERGED),
    "monteclora merged bf16": (*MONTECLORA, *MERGED, *BF16, *IN_FULL),
    "lora merged bf16 replicated": (*LORA, *MERGED, *BF16, *REPLICATED),
    "lora tied": (*LORA, "--adapter.modules_to_save", "lm_head", "tied"),
    "lora merged tied": (*LORA, *MERGED, "--adapter.modules_to_save", "lm_head", "tied"),
    "full tied": ("tied",),
}


@dataclass
class Run:
    """A run that has trained: its configuration, the live model, and a checkpoint."""

    config: Config
    model: Any
    adapter: Adapter | None
    checkpoint: Path

    def own_export(self) -> Path:
        """What it writes at its end."""
        tokenizer = load_tokenizer(self.config.data.tokenizer)
        write: Any = export_merged if self.config.checkpoint.export_merged else export
        path: Path = write(OneRank(self.model, self.adapter), tokenizer, self.config)
        return path


def make_run(recipe: Path, folder: Path, overrides: Sequence[str] = (), *, world_size: int = 1) -> Run:
    """A run whose fp32 masters are anything, and whose live parameters are those in its precision."""
    overrides = list(overrides)
    if "tied" in overrides:
        overrides.remove("tied")
        shape = LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=512, max_position_embeddings=256, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(folder / "tied")
        overrides += ["--model.base", str(folder / "tied")]
    config = load_config(recipe, [*overrides, "--run.dir", str(folder / "run")])
    dtype = DTYPES[config.train.precision]
    if config.model.base is None:
        model: Any = random_model(config.model.architecture, dtype=dtype, seed=1)
    else:
        place = replicated(dtype, torch.device("cpu"))
        model = load_base(config.model, dtype=dtype, place=place, device=torch.device("cpu"), attention="sdpa")
    chosen = config.adapter.build()
    is_sharded = config.train.placement != "replicated"
    adapter = attach_adapter(model, chosen, dtype=dtype if is_sharded else None) if chosen else None
    generator = torch.Generator().manual_seed(2)
    masters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            masters[name] = parameter.detach().float() + 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data = masters[name].to(parameter.dtype)
    checkpoint = store(
        config.run.dir / "checkpoints", 7, masters, world_size=world_size, states=("exp_avg", "exp_avg_sq"),
        config=to_dict(config), placement=config.train.placement,
        fingerprints={
            "base": folder_fingerprint(config.model.base),
            "tokenizer": load_tokenizer(config.data.tokenizer).fingerprint,
        },
    )  # fmt: skip
    return Run(config=config, model=model, adapter=adapter, checkpoint=checkpoint)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(torch.tensor([[1, 5, 9, 2, 30, 7]])).logits.float()
    return result


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_files_are_those_of_the_runs_own_export(
    tiny_recipe: Path, tmp_path: Path, case: str, world_size: int
) -> None:
    run = make_run(tiny_recipe, tmp_path, CASES[case], world_size=world_size)
    assert main(["export", str(run.config.run.dir)]) == 0
    wanted = contents(run.own_export())
    found = contents(run.config.run.dir / "export-7")
    # The run's own merged export has the adapter beside it.
    wanted = {name: content for name, content in wanted.items() if not name.startswith("adapter/")}
    assert found.keys() == wanted.keys()
    assert [name for name, content in found.items() if content != wanted[name]] == []


@pytest.mark.parametrize("case", ["full", "lora", "lora merged tied", "full without base", "monteclora merged bf16"])
def test_transformers_and_peft_compute_what_the_live_model_does(tiny_recipe: Path, tmp_path: Path, case: str) -> None:
    run = make_run(tiny_recipe, tmp_path, CASES[case], world_size=2)
    wanted = logits(run.model)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["export", str(run.checkpoint), "--out", str(out), "--max-shard-size", "40KB"]) == 0
    if (out / "adapter_config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(run.config.model.base)
        torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(out))), wanted, rtol=1e-5, atol=1e-5)
        return
    assert (out / "model.safetensors.index.json").is_file()
    loaded, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    if run.adapter is None:
        assert torch.equal(logits(loaded), wanted)
    else:
        tolerance = 1e-5 if run.config.train.precision == "fp32" else 0.1
        torch.testing.assert_close(logits(loaded), wanted, rtol=tolerance, atol=tolerance)
