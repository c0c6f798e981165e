from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.config import ArchitectureConfig, ModelConfig
from training.errors import ModelError
from training.model import build as building
from training.model import loading
from training.model.attention import ATTENTION
from training.model.build import (
    base_fingerprint,
    build_model,
    check_precision,
    count_parameters,
    drop_attention,
    folder_fingerprint,
    gathered,
    random_model,
)
from training.world import World, detect_world

SMALL = ArchitectureConfig(
    hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=40, max_positions=32
)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in one.named_parameters())


class TestRandomWeights:
    def test_they_depend_on_the_seed_alone(self) -> None:
        torch.manual_seed(1)
        first = random_model(SMALL, dtype=torch.float32, seed=5)
        torch.manual_seed(2)
        assert same_weights(first, random_model(SMALL, dtype=torch.float32, seed=5))
        assert not same_weights(first, random_model(SMALL, dtype=torch.float32, seed=6))

    def test_the_default_generator_is_left_as_it_was(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        random_model(SMALL, dtype=torch.float32, seed=5)
        assert torch.equal(torch.rand(4), expected)

    def test_no_gpu_is_touched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touched: list[Any] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(
            torch.cuda, "get_rng_state", lambda *device: touched.append(device) or torch.get_rng_state()
        )
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *state: touched.append(state))
        monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
        random_model(SMALL, dtype=torch.float32, seed=5)
        assert touched == []

    def test_bf16_weights_are_the_fp32_ones_rounded(self) -> None:
        fp32 = random_model(SMALL, dtype=torch.float32, seed=5)
        bf16 = random_model(SMALL, dtype=torch.bfloat16, seed=5)
        assert {p.dtype for p in bf16.parameters()} == {torch.bfloat16}
        assert same_weights(fp32.bfloat16(), bf16)

    def test_every_setting_of_the_shape_is_used(self) -> None:
        config = random_model(SMALL, dtype=torch.float32, seed=5).config
        assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (16, 24, 2)
        assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 4)
        assert (config.vocab_size, config.max_position_embeddings) == (40, 32)

    @pytest.mark.parametrize("is_tied", [False, True])
    def test_tied_embeddings(self, is_tied: bool) -> None:
        shape = ArchitectureConfig(num_layers=1, tie_embeddings=is_tied)
        model = random_model(shape, dtype=torch.float32, seed=5)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied


