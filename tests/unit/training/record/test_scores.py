from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.record.scores import Scores

TASKS = {"old": {"score": 0.5}}


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "evals").iterdir())


def test_scores_are_written_and_found(tmp_path: Path) -> None:
    scores = Scores(tmp_path)
    assert not scores.has(8)
    scores.add(8, TASKS, 1.5)
    assert scores.has(8), "also while they wait"
    assert str(scores) == "evals/8.json"
    scores.flush()
    assert scores.has(8)
    found = json.loads((tmp_path / "evals" / "8.json").read_text())
    assert (found["step"], found["seconds"], found["tasks"]) == (8, 1.5, TASKS)


def test_a_directory_that_is_away_is_not_made_anew_and_scores_wait(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    scores = Scores(run)
    scores.add(8, TASKS, 1.0)
    scores.flush()
    away = run.rename(tmp_path / "away")
    scores.add(16, TASKS, 1.0)
    scores.add(24, TASKS, 1.0)
    scores.drop(16)
    with pytest.raises(FileNotFoundError):
        scores.flush()
    assert not run.exists()
    assert (scores.has(8), scores.has(16), scores.has(24)) == (False, True, False)
    away.rename(run)
    scores.flush()
    assert steps(run) == ["16.json", "8.json"]


def test_what_is_to_be_dropped_counts_no_more_though_it_is_still_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    scores = Scores(run)
    run.mkdir()
    for step in (8, 16, 24):
        scores.add(step, TASKS, 1.0)
    scores.flush()
    away = run.rename(tmp_path / "away")
    scores.drop(16)
    scores.drop(8)
    scores.drop(20)
    assert str(scores) == "that scores after step 8 are no more"
    # Step 16 is reached again, and scored again.
    scores.add(16, {"old": {"score": 0.75}}, 1.0)
    away.rename(run)
    assert (scores.has(8), scores.has(16), scores.has(24)) == (True, True, False)
    scores.flush()
    assert steps(run) == ["16.json", "8.json"]
    assert json.loads((run / "evals" / "16.json").read_text())["tasks"]["old"]["score"] == 0.75


def test_nothing_is_left_of_an_attempt_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Scores(tmp_path)
    scores.add(8, TASKS, 1.0)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("evals.results.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            scores.flush()
        assert steps(tmp_path) == []
    scores.flush()
    assert steps(tmp_path) == ["8.json"]
