"""Roles by configuration alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from evals.claims.roles import NAMES, OF_MONTECLORA, Arm, arms_of, in_order, setting
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from tests.unit.evals.claims.synthetic import HIDDEN_KEY


def config(kind: str = "none", *, rank: int = 16, decay: float = 0.0, hidden_key: dict[str, Any] | None = None, **adapter: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "adapter": {"kind": kind, "rank": rank, **adapter},
        "hidden_key": hidden_key or {"enabled": False, "key_rate": 0.1, "hidden_rate": 0.1, "compensation": "kl"},
        "optim": {"weight_decay": decay},
    }


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (config(), "full finetuning"),
        (config() | {"model": {"attention_dropout": 0.1}}, "full + attention dropout"),
        (config() | {"model": {"attention_dropout": 0.0}}, "full finetuning"),
        (config(hidden_key=HIDDEN_KEY) | {"model": {"attention_dropout": 0.1}}, "full + HiddenKey"),
        (config(hidden_key=HIDDEN_KEY), "full + HiddenKey"),
        (config(hidden_key=HIDDEN_KEY | {"hidden_rate": 0.0}), "full + HiddenKey"),
        (config("lora", rank=64), "LoRA r64"),
        (config("lora", rank=8, hidden_key=HIDDEN_KEY), "LoRA + HiddenKey r8"),
        (config("monteclora"), "MonteCLoRA r16"),
        (config("monteclora", hidden_key=HIDDEN_KEY), "MonteCLoRA + HiddenKey r16"),
    ],
)
def test_the_role_of_a_run(given: dict[str, Any], label: str) -> None:
    assert arms_of({"run": given})["run"].label == label


def test_weight_decay_is_a_method_beside_a_smaller_one() -> None:
    found = arms_of({"a": config(decay=0.01), "b": config(decay=0.3), "c": config("lora", decay=0.3)})
    assert {run: arm.label for run, arm in found.items()} == {
        "a": "full finetuning", "b": "full + weight decay", "c": "LoRA r16",
    }  # fmt: skip
    assert arms_of({"b": config(decay=0.3)})["b"].label == "full finetuning"


def test_arms_of_one_role_are_told_apart_by_what_they_differ_in() -> None:
    found = arms_of(
        {"a": config("lora", alpha=16.0), "b": config("lora", alpha=32.0), "c": config("lora", rank=4, alpha=8.0)}
    )
    assert [found[run].label for run in "abc"] == ["LoRA r16 (alpha 16)", "LoRA r16 (alpha 32)", "LoRA r4"]
    several = arms_of({str(d): config(decay=d) for d in (0.0, 0.1, 0.5)})
    assert [several[run].label for run in ("0.0", "0.1", "0.5")] == [
        "full finetuning", "full + weight decay (weight decay 0.1)", "full + weight decay (weight decay 0.5)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ({"adapter.targets": ["q_proj", "v_proj"]}, "LoRA r16 (targets q_proj, v_proj)"),
        ({"optim.warmup": "20 %"}, "LoRA r16 (warmup 20 %)"),
        ({"optim.beta2": 0.999}, "LoRA r16 (beta2 0.999)"),
        ({"train.precision": "fp32"}, "LoRA r16 (precision fp32)"),
        ({"train.gradient_clipping": 0.5}, "LoRA r16 (gradient clipping 0.5)"),
        ({"model.attention_dropout": 0.2}, "LoRA r16 (attention dropout 0.2)"),
    ],
)
def test_every_setting_that_changes_numbers_tells_arms_apart(setting: dict[str, Any], label: str) -> None:
    ((path, value),) = setting.items()
    section, _, key = path.partition(".")
    usual = {
        "adapter.targets": ["q_proj"], "optim.warmup": "5 %", "optim.beta2": 0.95, "train.precision": "bf16",
        "train.gradient_clipping": 1.0,        "model.attention_dropout": 0.1,
    }[path]  # fmt: skip
    one, other = config("lora"), config("lora")
    one.setdefault(section, {})[key] = usual
    other.setdefault(section, {})[key] = value
    found = arms_of({"a": one, "b": other, "older": config("lora")})
    assert found["b"].label == label
    assert found["older"].label == f"LoRA r16 ({key.replace('_', ' ')} not recorded)"
    # What an older commit did not record yet is no difference by itself.
    assert arms_of({"a": one, "older": config("lora")}) == {"a": Arm("lora", 16), "older": Arm("lora", 16)}


def test_settings_that_are_switched_off_or_change_no_number_tell_nothing_apart() -> None:
    configs = {"a": config(alpha=8.0), "b": config(alpha=16.0)}
    configs["a"] |= {"model": {"kernels": "torch", "compile": False, "base": "/a"}}
    configs["b"] |= {"model": {"kernels": "liger", "compile": True, "base": "/b"}}
    configs["b"]["hidden_key"] = {"enabled": False, "key_rate": 0.3}
    configs["b"]["optim"]["lr"] = 3e-4
    assert set(arms_of(configs).values()) == {Arm("full")}


def test_what_only_monteclora_uses_tells_no_lora_apart() -> None:
    own = {each.name for each in fields(MonteCLoRAConfig)} - {each.name for each in fields(LoRAConfig)}
    assert set(OF_MONTECLORA) == own
    for kind, arms in (("lora", 1), ("monteclora", 2)):
        configs = {"a": config(kind, noise_scale=0.1), "b": config(kind, noise_scale=0.2)}
        assert len(set(arms_of(configs).values())) == arms


def test_an_unknown_adapter_has_no_role() -> None:
    assert arms_of({"a": config("prefix"), "b": {}, "c": config()}) == {"c": Arm("full")}


def test_arms_are_shown_by_role_and_rank() -> None:
    arms = [Arm("monteclora", 4), Arm("lora", 16), Arm("lora", 4), Arm("full"), Arm("lora", 4)]
    assert in_order(arms) == [Arm("full"), Arm("lora", 4), Arm("lora", 16), Arm("monteclora", 4)]
    assert next(iter(NAMES)) == "full"


def test_settings_by_dotted_name() -> None:
    assert setting({"a": {"b": 1}}, "a.b") == 1
    assert setting({"a": 3}, "a.b") is None
    assert setting({}, "a.b") is None
