"""The benchmark of the loss head: contenders take turns."""

from __future__ import annotations

import pytest
import torch

from benchmarks import loss_head
from benchmarks.loss_head import Case, Step


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def make(name: str) -> Step:
        def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
            order.append(name)
            return torch.zeros(()), []

        return step

    monkeypatch.setattr(loss_head, "CONTENDERS", {name: lambda case, name=name: make(name) for name in ("a", "b")})
    case = Case(hidden=8, tokens=4, masked=0.5, is_trained=True, device=torch.device("cpu"), dtype=torch.float32)
    found = loss_head.measure_seconds(case, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert {name: [len(times) for times in clocks.values()] for name, clocks in found.items()} == {
        "a": [2, 2],
        "b": [2, 2],
    }
