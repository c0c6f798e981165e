"""A recipe comes back from a manifest as it went in, and from run.json where a run began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.minimal import minimal_config
from training.checkpoint.manifest import Checkpoint
from training.checkpoint.recorded import first_step, recorded_config
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


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("checkpoint", "keep_at", "5 steps"), ("checkpoint", "keep_at", [3]), ("train", "steps", "20"), ("train", "steps", True),
        ("optim", "kind", "sgd"), ("optim", "lr", None), ("run", "dir", 3), ("adapter", "rank_pattern", [["q", 4]]),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(tmp_path: Path, section: str, name: str, value: object) -> None:
    written = to_dict(minimal_config(tmp_path))
    written[section][name] = value
    with pytest.raises(
        CheckpointError, match=rf"the recipe in its manifest can't be read \(config.{section}.{name} is "
    ):
        recorded_config(checkpoint(written))


class TestWhereARunBegan:
    def entry(self, root: Path, step: int) -> dict[str, Any]:
        return {"path": str(root / str(step)), "given": "x", "step": step, "sha256": "ab"}

    def test_at_the_beginning(self, tmp_path: Path) -> None:
        for record in ({}, {"origins": [], "branched_from": None}):
            assert first_step(record, tmp_path) == 0

    def test_what_it_was_given_last_replaces_its_branch_point(self, tmp_path: Path) -> None:
        own, other = tmp_path / "run" / "checkpoints", tmp_path / "other" / "checkpoints"
        record: dict[str, Any] = {"branched_from": self.entry(other, 30)}
        assert first_step(record, own) == 30
        record["origins"] = [self.entry(other, 20), self.entry(other, 10)]
        assert first_step(record, own) == 10

    def test_going_back_to_one_of_its_own_is_no_beginning(self, tmp_path: Path) -> None:
        own, other = tmp_path / "run" / "checkpoints", tmp_path / "other" / "checkpoints"
        own.mkdir(parents=True)
        (tmp_path / "link").symlink_to(own)
        for root in (own, tmp_path / "link"):
            record = {"origins": [self.entry(other, 20), self.entry(root, 40)]}
            assert first_step(record, own) == first_step(record, tmp_path / "link") == 20
            assert first_step({"origins": [self.entry(root, 40)]}, own) == 0
