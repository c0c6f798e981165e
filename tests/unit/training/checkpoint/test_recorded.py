"""A recipe comes back from a manifest as it went in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.minimal import minimal_config
from training.checkpoint.manifest import Checkpoint
from training.checkpoint.recorded import recorded_config
from training.config import to_dict
from training.errors import CheckpointError

OVERRIDES = (
    "--adapter.kind", "monteclora", "--adapter.modules_to_save", "lm_head,*norm", "--adapter.rank_pattern", '{"*.mlp.*" = 64}',
    "--train.hang_timeout", "none", "--optim.lr_ratio", '{"*.lora_B" = 4.0}', "--checkpoint.keep_at", "5 steps",
    "--hidden_key.enabled", "true", "--data.sources.text.weight", "2.5",
)  # fmt: skip


def checkpoint(config: object) -> Checkpoint:
    return Checkpoint(path=Path("run/checkpoints/3"), manifest={"config": config})


@pytest.mark.parametrize("overrides", [(), OVERRIDES])
def test_it_is_the_same(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = minimal_config(tmp_path, *overrides)
    assert recorded_config(checkpoint(to_dict(config))) == config


def test_settings_of_other_versions_are_left_out(tmp_path: Path) -> None:
    config = minimal_config(tmp_path)
    written = to_dict(config)
    written["train"]["from_the_future"] = [1]
    written["future"] = {"section": True}
    del written["optim"]["beta1"]
    assert recorded_config(checkpoint(written)) == config


@pytest.mark.parametrize("config", [{}, {"data": 3}, {"data": {"sources": []}}, 5])
def test_what_is_none_is_refused(config: object) -> None:
    with pytest.raises(CheckpointError, match=r"^run/checkpoints/3: the recipe in its manifest can't be read \("):
        recorded_config(checkpoint(config))
