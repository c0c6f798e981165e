"""What of two models is compared, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evals.errors import EvalError
from evals.weights.matrices import matrices

Weights = Callable[..., Any]


def model() -> dict[str, Tensor]:
    sides = {"self_attn.q_proj": (12, 10), "self_attn.k_proj": (4, 10), "mlp.down_proj": (10, 20)}
    tensors = {f"layers.{i}.{module}.weight": torch.ones(shape) for i in (0, 10, 2) for module, shape in sides.items()}
    return tensors | {
        "embed_tokens.weight": torch.ones(30, 10),
        "norm.weight": torch.ones(10),
        "experts": torch.ones(2, 3, 4),
    }


def test_everything_in_which_models_differ_is_told(in_memory: Weights) -> None:
    before, after = model(), model()
    after["layers.0.self_attn.q_proj.weight"] = torch.ones(10, 12)
    del after["layers.2.mlp.down_proj.weight"]
    after["lm_head.weight"] = torch.ones(2, 2)
    with pytest.raises(EvalError) as caught:
        matrices(in_memory(before, "A"), in_memory(after, "B"))
    assert str(caught.value).splitlines() == [
        "A and B are not the same model before and after training; name two that are:",
        "  layers.0.self_attn.q_proj.weight is [12, 10] in A and [10, 12] in B",
        "  layers.2.mlp.down_proj.weight is in A and not in B",
        "  lm_head.weight is in B and not in A",
    ]
    # What is not asked for need not be there.
    found = matrices(in_memory(before), in_memory(after), ["k_*", "layers.10.*"])
    assert [(each.layer, each.module, each.shape) for each in found] == [
        (0, "k_proj", (4, 10)), (2, "k_proj", (4, 10)), (10, "q_proj", (12, 10)), (10, "k_proj", (4, 10)), (10, "down_proj", (10, 20)),
    ]  # fmt: skip
    assert found[-1].cost == 10 * 20 * 10


def test_of_many_differences_some_are_told(in_memory: Weights) -> None:
    many = {f"layers.{i}.a.weight": torch.ones(2, 2) for i in range(30)}
    with pytest.raises(EvalError, match=r"and 10 more$"):
        matrices(in_memory(many), in_memory({}))


def test_patterns_that_fit_nothing(in_memory: Weights) -> None:
    with pytest.raises(
        EvalError, match="--modules q,x: fits no matrix; there are q_proj, k_proj, down_proj, embed_tokens"
    ):
        matrices(in_memory(model()), in_memory(model()), ["q", "x"])
    with pytest.raises(EvalError, match="A and B: hold no matrices"):
        matrices(in_memory({"a": torch.ones(2)}, "A"), in_memory({}, "B"))
