from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.training.minimal import minimal_config
from training import saving
from training.errors import CheckpointError
from training.progress import Progress


@pytest.fixture
def saver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> saving.Saver:
    """A saver of one rank whose engine is never asked for anything."""
    monkeypatch.setattr(saving, "from_rank_0", lambda compute, world: compute())
    unused: Any = SimpleNamespace(world=None, say=lambda text: None)
    return saving.Saver(unused, unused, minimal_config(tmp_path), unused, unused)


def test_counts_of_all_ranks_are_summed() -> None:
    ranks = [{"code": {"bad_records": 2, "cut": 1}, "prose": {}}, {"code": {"bad_records": 3}, "prose": {"cut": 4}}]
    assert saving.sum_counts(ranks) == {"code": {"bad_records": 5, "cut": 1}, "prose": {"cut": 4}}
    assert saving.sum_counts([]) == {}


def test_nothing_to_resume(saver: saving.Saver) -> None:
    assert saver.resume(Progress()) is False


def test_damage_everywhere_is_refused_and_not_taken_for_a_new_run(saver: saving.Saver) -> None:
    (saver.root / "8").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        saver.resume(Progress())
    assert str(caught.value) == (
        f"{saver.root}: every checkpoint is damaged; remove the folder to start over at step 0"
    )
