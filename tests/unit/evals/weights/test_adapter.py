"""Adapters that PEFT has saved, against what PEFT itself merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evals.errors import EvalError
from evals.weights.folder import Folder, open_folder
from evals.weights.rank import rank_of_change

pytestmark = [
    # transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

TARGETS = ["q_proj", "v_proj", "down_proj"]


def save_adapter(base: Path, folder: Path, **settings: Any) -> tuple[Path, Path]:
    """An adapter with random values and the model that it is merged into."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | settings
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder / "adapter")
    wrapped.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 3},
            "alpha_pattern": {"^model.layers.0.*down_proj": 9},
        },
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"target_modules": "all-linear", "r": 40},
    ],
    ids=["plain", "rslora", "patterns", "in full", "embeddings", "more than full rank"],
)
def test_weights_and_updates_are_those_that_peft_merges(
    base_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter, merged = save_adapter(base_folder, tmp_path, **settings)
    base, opened, wanted = Folder(base_folder), open_folder(adapter), Folder(merged)
    assert opened.shapes == wanted.shapes
    num_changed = 0
    for name in wanted.shapes:
        torch.testing.assert_close(opened.read(name), wanted.read(name), rtol=1e-5, atol=1e-6)
        if len(wanted.shapes[name]) != 2 or ("modules_to_save" in settings and name == "lm_head.weight"):
            continue
        update = opened.update(name)
        assert update is not None
        torch.testing.assert_close(update.dense(), wanted.read(name) - base.read(name), rtol=1e-4, atol=1e-6)
        num_changed += update.most > 0
    assert num_changed >= 3
    assert (opened.update("lm_head.weight") is None) == ("modules_to_save" in settings)


def test_ranks_are_those_of_the_merged_model_and_at_most_the_adapters(base_folder: Path, tmp_path: Path) -> None:
    adapter, merged = save_adapter(base_folder, tmp_path, rank_pattern={"v_proj": 2})
    base = Folder(base_folder)
    of_factors = rank_of_change(base, open_folder(adapter))
    of_weights = rank_of_change(base, open_folder(merged))
    assert of_factors["rank"] == of_weights["rank"]
    for exact, dense in zip(of_factors["rows"], of_weights["rows"], strict=True):
        is_target = exact["module"] in TARGETS
        assert exact["at_most"] == ({"v_proj": 2}.get(exact["module"], 4) if is_target else 0)
        assert exact["numerical_rank"]["change"] == exact["at_most"] >= exact["rank"]["change"]
        assert (exact["rank"]["change"] > 0) == is_target
        assert exact["norm"]["change"] == pytest.approx(dense["norm"]["change"], rel=1e-4)
        assert exact["rank"]["after"] == dense["rank"]["after"]
        assert dense["at_most"] == (0 if dense["module"] == "norm" else None)
    assert of_factors["notes"][-1] == (
        "Where an adapter made the change, it is known as factors of rank 4 at most, and exact."
    )


def test_two_adapters_of_one_base_differ_by_factors(base_folder: Path, tmp_path: Path) -> None:
    first, _ = save_adapter(base_folder, tmp_path / "1")
    second, _ = save_adapter(base_folder, tmp_path / "2", lora_alpha=60)
    found = rank_of_change(open_folder(first), open_folder(second))
    # The factors are the same but for their scale.
    rows = [row for row in found["rows"] if row["module"] in TARGETS]
    assert {row["at_most"] for row in rows} == {8}
    assert all(row["numerical_rank"]["change"] == 4 for row in rows)


def test_layers_of_gpt_2_have_their_weights_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40)).save_pretrained(tmp_path / "base")
    adapter, merged = save_adapter(tmp_path / "base", tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    opened, wanted = open_folder(adapter), Folder(merged)
    name = "transformer.h.1.attn.c_attn.weight"
    torch.testing.assert_close(opened.read(name), wanted.read(name), rtol=1e-5, atol=1e-6)
    assert opened.update(name).B.shape == (16, 4)  # type: ignore[union-attr]


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"peft_type": "IA3"}, "peft_type is 'IA3', and only the updates of a LORA are read"),
            ({"use_dora": True}, "use_dora is set, and DoRA scales the weights, too"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changed the frozen"),
            ({"lora_alpha": None}, "lora_alpha is None, not a number"),
            ({"alpha_pattern": {"(": 3}}, "alpha_pattern holds '(', which is no regular expression"),
            ({"alpha_pattern": 3}, "alpha_pattern is 3, not an object of numbers"),
            ({"alpha_pattern": {"q": "x"}}, "alpha_pattern is {'q': 'x'}, not an object of numbers"),
            ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ],
    )
    def test_more_than_a_lora(self, base_folder: Path, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
        adapter, _ = save_adapter(base_folder, tmp_path)
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(EvalError) as caught:
            open_folder(adapter)
        assert str(caught.value).startswith(f"{file}: {reason}")

    def test_a_base_that_is_not_here(self, base_folder: Path, tmp_path: Path) -> None:
        adapter, _ = save_adapter(base_folder, tmp_path)
        moved = base_folder.rename(tmp_path / "moved")
        with pytest.raises(EvalError, match=f"its base '{base_folder}' is no folder here; say with --base where it is"):
            open_folder(adapter)
        assert (
            open_folder(adapter, Folder(moved)).base == open_folder(adapter, otherwise=Folder(moved)).base == str(moved)
        )

    def test_everything_that_does_not_fit_the_base(self, base_folder: Path, tmp_path: Path) -> None:
        adapter, _ = save_adapter(base_folder, tmp_path, modules_to_save=["lm_head"])
        file = adapter / "adapter_model.safetensors"
        stored = load_file(file)
        prefix = "base_model.model.model.layers"
        stored["base_model.model.lm_head.weight"] = torch.ones(3, 3)
        del stored[f"{prefix}.0.self_attn.q_proj.lora_A.weight"]
        stored[f"{prefix}.0.self_attn.v_proj.lora_A.weight"] = torch.ones(5, 32)
        stored[f"{prefix}.1.self_attn.v_proj.lora_A.weight"] = torch.ones(4, 31)
        stored[f"{prefix}.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 32)
        stored["base_model.model.score.weight"] = torch.ones(2, 32)
        save_file(stored, file)
        with pytest.raises(EvalError) as caught:
            open_folder(adapter)
        for problem in (
            "lm_head.weight is 3 x 3, and 60 x 32 in the base",
            "layers.0.self_attn.q_proj has lora_B only",
            "layers.0.self_attn.v_proj has A of 5 x 32 and B of 16 x 4",
            "layers.1.self_attn.v_proj.weight is 16 x 32 in the base, and its update 16 x 31",
            "layers.9.self_attn.q_proj.weight is not in the base",
            "score.weight is not in the base",
        ):
            assert problem in str(caught.value)
        assert str(caught.value).endswith("name its base with --base")