@pytest.fixture
def alone() -> Iterator[World]:
    """The only rank, in a process group of its own."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield detect_world({})
    torch.distributed.destroy_process_group()


def build(world: World, config: ModelConfig, precision: str = "fp32", **values: Any) -> Any:
    return build_model(
        config, precision=precision, seed=5, world=world,
        **{"placement": "replicated", "ds_config": {}, "device": torch.device("cpu"), **values},
    )  # fmt: skip


class TestBuild:
    def test_without_a_base_it_has_random_weights(self, alone: World) -> None:
        model = build(alone, ModelConfig(architecture=SMALL), "bf16")
        assert same_weights(model, random_model(SMALL, dtype=torch.bfloat16, seed=5))
        assert model.config.use_cache is False
        assert model.config._attn_implementation == ATTENTION
        assert not any(layer.gradient_checkpointing for layer in model.model.layers)

    def test_a_base_has_the_settings_of_random_weights(self, alone: World, tmp_path: Path) -> None:
        theirs = random_model(SMALL, dtype=torch.float32, seed=6)
        theirs.save_pretrained(tmp_path)
        model = build(alone, ModelConfig(base=str(tmp_path)), "bf16", attention="sdpa", recomputed_layers=2)
        assert same_weights(model, theirs.bfloat16())
        assert model.config.use_cache is False
        assert model.config._attn_implementation == "sdpa"
        assert all(layer.gradient_checkpointing for layer in model.model.layers)

    def test_a_base_that_cannot_be_loaded_is_named(self, alone: World, tmp_path: Path) -> None:
        random_model(SMALL, dtype=torch.float32, seed=6).save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(
            ModelError, match=f'^model.base = "{re.escape(str(tmp_path))}": its safetensors can\'t be used:'
        ):
            build(alone, ModelConfig(base=str(tmp_path)))

    def test_the_first_layers_are_recomputed_and_no_gradient_changes(self, alone: World) -> None:
        gradients = []
        for layers in (0, 1, 2):
            model = build(alone, ModelConfig(architecture=SMALL), recomputed_layers=layers).train()
            assert [layer.gradient_checkpointing for layer in model.model.layers] == [k < layers for k in range(2)]
            calls = [0, 0]
            for k, layer in enumerate(model.model.layers):
                layer.mlp.register_forward_pre_hook(lambda *_, k=k, calls=calls: calls.__setitem__(k, calls[k] + 1))
            model(input_ids=torch.arange(8)[None]).logits.logsumexp(-1).sum().backward()
            assert calls == [2 if k < layers else 1 for k in range(2)]
            gradients.append([p.grad for p in model.parameters()])
        for others in gradients[1:]:
            for one, other in zip(gradients[0], others, strict=True):
                assert torch.equal(one, other)


class TestAttentionDropout:
    def test_weights_are_dropped_in_training_alone_and_exports_know_nothing_of_it(self, alone: World) -> None:
        ids, plain = torch.arange(8)[None], build(alone, ModelConfig(architecture=SMALL))
        model = build(alone, ModelConfig(architecture=SMALL, attention_dropout=0.3))
        assert model.config.to_dict() == plain.config.to_dict()
        with torch.no_grad():
            expected = plain.eval()(input_ids=ids).logits
            assert torch.equal(model.eval()(input_ids=ids).logits, expected)
            values = torch.eye(8).expand(1, 4, 8, 8).contiguous()
            weights = torch.stack([self.attend(model.train(), values) for _ in range(400)])
        # Each weight is dropped or divided by 1 - rate, whatever becomes of the others.
        kept = weights != 0
        exact = self.attend(model.eval(), values)
        assert torch.allclose(weights[kept], (exact / 0.7).expand_as(weights)[kept], atol=1e-6)
        assert abs(float(kept[:, exact > 0].float().mean()) - 0.7) < 0.01

    def attend(self, model: Any, values: torch.Tensor) -> torch.Tensor:
        """The weights of the first layer's attention for random queries and keys, values being the identity."""
        layer = model.model.layers[0].self_attn
        rate = layer.attention_dropout if layer.training else 0.0
        query, key = torch.randn(2, 1, 4, 8, 4, generator=torch.Generator().manual_seed(0))
        return ALL_ATTENTION_FUNCTIONS[ATTENTION](layer, query, key, values, None, dropout=rate)[0].transpose(1, 2)

    def test_a_model_without_it_is_refused(self) -> None:
        model = random_model(SMALL, dtype=torch.float32, seed=5)
        for module in model.modules():
            module.__dict__.pop("attention_dropout", None)
        with pytest.raises(ModelError) as caught:
            drop_attention(model, 0.1)
        assert str(caught.value) == (
            "model.attention_dropout = 0.1: LlamaForCausalLM has no dropout on attention weights; leave it out"
        )


