"""The rank of the weight change from checkpoints, against the values that were put into them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.unit.training.checkpoint.stored import store
from tests.unit.training.checkpoint.test_export import (
    BF16,
    DRAWN,
    IN_FULL,
    LORA,
    MONTECLORA,
    REPLICATED,
    Run,
    flip_last_bit,
    make_run,
    masters_of,
)
from training.checkpoint.__main__ import main
from training.checkpoint.manifest import read_manifest

Captured = pytest.CaptureFixture[str]


def base_of(run: Run) -> dict[str, Tensor]:
    """The base's tensors, in the run's precision."""
    stored = load_file(Path(str(run.config.model.base)) / "model.safetensors")
    is_half = run.config.train.precision == "bf16"
    return {name: (value.bfloat16() if is_half else value).double() for name, value in stored.items()}


def document_of(run: Run, step: int = 7) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.config.run.dir / "weights" / f"rank-{step}.json").read_text())
    return content


def rows_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["rows"]}


def k_of(matrix: Tensor, share: float = 0.9) -> int:
    squares = np.square(np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    return int(np.searchsorted(np.cumsum(squares), share * squares.sum()) + 1)


def add_checkpoint(run: Run, step: int, masters: Mapping[str, Tensor], **more: Any) -> Path:
    of_run = {key: read_manifest(run.checkpoint).manifest[key] for key in ("config", "fingerprints", "placement")}
    return store(run.checkpoint.parent, step, masters, **(of_run | more))


@pytest.mark.parametrize("settings", [(), BF16, (*BF16, *REPLICATED)], ids=["fp32", "bf16", "replicated"])
def test_full_finetuning(tiny_recipe: Path, tmp_path: Path, settings: tuple[str, ...], capsys: Captured) -> None:
    run = make_run(tiny_recipe, tmp_path, settings, world_size=2)
    assert main(["rank", str(run.config.run.dir)]) == 0
    document, base = document_of(run), base_of(run)
    masters = live_masters(run)
    assert (document["step"], document["share"]) == (7, 0.9)
    assert (document["before"], document["after"]) == (run.config.model.base, str(run.checkpoint))
    assert document["modules"][:4] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert document["notes"] == []
    rows = rows_of(document)
    assert len(rows) == sum(value.dim() == 2 for value in masters.values())
    for name, master in masters.items():
        if master.dim() != 2:
            continue
        row, before = rows[name.removeprefix("model.")], base[name]
        change = master.double() - before
        assert row["rank"] == {"before": k_of(before), "after": k_of(master), "change": k_of(change)}
        assert row["norm"]["change"] == pytest.approx(float(change.norm()), rel=1e-5)
    told = capsys.readouterr()
    assert "rank of the change: k for 90 % of its squared spectrum" in told.out
    assert told.out.splitlines()[-1] == f"written: {run.config.run.dir}/weights/rank-7.json"
    assert f"reading {run.config.model.base} to see that it is the base of the run" in told.err


def live_masters(run: Run) -> dict[str, Tensor]:
    """The masters of `make_run`: the base as the run has it, and noise."""
    generator = torch.Generator().manual_seed(2)
    masters = {}
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            start = base_of(run)[name].float()
            masters[name] = start + 0.1 * torch.randn(parameter.shape, generator=generator)
    return masters


@pytest.mark.parametrize(
    "settings", [LORA, (*LORA, *BF16, *IN_FULL), (*MONTECLORA, *BF16), (*LORA, "--adapter.modules_to_save", "lm_head", "tied")],
    ids=["lora", "lora bf16 in full", "monteclora bf16", "tied"],
)  # fmt: skip
def test_adapters(tiny_recipe: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    run = make_run(tiny_recipe, tmp_path, settings)
    assert run.adapter is not None
    assert main(["rank", str(run.config.run.dir)]) == 0
    document, masters, base = document_of(run), masters_of(run), base_of(run)
    rows = rows_of(document)
    adapted = {f"{name}.weight" for name in run.adapter.layers}
    for name, layer in run.adapter.layers.items():
        A, B = masters[f"{name}.lora_A"].double(), masters[f"{name}.lora_B"].double()
        row = rows[f"{name}.weight".removeprefix("model.")]
        change = layer.scaling * B @ A
        assert row["at_most"] == min(layer.rank, *change.shape) == row["numerical_rank"]["change"]
        assert row["rank"]["change"] == k_of(change) <= layer.rank
        assert row["rank"]["after"] == k_of(base[f"{name}.weight"] + change)
        assert row["relative_change"] == pytest.approx(float(change.norm() / base[f"{name}.weight"].norm()), rel=1e-5)
    in_full = {name for name in masters if name in base and base[name].dim() == 2}
    assert bool(in_full) == ("--adapter.modules_to_save" in settings)
    for name in in_full:
        row = rows[name.removeprefix("model.")]
        assert row["at_most"] is None
        assert row["rank"]["change"] == k_of(masters[name].double() - base[name])
    others = rows.keys() - {name.removeprefix("model.") for name in adapted | in_full}
    assert all(rows[name]["at_most"] == 0 and rows[name]["is_unchanged"] for name in others)
    assert document["left_out"]["tied"] == ("tied" in settings)


def test_all_checkpoints_of_a_run(tiny_recipe: Path, tmp_path: Path, capsys: Captured) -> None:
    run = make_run(tiny_recipe, tmp_path)
    masters = masters_of(run)
    add_checkpoint(run, 9, {name: value + 0.1 for name, value in masters.items()})
    diverged = {name: value.clone() for name, value in masters.items()}
    diverged["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    add_checkpoint(run, 11, diverged)
    flip_last_bit(next(add_checkpoint(run, 13, masters).glob("*.safetensors")))
    add_checkpoint(run, 15, masters)
    assert main(["rank", str(run.config.run.dir)]) == 2
    told = capsys.readouterr()
    found = run.config.run.dir / "weights"
    assert {path.name for path in found.glob("*.json")} == {"rank-7.json", "rank-9.json", "rank-15.json"}
    assert [line.partition(":")[0] for line in told.out.splitlines() if line.startswith("step")] == [
        "step 7",
        "step 9",
        "step 15",
    ]
    assert "11: layers.0.mlp.up_proj.weight has values that are infinite or no numbers" in told.err
    assert "damaged: " in told.err
    assert document_of(run, 7)["rank"] == document_of(run, 15)["rank"] != document_of(run, 9)["rank"]
    assert told.err.count("to see that it is the base") == 1
    # Only the newest of these is looked at.
    for file in found.iterdir():
        file.unlink()
    assert main(["rank", str(run.config.run.dir), "--step", "13"]) == 1
    assert main(["rank", str(run.checkpoint.parent / "9"), "--share", "0.5"]) == 0
    assert [path.name for path in found.iterdir()] == ["rank-9.json"]
    assert document_of(run, 9)["share"] == 0.5


class TestAgainst:
    def test_runs_without_a_base(self, tiny_recipe: Path, tmp_path: Path, capsys: Captured) -> None:
        run = make_run(tiny_recipe, tmp_path, DRAWN)
        masters = masters_of(run)
        low_rank = {name: value.clone() for name, value in masters.items()}
        low_rank["model.layers.1.mlp.up_proj.weight"] += torch.outer(torch.arange(24.0), torch.ones(16))
        add_checkpoint(run, 9, low_rank)
        assert main(["rank", str(run.config.run.dir)]) == 2
        assert (
            "its run began with weights that it drew, not with a base; say with --against STEP"
            in capsys.readouterr().err
        )
        assert main(["rank", str(run.config.run.dir), "--against", "7"]) == 0
        document = document_of(run, 9)
        assert (document["before"], document["after"]) == (str(run.checkpoint), str(run.checkpoint.with_name("9")))
        (changed,) = [row for row in document["rows"] if not row["is_unchanged"]]
        assert (changed["name"], changed["rank"]["change"]) == ("layers.1.mlp.up_proj.weight", 1)
        assert not (run.config.run.dir / "weights" / "rank-7.json").exists()

    def test_adapters_differ_by_factors(self, tiny_recipe: Path, tmp_path: Path) -> None:
        run = make_run(tiny_recipe, tmp_path, LORA)
        masters = masters_of(run)
        add_checkpoint(run, 9, {name: 2 * value if "lora_B" in name else value for name, value in masters.items()})
        assert main(["rank", str(run.config.run.dir), "--against", "7", "--only-change"]) == 0
        rows = rows_of(document_of(run, 9))
        row = rows["layers.0.self_attn.q_proj.weight"]
        assert (row["at_most"], row["numerical_rank"]["change"]) == (6, 3)
        name = "model.layers.0.self_attn.q_proj"
        wanted = 2 * masters[f"{name}.lora_B"] @ masters[f"{name}.lora_A"]
        assert run.adapter is not None
        scaling = run.adapter.layers[name].scaling / 2
        assert row["norm"]["change"] == pytest.approx(scaling * float(wanted.norm()), rel=1e-5)

    def test_refusals(self, tiny_recipe: Path, tmp_path: Path, capsys: Captured) -> None:
        run = make_run(tiny_recipe, tmp_path)
        flip_last_bit(next(add_checkpoint(run, 9, masters_of(run)).glob("*.safetensors")))
        for arguments, error in (
            (["--against", "3"], "has no checkpoint of step 3; those that are there: 7, 9"),
            (["--step", "3"], "has no checkpoint of step 3; those that are there: 7, 9"),
            (["--against", "9"], "error: --against 9: is damaged; name another step"),
            (["--step", "7", "--against", "7"], "there is no checkpoint to compare"),
        ):
            assert main(["rank", str(run.config.run.dir), *arguments]) == 2
            assert error in capsys.readouterr().err


def test_refusals(tiny_recipe: Path, tmp_path: Path, capsys: Captured) -> None:
    run = make_run(tiny_recipe, tmp_path)
    other = Path(shutil.copytree(str(run.config.model.base), tmp_path / "other"))
    flip_last_bit(other / "model.safetensors")
    for arguments, error in (
        (["--share", "2"], "error: share 2: must be between 0 and 1"),
        (["--modules", "nothing"], "error: --modules nothing: fits no matrix; there are q_proj, "),
        (["--device", "abacus"], "error: --device abacus: can't be used here"),
        (["--base", str(other)], f"error: {other}: holds other weights than the run was trained on; say with --base"),
        (["--base", "nowhere"], "nowhere is not there; say with --base where it is now"),
    ):
        assert main(["rank", str(run.checkpoint), *arguments]) == 2
        assert error in capsys.readouterr().err
    assert not (run.config.run.dir / "weights").exists() or not list((run.config.run.dir / "weights").glob("*.json"))
    assert main(["rank", str(tmp_path / "nothing")]) == 2
    assert "no such folder; name a run, or a checkpoint" in capsys.readouterr().err
    drawn = make_run(tiny_recipe, tmp_path / "drawn", DRAWN)
    assert main(["rank", str(drawn.checkpoint), "--base", str(other)]) == 2
    assert "--base: the run had none" in capsys.readouterr().err


def test_it_is_not_measured_twice(tiny_recipe: Path, tmp_path: Path) -> None:
    run = make_run(tiny_recipe, tmp_path, LORA)
    assert main(["rank", str(run.config.run.dir)]) == 0
    file = run.config.run.dir / "weights" / "rank-7.json"
    before = file.stat().st_mtime_ns
    assert main(["rank", str(run.config.run.dir)]) == 0
    assert file.stat().st_mtime_ns == before
    assert main(["rank", str(run.config.run.dir), "--share", "0.8"]) == 0
    assert document_of(run)["share"] == 0.8


def test_help(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rank", "--help"])
    assert caught.value.code == 0
    assert "$ python -m training.checkpoint rank runs/cpt" in capsys.readouterr().out
