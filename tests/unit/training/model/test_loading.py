from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from training.config import ModelConfig
from training.errors import ModelError
from training.model import loading
from training.model.loading import Pickled, Safetensors, load_base, parameter_homes, replicated

CPU = torch.device("cpu")


def save(folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "8KB", **values: Any) -> Path:
    sizes = {
        "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 51, "max_position_embeddings": 64, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **values}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load(folder: Path | str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    config = ModelConfig(base=str(folder), **settings)
    return load_base(config, dtype=dtype, place=replicated(dtype, CPU), device=CPU, attention="sdpa")


def refusal(folder: Path | str, **settings: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, **settings)
    start = f'model.base = "{folder}": '
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def same(one: nn.Module, other: nn.Module) -> bool:
    def tensors(model: nn.Module) -> dict[str, Tensor]:
        return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())

    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


class TestSafetensors:
    @pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_values_and_types_are_those_of_from_pretrained(
        self, tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
    ) -> None:
        base = save(tmp_path, stored)
        assert len(list(base.glob("*.safetensors"))) > 2
        ours = load(base, wanted)
        assert {p.dtype for p in ours.parameters()} == {wanted}
        assert {b.dtype for b in ours.buffers()} == {torch.float32}, "rotary frequencies"
        assert same(ours, AutoModelForCausalLM.from_pretrained(base, dtype=wanted))

    @pytest.mark.parametrize(
        "values",
        [
            {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"head_dim": 10},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        ],
        ids=str,
    )  # fmt: skip
    def test_kinds_of_llamas(self, tmp_path: Path, values: dict[str, Any]) -> None:
        base = save(tmp_path, **values)
        ours, theirs = load(base), AutoModelForCausalLM.from_pretrained(base)
        assert same(ours, theirs)
        is_tied = values.get("tie_word_embeddings", False)
        assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == is_tied
        assert len(list(ours.parameters())) == len(list(theirs.parameters()))
        ids = torch.arange(12)[None]
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)

    def test_a_tied_weight_may_be_stored_under_either_name_or_both(self, tmp_path: Path) -> None:
        base = save(tmp_path, max_shard_size="1GB", tie_word_embeddings=True)
        theirs, file = AutoModelForCausalLM.from_pretrained(base), base / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, {"format": "pt"})
        assert same(load(base), theirs)
        del tensors["model.embed_tokens.weight"]
        save_file(tensors, file, {"format": "pt"})
        ours = load(base)
        assert ours.lm_head.weight is ours.model.embed_tokens.weight
        assert same(ours, theirs)

    def test_a_tied_weight_with_two_values_is_refused(self, tmp_path: Path) -> None:
        base = save(tmp_path, max_shard_size="1GB", tie_word_embeddings=True)
        tensors = load_file(base / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += 1
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        assert refusal(base) == (
            "its config.json ties lm_head.weight to model.embed_tokens.weight, but its files hold other values for it; set "
            "tie_word_embeddings to false there, or take lm_head.weight out of the files"
        )

    def test_its_configuration_is_that_of_from_pretrained(self, tmp_path: Path) -> None:
        base = save(tmp_path)
        (base / "generation_config.json").write_text('{"max_new_tokens": 7}')
        ours, theirs = load(base, torch.bfloat16), AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        assert ours.config.to_dict() == theirs.config.to_dict()
        assert ours.generation_config.max_new_tokens == 7
        assert not ours.training

    def test_random_numbers_are_left_alone(self, tmp_path: Path) -> None:
        base = save(tmp_path)
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        load(base)
        assert torch.equal(torch.rand(3), expected)

    def test_a_tensor_larger_than_the_buffer_is_read_in_parts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = save(tmp_path)
        monkeypatch.setattr(loading, "READ_BYTES", 48)
        assert same(load(base), AutoModelForCausalLM.from_pretrained(base))

    def test_parts_of_a_tensor(self, tmp_path: Path) -> None:
        weights, theirs = Safetensors(save(tmp_path)), LlamaForCausalLM.from_pretrained(tmp_path)
        whole = theirs.lm_head.weight.detach().flatten()
        for start, stop in ((0, 1), (5, 31), (len(whole) - 3, len(whole)), (0, len(whole))):
            target = torch.empty(stop - start)
            weights.copy("lm_head.weight", start, target)
            assert torch.equal(target, whole[start:stop])

    def test_a_file_that_became_shorter(self, tmp_path: Path) -> None:
        base = save(tmp_path, max_shard_size="1GB")
        weights = Safetensors(base)
        with (base / "model.safetensors").open("rb+") as file:
            file.truncate(5000)
        with pytest.raises(ModelError, match=r"^model\.safetensors ends within model\.norm\.weight$"):
            weights.copy("model.norm.weight", 0, torch.empty(24))


class TestPickles:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        """A base with pickled weights only, in two files."""
        theirs = LlamaForCausalLM.from_pretrained(save(tmp_path / "safe"))
        state = list(theirs.state_dict().items())
        folder = tmp_path / "pickled"
        folder.mkdir()
        shutil.copy(tmp_path / "safe" / "config.json", folder)
        torch.save(dict(state[:7]), folder / "pytorch_model-1.bin")
        torch.save(dict(state[7:]), folder / "pytorch_model-2.bin")
        return folder

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_they_are_read_when_it_is_allowed(self, base: Path, dtype: torch.dtype) -> None:
        ours = load(base, dtype, allow_pickled_weights=True)
        assert same(ours, AutoModelForCausalLM.from_pretrained(base.with_name("safe"), dtype=dtype))

    def test_else_they_are_refused(self, base: Path) -> None:
        assert refusal(base).startswith(
            "the folder has only pickled weights (*.bin), no *.safetensors; convert them, or "
        )

    def test_safetensors_are_preferred(self, base: Path) -> None:
        for path in base.with_name("safe").glob("model*"):
            shutil.copy(path, base)
        for path in base.glob("*.bin"):
            path.write_bytes(b"damaged")
        assert same(load(base, allow_pickled_weights=True), AutoModelForCausalLM.from_pretrained(base))

    def test_a_pickle_that_would_run_code(self, base: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (base / "touched",)

        torch.save({"a": Evil()}, base / "pytorch_model-2.bin")
        assert refusal(base, allow_pickled_weights=True).startswith(
            "pytorch_model-2.bin can't be read as a dictionary of tensors: Weights only load failed"
        )
        assert not (base / "touched").exists()

    @pytest.mark.parametrize("content", [[1], {"a": 1}])
    def test_a_pickle_of_something_else(self, base: Path, content: Any) -> None:
        torch.save(content, base / "pytorch_model-2.bin")
        assert refusal(base, allow_pickled_weights=True) == "pytorch_model-2.bin is no dictionary of tensors"

    def test_tensors_that_do_not_fit(self, base: Path) -> None:
        state = torch.load(base / "pytorch_model-2.bin")
        state["lm_head.weight"] = torch.ones(2, 3)
        state["model.norm.weight"] = torch.ones(24, dtype=torch.int8)
        torch.save(state, base / "pytorch_model-2.bin")
        first, *lines = refusal(base, allow_pickled_weights=True).split("\n    ")
        assert first == "its files are not the model that its config.json describes:"
        assert lines == [
            "lm_head.weight is 2 x 3, and must be 51 x 24",
            "model.norm.weight is stored as torch.int8; only F64, F32, BF16, F16 can be trained",
        ]

    def test_parts_of_a_tensor(self, base: Path) -> None:
        weights, target = Pickled(base), torch.empty(5, dtype=torch.bfloat16)
        weights.copy("lm_head.weight", 7, target)
        whole = LlamaForCausalLM.from_pretrained(base.with_name("safe")).lm_head.weight
        assert torch.equal(target, whole.detach().flatten()[7:12].bfloat16())


class TestRefusals:
    def test_all_tensors_that_do_not_fit_are_listed(self, tmp_path: Path) -> None:
        base = save(tmp_path)
        found = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 3, "vocab_size": 50}
        (base / "config.json").write_text(json.dumps(found))
        first, *lines = refusal(base).split("\n    ")
        assert first == "its files are not the model that its config.json describes:"
        assert lines == [
            "lm_head.weight is 51 x 24, and must be 50 x 24",
            "model.embed_tokens.weight is 51 x 24, and must be 50 x 24",
            *(f"model.layers.2.{name}.weight is missing" for name in (
                "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
                "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
            )),
        ]  # fmt: skip

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        base = save(tmp_path, max_shard_size="1GB")
        (base / "model.safetensors").write_bytes(b"x" * 30)
        assert refusal(base) == (
            "its safetensors can't be used:\n    model.safetensors is damaged or no safetensors file: its 30 bytes hold no "
            "whole header"
        )

    def test_a_missing_file(self, tmp_path: Path) -> None:
        base = save(tmp_path)
        gone = sorted(base.glob("*.safetensors"))[1]
        gone.unlink()
        assert refusal(base).endswith(f"\n    {gone.name} is missing, and model.safetensors.index.json names it")

    @pytest.mark.parametrize("text", ['{"hidden_size": 8}', '{"model_type": "llama", "hidden_size": "x"}', "{"])
    def test_a_configuration_of_nothing_known(self, tmp_path: Path, text: str) -> None:
        base = save(tmp_path)
        (base / "config.json").write_text(text)
        message = refusal(base)
        assert message.startswith("can't be loaded: ")
        assert "\n" not in message

    def test_code_that_comes_with_the_base_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        base = save(tmp_path)
        found = json.loads((base / "config.json").read_text()) | {
            "model_type": "ours", "auto_map": {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"},
        }  # fmt: skip
        (base / "config.json").write_text(json.dumps(found))
        (base / "ours.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class Config(LlamaConfig):\n    model_type = 'ours'\n"
            "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        )
        assert refusal(base).startswith("brings Python code of its own (auto_map in its config.json), which would run ")
        ours = load(base, allow_remote_code=True)
        assert type(ours).__name__ == "Model"
        assert torch.equal(
            ours.lm_head.weight, LlamaForCausalLM.from_pretrained(save(tmp_path / "again")).lm_head.weight
        )


class TestHub:
    @pytest.fixture(autouse=True)
    def ask_again(self) -> None:
        """Each test is a process of its own to the hub."""
        loading.snapshot.cache_clear()

    def test_without_a_connection(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(
            loading,
            "snapshot_download",
            lambda *a, **k: _downloaded(*a, **k, cache_dir=tmp_path, local_files_only=True),
        )
        assert refusal("somebody/a-model").startswith("can't be loaded: ")

    def test_only_what_is_allowed_is_downloaded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked: list[list[str]] = []
        revisions: list[str | None] = []
        folder = tmp_path / "empty"
        folder.mkdir()

        def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
            assert name == "somebody/a-model"
            asked.append(allow_patterns)
            revisions.append(revision)
            return str(folder)

        monkeypatch.setattr(loading, "snapshot_download", download)
        assert refusal("somebody/a-model") == "the folder has no *.safetensors, so no weights to load"
        refusal("somebody/a-model", allow_remote_code=True, allow_pickled_weights=True, revision="v2")
        folder = save(tmp_path / "full")
        for revision in ("v1", "v1"):
            ours = load("somebody/a-model", allow_pickled_weights=True, revision=revision)
            assert same(ours, AutoModelForCausalLM.from_pretrained(folder))
        assert asked == [
            ["*.json", "*.safetensors"], ["*.json", "*.safetensors", "*.py"], ["*.json", "pytorch_model*.bin", "*.py"],
            ["*.json", "*.safetensors"],
        ]  # fmt: skip
        assert revisions == [None, "v2", "v2", "v1"], "and once per process"


_downloaded = loading.snapshot_download


def test_a_parameter_is_found_under_all_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 1)})
    model["b"].weight = model["a"].weight  # type: ignore[assignment]
    assert [names for _, names in parameter_homes(model)] == [["a.weight", "b.weight"], ["c.weight"], ["c.bias"]]


def test_the_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f'^model.base = "{re.escape(str(tmp_path))}": the folder has no '):
        load(tmp_path)
