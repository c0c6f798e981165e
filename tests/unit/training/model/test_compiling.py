from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monteclora import MonteCLoRAConfig, attach_adapter
from tests.unit.training.minimal import problems_of, write_recipe
from training.model.attention import ATTENTION
from training.model.compiling import compile_layers, layer_parts


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=1, vocab_size=32, attn_implementation=ATTENTION)  # fmt: skip
    return LlamaForCausalLM(shape)


def test_the_parts_are_those_of_the_layers_and_no_posteriors() -> None:
    model = tiny_model()
    wanted = ["LlamaAttention", "LlamaMLP", "LlamaRMSNorm", "LlamaRMSNorm"] * 2
    assert [type(part).__name__ for part in layer_parts(model)] == wanted
    attach_adapter(model, MonteCLoRAConfig(rank=2), seed=1)
    assert [type(part).__name__ for part in layer_parts(model)] == wanted


def test_evaluation_and_names_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model().eval(), torch.arange(8).view(1, 8)
    with torch.no_grad():
        before, names = model(ids).logits, dict(model.named_parameters()).keys()
        monkeypatch.setattr(torch, "compile", lambda _: None)  # whoever calls what it gives fails
        compile_layers(model)
        assert torch.equal(model(ids).logits, before)
        assert dict(model.named_parameters()).keys() == names
        with pytest.raises(TypeError):
            model.train()(ids)


class TestSettings:
    def problems(self, folder: Path, *overrides: str) -> list[str]:
        return problems_of(write_recipe(folder), "--model.compile", "true", *overrides)

    def test_it_needs_whole_weights(self, tmp_path: Path) -> None:
        assert self.problems(tmp_path, "--train.placement", "replicated") == []
        assert self.problems(tmp_path, "--train.placement", "zero3_hpz") == [
            "model.compile = true (command line): works with train.placement \"replicated\", not 'zero3_hpz': ZeRO-3 gathers "
            "weights between the operations that would become one; set it to false"
        ]

    def test_it_is_one_of_two_ways(self, tmp_path: Path) -> None:
        replicated = ("--train.placement", "replicated")
        found = self.problems(tmp_path, *replicated, "--model.kernels", "liger")
        assert 'model.kernels = "liger" (command line): and model.compile replace the same operations; use "auto" or ' \
            '"torch", or set compile to false' in found  # fmt: skip
        for choice in ("auto", "torch"):
            assert self.problems(tmp_path, *replicated, "--model.kernels", choice) == []
