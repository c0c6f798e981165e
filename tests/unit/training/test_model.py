from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import ArchitectureConfig, ModelConfig
from training.errors import ModelError
from training.model import build_model, count_parameters, folder_fingerprint, load_base, random_model

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


class TestBuild:
    def test_without_a_base_it_has_random_weights(self) -> None:
        model = build_model(ModelConfig(architecture=SMALL), precision="bf16", ds_config={}, seed=5)
        assert same_weights(model, random_model(SMALL, dtype=torch.bfloat16, seed=5))
        assert model.config.use_cache is False
        assert not model.model.layers[0].gradient_checkpointing

    def test_activation_checkpointing_changes_no_gradient(self) -> None:
        gradients = []
        for is_on in (False, True):
            config = ModelConfig(architecture=SMALL, activation_checkpointing=is_on)
            model = build_model(config, precision="fp32", ds_config={}, seed=5).train()
            assert model.model.layers[0].gradient_checkpointing == is_on
            model(input_ids=torch.arange(8)[None]).logits.logsumexp(-1).sum().backward()
            gradients.append([p.grad for p in model.parameters()])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


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

    def test_random_weights_and_hub_names_have_none(self) -> None:
        assert folder_fingerprint(None) is None
        assert folder_fingerprint("somebody/a-model") is None


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


def test_a_base_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "model.safetensors").touch()
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    with pytest.raises(ModelError, match=f'^model.base = "{re.escape(str(tmp_path))}": can\'t be loaded: '):
        load_base(str(tmp_path), dtype=torch.float32, ds_config=settings)
