"""Liger's kernels are used where they can be, and where they are asked for and can't be, that is said."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.errors import ModelError
from training.model.kernels import use_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MODULE = "liger_kernel.transformers.monkey_patch"


def llama(**settings: Any) -> Any:
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=11,
                **settings,
            )
        )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Liger as far as it is used; holds the arguments it was called with."""
    calls: list[dict[str, Any]] = []

    def apply_liger_kernel_to_llama(
        rope: bool = True, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True, rms_norm: bool = True,
        swiglu: bool = True, model: Any = None,
    ) -> None:  # fmt: skip
        calls.append(
            {"loss": cross_entropy or fused_linear_cross_entropy, "rest": rope and rms_norm and swiglu, "model": model}
        )

    module = types.ModuleType(MODULE)
    module.apply_liger_kernel_to_llama = apply_liger_kernel_to_llama  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, MODULE, module)
    return calls


@pytest.fixture
def _is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)


@pytest.mark.parametrize("choice", ["auto", "liger"])
def test_liger_replaces_all_but_the_loss(choice: Any, calls: list[dict[str, Any]]) -> None:
    model = llama()
    assert use_kernels(model, choice, CUDA) == "liger"
    assert calls == [{"loss": False, "rest": True, "model": model}]


def test_it_is_left_alone_where_it_is_not_wanted_or_of_no_use(calls: list[dict[str, Any]]) -> None:
    assert use_kernels(llama(), "torch", CUDA) == "torch"
    assert use_kernels(llama(), "auto", CPU) == "torch"
    assert use_kernels(llama(hidden_act="gelu"), "auto", CUDA) == "torch"
    assert calls == []


@pytest.mark.usefixtures("_is_missing")
def test_without_the_package_torch_is_used() -> None:
    assert use_kernels(llama(), "auto", CUDA) == "torch"


def test_on_a_cpu_it_cannot_be_asked_for(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(
        ModelError, match=r'model.kernels = "liger": its kernels need a CUDA device, and this run is on cpu'
    ):
        use_kernels(llama(), "liger", CPU)
    assert calls == []


@pytest.mark.usefixtures("_is_missing")
def test_without_the_package_it_cannot_be_asked_for() -> None:
    with pytest.raises(
        ModelError, match=r"it can't be imported .*; install it with `pip install liger-kernel`; or set"
    ):
        use_kernels(llama(), "liger", CUDA)


def test_for_another_model_it_cannot_be_asked_for(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelError, match="used for LLaMA with SiLU, and this is a llama with gelu"):
        use_kernels(llama(hidden_act="gelu"), "liger", CUDA)
    assert calls == []


def test_the_installed_package_has_the_arguments_that_are_given() -> None:
    liger = pytest.importorskip(MODULE, exc_type=ImportError)
    expected = {"rope", "cross_entropy", "fused_linear_cross_entropy", "rms_norm", "swiglu", "model"}
    assert expected <= inspect.signature(liger.apply_liger_kernel_to_llama).parameters.keys()
