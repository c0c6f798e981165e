"""From a LoRA to its posterior: a run starts from what another one exported, with all that an adapter run can switch on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.test_launchers import MAIN, arguments, deepspeed, metrics, run

pytestmark = pytest.mark.dist

LORA = ("--adapter.kind", "lora", "--adapter.rank_pattern", '{"*.mlp.*" = 8}', "--adapter.loraplus_ratio", "4")
POSTHOC = (
    "--adapter.kind", "monteclora", "--adapter.rank_pattern", '{"*.mlp.*" = 8}', "--adapter.posthoc", "true",
    "--model.activation_checkpointing", "full", "--hidden_key.enabled", "true", "--eval.posterior_samples", "2",
    "--checkpoint.export_merged", "true",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    done = run(deepspeed(MAIN, *arguments(tiny_recipe, folder / "lora", *LORA)), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def post_hoc(runs: Path, recipe: Path, name: str = "posthoc", *more: str) -> Any:
    start = ("--adapter.init_from", str(runs / "lora" / "export"))
    return run(deepspeed(MAIN, *arguments(recipe, runs / name, *POSTHOC, *start, *more)), cwd=runs)


@pytest.fixture(scope="module")
def trained(tiny_recipe: Path, runs: Path) -> Path:
    done = post_hoc(runs, tiny_recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "posthoc"


def test_a_posterior_around_a_trained_lora(runs: Path, trained: Path) -> None:
    before, after = runs / "lora", trained

    record = json.loads((after / "run.json").read_text())
    assert record["config"]["adapter"]["init_from"] == str(before / "export")
    assert record["config"]["hidden_key"]["enabled"] is True
    assert len(record["init_fingerprint"]) == 64
    assert json.loads((before / "run.json").read_text())["init_fingerprint"] is None
    lines = metrics(after)
    assert all(line["penalty"] is not None and line["compensation"] is not None for line in lines)
    assert all(line["penalty"] is line["compensation"] is None for line in metrics(before))

    # Nothing but the posterior has trained: A and B are those of the LoRA, and so is what its mean predicts.
    saved, started = (load_file(folder / "adapter_model.safetensors") for folder in
                      (after / "export" / "adapter", before / "export"))  # fmt: skip
    assert saved.keys() == started.keys()
    assert all(torch.equal(value, started[name]) for name, value in saved.items())
    assert load_file(after / "export" / "adapter" / "variational.safetensors")
    assert load_file(after / "export" / "model.safetensors")
    first, last = (json.loads((after / "evals" / f"{step}.json").read_text())["tasks"] for step in (0, 6))
    lora = json.loads((before / "evals" / "6.json").read_text())["tasks"]
    for task, result in last.items():
        assert result["score"] == first[task]["score"] == pytest.approx(lora[task]["score"], abs=1e-6)
        assert result["posterior"]["samples"] == 2


def test_another_adapter_to_start_with_is_another_run(tiny_recipe: Path, runs: Path, trained: Path) -> None:
    weights, record = runs / "lora" / "export" / "adapter_model.safetensors", trained / "run.json"
    values, was = load_file(weights), record.read_text()
    record.write_text(json.dumps({**json.loads(was), "status": "preempted"}))
    try:
        save_file({name: value + 1 for name, value in values.items()}, weights, metadata={"format": "pt"})
        done = post_hoc(runs, tiny_recipe)
    finally:
        save_file(values, weights, metadata={"format": "pt"})
        record.write_text(was)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "was started with an adapter to start with (adapter.init_from) of other content than now" in done.stderr


def test_an_adapter_of_other_ranks_is_refused(tiny_recipe: Path, runs: Path) -> None:
    done = post_hoc(runs, tiny_recipe, "wrong", "--adapter.rank_pattern", '{"*.mlp.*" = 7}')
    assert done.returncode == 2, done.stdout + done.stderr
    assert "lora_A" in done.stderr
    assert not (runs / "wrong" / "run.json").exists()
