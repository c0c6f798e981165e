"""The README names files, commands and settings that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.recipe import all_paths

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))


def test_files_exist() -> None:
    named = set(re.findall(r"(?:recipes|ds_configs|slurm|training|docs)/[\w./]+\.(?:toml|json|sh|py|png)", README))
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_settings_exist() -> None:
    named = set(re.findall(r"--((?:run|model|adapter|hidden_key|data|train|optim|checkpoint|eval)\.[\w.]+)", BLOCKS))
    assert named
    assert named - set(all_paths()) <= set(re.findall(r"--([\w.]+) \(command line\): unknown", BLOCKS))


@pytest.mark.parametrize("module", ["launch", "data_pipeline", "evals"])
def test_subcommands_exist(module: str) -> None:
    named = set(re.findall(rf"python -m {module} (\w+)", README))
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert named
    assert [name for name in named if name not in done.stdout] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)`", text))
    assert len(named) >= 5
    assert named <= targets


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    ids = torch.randint(0, 64, (2, 16))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"model": model, "batches": [{"input_ids": ids, "labels": ids}] * 2}
    exec(code, names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    certain: Any = names["certain"]
    assert certain.log_mean.shape == (2, 16, 64)
    assert (certain.mutual_information >= 0).all()
