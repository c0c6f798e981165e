"""Loading a base on several ranks: bit for bit what transformers loads, in bounded memory, each byte read once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.distributed.loading_scenarios import plain_losses
from tests.ranks import run_ranks
from tests.unit.training.minimal import write_weights
from training.config import llama_shape
from training.model.build import folder_fingerprint
from training.model.loading import READ_BYTES

pytestmark = pytest.mark.dist

MIB = 2**20


def save(folder: Path, **values: Any) -> str:
    """A LLaMA with odd sizes, grouped queries and several shard files."""
    sizes = {
        "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 51, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **values}))
    with torch.no_grad():
        for parameter in model.parameters():
            # Values that bf16 has to round, norms and biases included.
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="16KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return str(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "untied": save(folder / "untied", tie_word_embeddings=False),
        "tied": save(folder / "tied", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_is_what_transformers_loads(bases: dict[str, str], tmp_path: Path, world_size: int) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(Path(bases["untied"]) / "config.json", pickled)
    state = LlamaForCausalLM.from_pretrained(bases["untied"]).state_dict()
    names = sorted(state)
    for number, part in enumerate((names[:9], names[9:])):
        torch.save({name: state[name] for name in part}, pickled / f"pytorch_model-{number}.bin")
    # What only the last rank sees damaged.
    copy = tmp_path / "copy"
    shutil.copytree(bases["untied"], copy)
    file = sorted(copy.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-4])
    damaged = [*[bases["untied"]] * (world_size - 1), str(copy)]

    found = run_ranks(
        "tests.distributed.loading_scenarios:load", world_size, bases=bases, pickled=str(pickled), damaged=damaged
    )

    for rank in found:
        assert rank["wrong"] == {name: [] for name in rank["wrong"]}
        assert len(rank["wrong"]) == 2 * 2 * 2 + 1
        assert rank["tied"] == {"untied": False, "tied": True}
        who = "" if world_size == 1 else "rank 1: "
        assert rank["refused"].startswith(f'{who}model.base = "{copy}": ')
        assert f"{file.name} is cut off" in rank["refused"]
        assert rank["fingerprint"] == folder_fingerprint(bases["untied"])
        for losses in rank["losses"]:
            assert losses == pytest.approx(plain_losses(bases["untied"]), rel=1e-5)
        assert len(rank["losses"]) == world_size, "without hpZ, and on two ranks with it"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_and_every_byte_is_read_once(bases: dict[str, str], tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8, vocab_size=24000,
        tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    shape = llama_shape(str(tmp_path))
    assert shape is not None
    file = tmp_path / "model.safetensors"
    write_weights(file, shape.tensors())
    size = file.stat().st_size
    assert size > 190 * MIB

    found = run_ranks("tests.distributed.loading_scenarios:measure", 2, small=bases["untied"], base=str(tmp_path))

    for rank in found:
        share = rank["elements"]  # bytes of a half in bf16
        assert share < rank["growth"] < share + READ_BYTES + 16 * MIB, found
    assert size < sum(rank["read"] for rank in found) < size + 2 * MIB
