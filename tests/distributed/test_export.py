"""Exports of an adapter under ZeRO-3, every parameter partitioned, and a new run that starts from one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from monteclora import load_peft
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.dist,
    # transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SETTINGS = [
    "--adapter.kind", "monteclora", "--adapter.modules_to_save", "lm_head", "--train.precision", "fp32",
]  # fmt: skip


def export_and_start_again(recipe: str, folder: str) -> dict[str, Any]:
    """Train two steps, export both ways, put the exported adapter on a fresh sharded base (on every rank)."""
    import deepspeed

    from data_pipeline import load_tokenizer
    from monteclora import attach_adapter
    from monteclora.errors import AdapterError
    from monteclora.peft_format import load_weights
    from tests.distributed.scenarios import CPU_JSON, Run, start
    from training.ds_json import read_ds_config
    from training.engine import Engine, complete_ds_config
    from training.export import export, export_merged
    from training.model import build_model

    world = start()
    run = Run(recipe, [*SETTINGS, "--run.dir", folder], world, 0)
    run.train(0, 2)
    config = run.config
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.tokenizer_engine)
    merged = export_merged(run.engine, tokenizer, config)
    if world.rank == 0:
        shutil.copytree(merged, Path(folder) / "merged")
    adapter_folder = export(run.engine, tokenizer, config)
    trained = dict(run.engine.full_parameters(sorted(run.engine.names)))

    def gather(parameter: Tensor) -> Any:
        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)

    ds_json, _ = read_ds_config(CPU_JSON)
    ds_json["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ds_config = complete_ds_config(ds_json, config, world)
    model = build_model(config.model, precision="fp32", ds_config=ds_config, seed=1)
    adapter_config = config.adapter.build()
    assert adapter_config is not None
    adapter = attach_adapter(model, adapter_config, seed=1)
    is_sharded = all(layer.weight.numel() == 0 for layer in adapter.modules.values())
    refusals = []
    for fingerprint in (None, "0" * 64):
        try:
            load_weights(adapter, adapter_folder, fingerprint, gather=gather if fingerprint else None)
        except AdapterError as error:
            refusals.append(str(error))
    load_weights(adapter, adapter_folder, gather=gather)
    again = Engine(model, adapter, config, ds_config, world)
    started = dict(again.full_parameters(sorted(again.names)))
    differ = [name for name, value in trained.items() if value is not None and not torch.equal(value, started[name])]  # type: ignore[arg-type]
    return {"is_sharded": is_sharded, "differ": differ, "refusals": refusals, "num": len(trained)}


@pytest.fixture(scope="module")
def found(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("export") / "run"
    first, second = run_ranks(
        "tests.distributed.test_export:export_and_start_again", 2, recipe=str(tiny_recipe), folder=str(folder)
    )
    assert first == second
    return folder, first


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(torch.tensor([[1, 5, 9, 2, 30, 7]])).logits
    return result


def test_peft_transformers_and_we_read_the_same_model(tiny_recipe: Path, found: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = found

    def base() -> nn.Module:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_recipe.parent / "base")
        return model

    ours = base()
    load_peft(ours, folder / "export")
    wanted = logits(ours)
    assert not torch.allclose(wanted, logits(base()), atol=1e-3), "it was trained"
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base(), str(folder / "export"))), wanted, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(folder / "merged")), wanted, rtol=1e-5, atol=1e-5
    )
    written = json.loads((folder / "export" / "palimpsest.json").read_text())
    assert len(written["base_fingerprint"]) == 64
    assert written == json.loads((folder / "merged" / "adapter" / "palimpsest.json").read_text())


def test_a_run_starts_from_it_beside_a_sharded_base(found: tuple[Path, dict[str, Any]]) -> None:
    _, result = found
    assert result["is_sharded"]
    sharded, other = result["refusals"]
    assert "lm_head.weight is sharded and cannot be set" in sharded
    assert "trained on another base" in other
    assert result["differ"] == []
    assert result["num"] == 2 * 7 * 2 + 2 * 2 + 1
