from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import MonitorConfig
from training.watch.profiling import Profiler


def run(profiler: Profiler, first: int, last: int) -> None:
    for step in range(first, last):
        profiler.step_began(step, is_asked=profiler.wants())
        torch.ones(step + 2, step + 2) @ torch.ones(step + 2, 3)
        profiler.step_ended(step)


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


def products(path: Path) -> int:
    return sum(event.get("name") == "aten::mm" for event in events(path))


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "profile").glob("*")) if (run_dir / "profile").exists() else []


def test_no_window_without_being_asked(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, MonitorConfig(), rank=0)
    run(profiler, 0, 3)
    profiler.close()
    assert list(tmp_path.iterdir()) == []


def test_the_window_of_the_recipe(tmp_path: Path) -> None:
    run(Profiler(tmp_path, MonitorConfig(profile_first_step=2, profile_steps=3), rank=0), 0, 8)
    assert files(tmp_path) == ["step2-rank0.json.gz", "step2.txt"]
    assert products(tmp_path / "profile" / "step2-rank0.json.gz") == 3
    table = (tmp_path / "profile" / "step2.txt").read_text()
    assert "aten::mm" in table
    assert "Self CPU" in table


def test_a_run_resumed_after_its_beginning_has_no_window(tmp_path: Path) -> None:
    run(Profiler(tmp_path, MonitorConfig(profile_first_step=2), rank=0), 3, 6)
    assert files(tmp_path) == []


def test_other_ranks_write_their_trace_only(tmp_path: Path) -> None:
    run(Profiler(tmp_path, MonitorConfig(profile_first_step=0, profile_steps=1), rank=3), 0, 2)
    assert files(tmp_path) == ["step0-rank3.json.gz"]


class TestAskedByAFile:
    def test_each_request_is_answered_once(self, tmp_path: Path) -> None:
        profiler = Profiler(tmp_path, MonitorConfig(profile_steps=2), rank=0)
        run(profiler, 0, 4)
        request = tmp_path / "PROFILE"
        request.touch()
        assert profiler.wants()
        run(profiler, 4, 5)
        assert not profiler.wants(), "it is being answered"
        assert request.exists()
        run(profiler, 5, 9)
        assert not request.exists()
        request.touch()
        run(profiler, 9, 12)
        assert files(tmp_path) == ["step4-rank0.json.gz", "step4.txt", "step9-rank0.json.gz", "step9.txt"]
        assert products(tmp_path / "profile" / "step9-rank0.json.gz") == 2

    def test_only_rank_0_looks(self, tmp_path: Path) -> None:
        (tmp_path / "PROFILE").touch()
        profiler = Profiler(tmp_path, MonitorConfig(profile_steps=1), rank=1)
        assert not profiler.wants()
        profiler.step_began(7, is_asked=True)
        profiler.step_ended(7)
        assert files(tmp_path) == ["step7-rank1.json.gz"]
        assert (tmp_path / "PROFILE").exists(), "rank 0 removes it"

    def test_a_request_that_stays_is_answered_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "PROFILE").touch()
        profiler = Profiler(tmp_path, MonitorConfig(profile_steps=1), rank=0)

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        run(profiler, 0, 3)
        assert files(tmp_path) == ["step0-rank0.json.gz", "step0.txt"]
        assert "can't be removed and will not be heeded again" in caplog.text


def test_a_run_that_ends_within_the_window_writes_what_there_is(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, MonitorConfig(profile_first_step=1, profile_steps=10), rank=0)
    run(profiler, 0, 4)
    assert files(tmp_path) == []
    profiler.close()
    profiler.close()
    assert products(tmp_path / "profile" / "step1-rank0.json.gz") == 3


def test_a_disk_that_refuses_the_trace_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    (tmp_path / "PROFILE").touch()
    profiler = Profiler(tmp_path, MonitorConfig(profile_steps=1), rank=0)
    with caplog.at_level(logging.ERROR):
        run(profiler, 0, 2)
    assert "the profile of step 0 could not be written" in caplog.text
    assert not (tmp_path / "PROFILE").exists()


def test_a_run_directory_that_is_away_is_not_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    profiler = Profiler(run_dir, MonitorConfig(profile_first_step=0, profile_steps=1), rank=0)
    with caplog.at_level(logging.ERROR):
        run(profiler, 0, 2)
    assert "the profile of step 0 could not be written" in caplog.text
    assert not run_dir.exists()


def test_nothing_is_left_of_a_trace_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", full)
    run(Profiler(tmp_path, MonitorConfig(profile_first_step=0, profile_steps=1), rank=0), 0, 2)
    assert list((tmp_path / "profile").iterdir()) == []
