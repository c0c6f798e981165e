"""Exports of an adapter under ZeRO-3, every parameter partitioned, and a new run that starts from one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from monteclora import load_peft
from tests.ranks import run_ranks
from training.checkpoint.__main__ import main as export_command

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
    from data_pipeline import load_tokenizer
    from monteclora import attach_adapter
    from monteclora.errors import AdapterError
    from monteclora.peft_format import load_weights
    from tests.distributed.scenarios import CPU_JSON, Run, start
    from training import placements
    from training.ds_json import read_ds_config
    from training.engine import Engine
    from training.export import export, export_merged
    from training.model.assembly import Assembly
    from training.model.build import build_model, gathered
    from training.model.initial_adapter import load_adapter
    from training.ranks.distributed import device_of

    world = start()
    run = Run(recipe, [*SETTINGS, "--run.dir", folder], world, 0)
    run.train(0, 2)
    config = run.config
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.tokenizer_engine)
    merged = export_merged(run.engine, tokenizer, config)
    if world.rank == 0:
        shutil.copytree(merged, Path(folder) / "merged")
    adapter_folder = export(run.engine, tokenizer, config)
    trained = dict(run.engine.full_parameters(sorted(run.engine.shapes())))

    ds_json, _ = read_ds_config(CPU_JSON)
    ds_json["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ds_config = placements.prepare(config, ds_json, world)
    model = build_model(
        config.model, placement="zero3", precision="fp32", ds_config=ds_config, seed=1, world=world,
        device=device_of(world),
    )  # fmt: skip
    adapter_config = config.adapter.build()
    assert adapter_config is not None
    adapter = attach_adapter(model, adapter_config, seed=1)
    is_sharded = all(layer.weight.numel() == 0 for layer in adapter.layers.values())
    refusals = []
    for fingerprint in (None, "0" * 64):
        try:
            load_weights(adapter, adapter_folder, fingerprint, gather=gathered if fingerprint else None)
        except AdapterError as error:
            refusals.append(str(error))
    for change in ("damaged", "other"):
        try:
            load_adapter(adapter, changed_on_rank_1(adapter_folder, change, world.rank), world)
        except AdapterError as error:
            refusals.append(str(error))
    load_adapter(adapter, adapter_folder, world)
    assembly = Assembly(model=model, adapter=adapter, hidden_key=None, recomputed_layers=0, kernels="torch")
    again = Engine(assembly, config, ds_config, world)
    started = dict(again.full_parameters(sorted(again.shapes())))
    differ = [name for name, value in trained.items() if value is not None and not torch.equal(value, started[name])]  # type: ignore[arg-type]
    return {"is_sharded": is_sharded, "differ": differ, "refusals": refusals, "num": len(trained)}


def changed_on_rank_1(folder: Path, change: str, rank: int) -> Path:
    """A copy of an adapter's folder that is this rank's own, as on a node's disk."""
    copy = shutil.copytree(folder, folder.with_name(f"{change}-{rank}"))
    path = copy / "adapter_model.safetensors"
    if rank == 1 and change == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    elif rank == 1:
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    return copy


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
    sharded, other_base, damaged, other_weights = result["refusals"]
    assert "lm_head.weight is sharded and cannot be set" in sharded
    assert "trained on another base" in other_base
    # Told on both ranks, though rank 0 has found nothing wrong.
    assert damaged.startswith(f"rank 1: {found[0]}/damaged-1/adapter_model.safetensors is damaged")
    assert other_weights == (
        f"rank 1: {found[0]}/other-1 holds other weights here than on rank 0; copy the same to every node"
    )
    assert result["differ"] == []
    assert result["num"] == 2 * 7 * 2 + 2 * 2 + 1


MERGED = ("--adapter.kind", "lora", "--checkpoint.export_merged", "true", "--train.steps", "2")


def train_and_fail_to_export(recipe: str, folder: str) -> int:
    """Run training/main.py's program, in which the adapter can't be exported."""
    from monteclora.errors import AdapterError
    from tests.distributed.scenarios import CPU_JSON
    from training import export
    from training.main import main

    def refuse(*arguments: Any) -> Path:
        raise AdapterError("it can't be merged")

    export.export_merged = refuse  # type: ignore[assignment]
    return main(["--ds_config", str(CPU_JSON), "--recipe", recipe, *MERGED, "--run.dir", folder])


def test_a_run_whose_export_fails_has_failed(tiny_recipe: Path, tmp_path: Path) -> None:
    function = "tests.distributed.test_export:train_and_fail_to_export"
    assert run_ranks(function, 1, recipe=str(tiny_recipe), folder=str(tmp_path / "run")) == [1]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["step"]) == ("failed", 2)
    assert record["error"] == "AdapterError: it can't be merged"
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def train_on_base(recipe: str, folder: str, base: str) -> int:
    """Run training/main.py's program with an adapter on the output embeddings of another base."""
    from tests.distributed.scenarios import CPU_JSON
    from training.main import main

    more = ("--model.base", base, "--adapter.targets", "lm_head", "--run.dir", folder)
    return main(["--ds_config", str(CPU_JSON), "--recipe", recipe, *MERGED, *more])


def test_a_merge_that_is_not_possible_is_refused_before_training(tiny_recipe: Path, tmp_path: Path) -> None:
    # Another kind of model, of whose shape a configuration knows nothing.
    shape = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    MistralForCausalLM(shape).save_pretrained(tmp_path / "base")
    folders: dict[str, Any] = {"folder": str(tmp_path / "run"), "base": str(tmp_path / "base")}
    assert run_ranks("tests.distributed.test_export:train_on_base", 1, recipe=str(tiny_recipe), **folders) == [2]
    assert not (tmp_path / "run" / "run.json").exists()


def train_to_the_end(recipe: str, folder: str, overrides: list[str]) -> int:
    """Run training/main.py's program for two steps."""
    from tests.distributed.scenarios import CPU_JSON
    from training.main import main

    more = ("--train.steps", "2", "--train.precision", "bf16", "--eval.every_steps", "2", "--run.dir", folder)
    return main(["--ds_config", str(CPU_JSON), "--recipe", recipe, *more, *overrides])


@pytest.mark.parametrize(
    "overrides", [[], [*SETTINGS[:4], "--checkpoint.export_merged", "true"]], ids=["full", "monteclora merged"]
)
def test_its_last_checkpoint_makes_the_same_files(tiny_recipe: Path, tmp_path: Path, overrides: list[str]) -> None:
    run, function = tmp_path / "run", "tests.distributed.test_export:train_to_the_end"
    codes = run_ranks(function, 2, recipe=str(tiny_recipe), folder=str(run), overrides=overrides)
    assert codes == [0, 0]
    exported = {"auto": run / "export", "adapter": run / "export" / "adapter"}
    for name, own in exported.items() if overrides else [("auto", run / "export")]:
        out = tmp_path / name
        assert export_command(["export", str(run), "--format", name, "--out", str(out)]) == 0
        for path in out.iterdir():
            if path.name == "config.json":
                theirs, ours = json.loads((own / path.name).read_text()), json.loads(path.read_text())
                # The live model has no cache of keys and values.
                assert {**theirs, "use_cache": True} == ours
            else:
                wanted = own / path.name if (own / path.name).exists() else run / "export" / path.name
                assert path.read_bytes() == wanted.read_bytes(), path.name
