"""Modes before, during and after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evals.scoring.eval_mode import eval_mode


def test_every_module_is_in_eval_mode_and_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[0].eval()

    def fail() -> None:
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert torch.is_grad_enabled()