class TestPrecision:
    GPU = torch.device("cuda", 1)

    def test_a_gpu_that_only_emulates_bf16_is_refused(self, alone: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Tesla V100 number {device.index}")
        with pytest.raises(ModelError) as caught:
            build(alone, ModelConfig(architecture=SMALL), "bf16", device=self.GPU)
        assert str(caught.value) == (
            'train.precision = "bf16": Tesla V100 number 1 does not compute in bfloat16; use "fp32"'
        )
        check_precision("fp32", self.GPU)
        check_precision("bf16", torch.device("cpu"))

    def test_a_gpu_that_has_bf16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        check_precision("bf16", self.GPU)


def test_a_whole_parameter_is_gathered_as_it_is() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    with gathered(parameter), torch.no_grad():
        parameter += 1
    assert parameter.tolist() == [1, 1, 1]


class TestFingerprint:
    def test_it_is_of_the_weight_files_in_name_order(self, tmp_path: Path) -> None:
        (tmp_path / "model-2.safetensors").write_bytes(b"two")
        (tmp_path / "model-1.safetensors").write_bytes(b"one")
        (tmp_path / "config.json").write_text("{}")
        hashes = b"".join(hashlib.sha256(content).digest() for content in (b"one", b"two"))
        found = folder_fingerprint(str(tmp_path))
        assert found == hashlib.sha256(hashes).hexdigest()
        (tmp_path / "config.json").write_text('{"a": 1}')
        assert folder_fingerprint(str(tmp_path)) == found
        (tmp_path / "model-2.safetensors").write_bytes(b"twp")
        assert folder_fingerprint(str(tmp_path)) != found

    def test_random_weights_have_none(self, alone: World) -> None:
        assert folder_fingerprint(None) is None
        assert base_fingerprint(ModelConfig(), alone) is None

    def test_pickled_weights_count_where_there_are_no_others(self, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(b"one")
        expected = hashlib.sha256(hashlib.sha256(b"one").digest()).hexdigest()
        assert folder_fingerprint(tmp_path) == expected
        (tmp_path / "model.safetensors").write_bytes(b"two")
        assert folder_fingerprint(tmp_path) != expected

    def test_a_base_has_that_of_its_folder(self, alone: World, tmp_path: Path) -> None:
        for name in ("b", "a"):
            (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
        assert base_fingerprint(ModelConfig(base=str(tmp_path)), alone) == folder_fingerprint(tmp_path)

    def test_a_hub_repository_has_that_of_the_commit_that_was_loaded(
        self, alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders = {"main": tmp_path / "5a1", "v2": tmp_path / "77c"}
        for seed, folder in enumerate(folders.values()):
            random_model(SMALL, dtype=torch.float32, seed=seed).save_pretrained(folder)
        monkeypatch.setattr(
            loading, "snapshot_download", lambda name, revision, allow_patterns: str(folders[revision or "main"])
        )
        main, v2 = (ModelConfig(base="somebody/a-model", revision=revision) for revision in (None, "v2"))
        loading.snapshot.cache_clear()
        model = build(alone, main)
        expected = folder_fingerprint(folders["main"])
        assert base_fingerprint(v2, alone) == folder_fingerprint(folders["v2"]) != expected
        # The branch moves on: this start stays with what it has loaded, and the next one notices.
        folders["main"] = folders["v2"]
        assert base_fingerprint(main, alone) == expected
        assert same_weights(model, build(alone, main))
        loading.snapshot.cache_clear()
        assert base_fingerprint(main, alone) == folder_fingerprint(folders["v2"])
        assert not same_weights(model, build(alone, main))
        loading.snapshot.cache_clear()

    def test_ranks_with_several_commits_are_told(
        self, alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "5a1"
        random_model(SMALL, dtype=torch.float32, seed=1).save_pretrained(folder)
        monkeypatch.setattr(loading, "snapshot", lambda *asked: folder)
        monkeypatch.setattr(building, "gather", lambda commit, world: [commit, "77c", commit])
        with pytest.raises(ModelError) as caught:
            base_fingerprint(ModelConfig(base="somebody/a-model"), alone)
        assert str(caught.value) == (
            'model.base = "somebody/a-model": it changed while the ranks downloaded it, so that they have several commits '
            "of it (5a1, 77c); set model.revision to one of them"
        )

    def test_a_file_that_may_not_be_read(self, alone: World, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").mkdir()
        with pytest.raises(ModelError) as caught:
            base_fingerprint(ModelConfig(base=str(tmp_path)), alone)
        assert str(caught.value) == (
            f"model.base = \"{tmp_path}\": can't be read: [Errno 21] Is a directory: '{tmp_path}/a.safetensors'"
        )


class TestCounting:
    def test_total_and_trainable(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
        model[0].requires_grad_(False)
        assert count_parameters(model) == {"total": 16 + 8, "trainable": 8}

    def test_partitioned_parameters_count_whole(self) -> None:
        model = nn.Linear(2, 1, bias=False)
        model.weight.ds_numel = 600  # type: ignore[attr-defined]
        assert count_parameters(model) == {"total": 600, "trainable": 600}

    def test_tied_parameters_count_once(self) -> None:
        model = random_model(SMALL, dtype=torch.float32, seed=5)
        assert count_parameters(model)["total"] == len(
            {(p.data_ptr(), i) for p in model.parameters() for i in range(p.numel())}
        )
