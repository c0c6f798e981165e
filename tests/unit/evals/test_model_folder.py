"""What is found in folders of models, adapters and runs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from evals import model_folder
from evals.errors import EvalError
from evals.model_folder import find_model, load_model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning about a name that transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def tiny() -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=64, **size))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A LoRA adapter with a B that is not zero."""
    peft = pytest.importorskip("peft")
    with quiet_peft():
        model = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    return tmp_path / "adapter"


def test_a_model_folder(base: Path) -> None:
    found = find_model(base)
    assert (found.model, found.adapter, found.max_positions) == (base, None, 64)
    assert not load_model(found, "cpu", torch.float32).training


def test_a_runs_folder_is_its_export(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(EvalError, match=f"the run has no export/ yet; .*training.checkpoint export {run}"):
        find_model(run)
    base.rename(run / "export")
    assert find_model(run).model == run / "export"


def test_an_adapter_is_merged_into_its_base(adapter: Path, base: Path) -> None:
    import peft

    found = find_model(adapter)
    assert (found.folder, found.model, found.adapter) == (adapter, base, adapter)
    ids = torch.arange(1, 9)[None]
    with quiet_peft():
        reference = peft.PeftModel.from_pretrained(tiny(), str(adapter)).eval()
    with torch.no_grad():
        merged = load_model(found, "cpu", torch.float32)(input_ids=ids).logits
        assert torch.allclose(merged, reference(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(merged, tiny()(input_ids=ids).logits, atol=1e-3)


def test_an_adapter_whose_base_moved(adapter: Path, base: Path, tmp_path: Path) -> None:
    base.rename(tmp_path / "moved")
    with pytest.raises(EvalError, match=r"an adapter of '.*base', which is not a model folder here; name its base"):
        find_model(adapter)
    assert find_model(adapter, tmp_path / "moved").model == tmp_path / "moved"


def test_an_adapter_without_peft(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_model(adapter)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvalError, match=r"`pip install peft`, or merge it with `python -m training.checkpoint export"):
        load_model(found, "cpu", torch.float32)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"no readable config.json there .*; give a Hugging Face model folder"):
        find_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EvalError, match="cannot be loaded as a causal language model on cpu"):
        load_model(find_model(tmp_path), "cpu", torch.float32)
    assert find_model(tmp_path).max_positions is None


def test_the_identity_is_the_contents(base: Path, adapter: Path, tmp_path: Path) -> None:
    first = find_model(base).identity()
    assert first == find_model(base).identity() != find_model(adapter).identity()
    shutil.copytree(base, tmp_path / "copy", copy_function=shutil.copyfile)
    stamp = (base / "model.safetensors").stat().st_mtime_ns + 1_000_000
    os.utime(tmp_path / "copy" / "model.safetensors", ns=(stamp, stamp))
    (tmp_path / "copy" / "README.md").write_text("a copy")
    assert find_model(tmp_path / "copy").identity() == first
    config = json.loads((base / "config.json").read_text()) | {"rope_theta": 7.0}
    (base / "config.json").write_text(json.dumps(config))
    assert find_model(base).identity() != first
    (base / "more.safetensors").symlink_to(base / "more.safetensors")
    with pytest.raises(EvalError, match=r"more\.safetensors: cannot be read \(Too many levels of symbolic links\)"):
        find_model(base).identity()


def test_any_other_weight_is_another_identity(base: Path) -> None:
    known = {find_model(base).identity()}
    weights = load_file(base / "model.safetensors")
    for name, weight in weights.items():
        for changed in (weight.clone().index_fill_(0, torch.tensor([len(weight) - 1]), 9.0), weight[None]):
            save_file(weights | {name: changed}, base / "model.safetensors", {"format": "pt"})
            known.add(find_model(base).identity())
    assert len(known) == 1 + 2 * len(weights)


@given(size=st.integers(0, 8 * 2**20) | st.integers(2**28, 2**35))
def test_pieces_are_spread_over_a_whole_file(size: int) -> None:
    starts = model_folder._piece_starts(size)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert starts[0] == 0
    assert starts[-1] + model_folder.PIECE_BYTES >= size
    assert all(0 < gap <= (2**16 if size <= 2**22 else max(size // 63, 2**24 + 2**18)) for gap in gaps)
    assert len(starts) <= max(64, size // 2**24)


def test_a_large_file_is_read_in_pieces(base: Path) -> None:
    path = base / "model.safetensors"
    with open(path, "r+b") as file:
        file.truncate(2**24)
    first = find_model(base).identity()
    start = model_folder._piece_starts(2**24)[10]
    for offset, is_read in ((start - 1, False), (start, True), (start + 2**16 - 1, True), (start + 2**16, False)):
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"x")
        assert (find_model(base).identity() != first) == is_read
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"\0")
    assert find_model(base).identity() == first


def test_a_config_that_is_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(EvalError, match=r"no readable config.json there .*; give a Hugging Face model folder"):
        find_model(tmp_path)


@pytest.mark.parametrize("named", [5, "x" * 5000, "a\0b", ["a"]])
def test_an_adapter_of_what_is_no_path(tmp_path: Path, named: object) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    with pytest.raises(EvalError, match="which is not a model folder here; name its base with --base"):
        find_model(tmp_path)
