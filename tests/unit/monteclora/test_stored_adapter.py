"""The files of an adapter: what is refused and how it is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from monteclora import LoRAConfig, MonteCLoRAConfig, load_peft, save_peft
from monteclora.errors import AdapterError
from tests.unit.monteclora.models import llama, trained

LORA = LoRAConfig(rank=3, alpha=7.0)
MONTECLORA = MonteCLoRAConfig(rank=3, alpha=7.0, num_samples=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "holds a IA3 adapter; only LORA"),
        ({"use_dora": True}, r"sets use_dora = True, which is more than a plain LoRA; merge it .* with PEFT"),
        ({"bias": "all"}, "sets bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights = 'pissa'"),
        ({"r": None}, "adapter_config.json is of no use: r is None"),
        ({"r": 0}, "adapter_config.json is of no use: r or rank_pattern has a rank of 0, below 1"),
        ({"lora_alpha": 10**400}, "adapter_config.json is of no use: lora_alpha is 1000"),
        ({"r": float("inf")}, "adapter_config.json is of no use: r is inf, not a number for it"),
        (
            {"lora_alpha": 8},
            r"palimpsest.json and adapter_config.json in .* give model.layers.0.* different ranks or alphas",
        ),
        (
            {"use_rslora": True},
            "different ranks or alphas, so other software has changed the adapter; delete palimpsest.json",
        ),
    ],
)
def test_other_kinds_of_adapter_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_peft(trained(llama, LORA)[1], tmp_path)
    edit(tmp_path / "adapter_config.json", **change)
    with pytest.raises(AdapterError, match=message):
        load_peft(llama(), tmp_path)


def test_damaged_directories_are_reported(tmp_path: Path) -> None:
    def refuses(message: str) -> None:
        model = llama()
        names = [name for name, _ in model.named_modules()]
        with pytest.raises(AdapterError, match=message):
            load_peft(model, tmp_path)
        assert [name for name, _ in model.named_modules()] == names, "the model is as it was"

    refuses("adapter_config.json is missing; give the directory")
    save_peft(trained(llama, MONTECLORA)[1], tmp_path)

    own = tmp_path / "palimpsest.json"
    text = own.read_text()
    edit(own, method=["monteclora"])
    refuses(r"has schema 1, method \['monteclora'\]; this version reads schema 1, lora or monteclora")
    own.write_text("[" * 100_000)
    refuses("palimpsest.json is not JSON .*; save the adapter again")
    own.write_text(text)
    edit(own, a_later_key=1, settings=json.loads(text)["settings"] | {"a_later_setting": 1})
    load_peft(llama(), tmp_path)
    edit(own, schema=99)
    refuses("has schema 99, method monteclora; this version reads schema 1, lora or monteclora; use the version")
    edit(own, schema=1, method="dream")
    refuses("method dream")
    for value, message in (
        ({"num_samples": 0}, "palimpsest.json: num_samples is 0"),
        ({"num_samples": "many"}, "palimpsest.json: num_samples is 'many'; give a whole number"),
        (None, "has no usable settings"),
    ):
        edit(own, schema=1, method="monteclora", settings=value and json.loads(text)["settings"] | value)
        refuses(message)
    own.write_text(text[:20])
    refuses("is not JSON")
    own.write_text("[]")
    refuses("holds no JSON object")
    own.write_text(text)

    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    name, value = next(iter(tensors.items()))
    short = name.removeprefix("base_model.model.").removesuffix(".weight")
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(1)}, weights)
    refuses(
        "1 tensors are not part of the adapter, first lm_head.weight: neither .* nor in a module of modules_to_save; load"
    )
    save_file(tensors | {"lm_head.lora_A.weight": torch.zeros(1)}, weights)
    refuses("holds lm_head.lora_A.weight, which is not part of a LoRA")
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    refuses(f"1 tensors of the adapter are missing, first {short}; load the model it was trained on")
    save_file(tensors | {name: value.T.contiguous()}, weights)
    refuses(rf"{short} in .* has shape \[24, 3\], here it needs \[3, 24\]; load the model it was trained on")
    save_file({key: value.view(-1) for key, value in tensors.items()}, weights)
    refuses(r"has shape \[48\], here it needs")
    weights.write_bytes(b"half a fi")
    refuses("adapter_model.safetensors is damaged")
    weights.unlink()
    refuses("is missing; save the adapter again, in safetensors format")
    save_file(tensors, weights)
    own = tmp_path / "variational.safetensors"
    own.unlink()
    refuses("variational.safetensors is missing")
    own.mkdir()
    refuses("variational.safetensors can't be read .*; save the adapter again")
    for name in ("palimpsest.json", "adapter_config.json"):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        refuses(f"{name} can't be read .Is a directory.; give the directory of a saved adapter")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("file", ["adapter_model", "variational"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_refused(value: float, file: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_peft(trained(llama, MONTECLORA)[1], tmp_path)
    path = tmp_path / f"{file}.safetensors"
    tensors = load_file(path)
    name = list(tensors)[1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors | {name: tensors[name].to(dtype)}, path)
    with pytest.raises(
        AdapterError,
        match=rf"{file}\.safetensors holds NaN or infinite values in {name}: the training that saved it diverged; take an",
    ):
        load_peft(llama(), tmp_path)


def edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
