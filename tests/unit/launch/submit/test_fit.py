from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from launch.submit.fit import fit_problems
from tests.unit.training.minimal import minimal_config
from training.config import Config

LLAMA_2_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_2_7B = LLAMA_2_70B | {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip


def config(folder: Path, base: dict[str, Any], **train: Any) -> Config:
    found = minimal_config(folder, "--train.global_batch_rows", "64", "--adapter.kind", "none")
    (folder / "base/config.json").write_text(json.dumps(base))
    return dataclasses.replace(found, train=dataclasses.replace(found.train, **train))


def problems(config: Config, gpu: str, nodes: int = 1, gpus: int = 8) -> list[str]:
    return fit_problems(config, Path("recipe.toml"), gpu=gpu, nodes=nodes, gpus=gpus, ds_config=None)


def test_what_fits(tmp_path: Path) -> None:
    assert problems(config(tmp_path, LLAMA_2_7B, placement="zero3", micro_batch_rows=1), "h100") == []


def test_nothing_fits(tmp_path: Path) -> None:
    (problem,) = problems(config(tmp_path, LLAMA_2_70B, placement="zero3", micro_batch_rows=1), "L40S", gpus=1)
    lines = [line.strip() for line in problem.splitlines()]
    assert lines[0] == "--gpu L40S: 1 x 1: Nothing fits. One row per micro-batch and all layers recomputed:"
    assert any(line.startswith("zero3 lacks ") for line in lines)
    assert "What would fit:" in lines
    assert "[bold" not in problem


def test_its_own_placement_does_not(tmp_path: Path) -> None:
    (problem,) = problems(config(tmp_path, LLAMA_2_7B, placement="replicated", micro_batch_rows=2), "L40S")
    assert problem.startswith("--gpu L40S: 1 x 8: train.placement replicated with train.micro_batch_rows 2 lacks ")
    assert "per GPU; take --train.placement zero3" in problem


@pytest.mark.parametrize("gpu", ["H9000", ""])
def test_an_unknown_gpu(tmp_path: Path, gpu: str) -> None:
    (problem,) = problems(config(tmp_path, LLAMA_2_7B), gpu)
    assert problem.startswith(f"--gpu {gpu}: must be one of ")
    assert problem.endswith("; python -m launch plan takes figures of others")


def test_a_base_of_unknown_shape(tmp_path: Path) -> None:
    found = config(tmp_path, LLAMA_2_7B)
    (tmp_path / "base/config.json").unlink()
    (problem,) = problems(found, "H100")
    assert problem.startswith("--gpu H100: whether it fits can't be told: ")
