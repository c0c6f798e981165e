"""Finding runs in trees with everything that shared storage has: links, hidden folders, files that go away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evals.collect import walk as walking
from evals.collect.walk import walk
from evals.errors import EvalError
from tests.permissions import locked


def run_at(path: Path, *evals: str) -> Path:
    (path / "evals").mkdir(parents=True)
    (path / "run.json").write_text("{}")
    for name in evals:
        (path / "evals" / name).write_text("{}")
    return path


def ids(root: Path, *others: Path) -> list[str]:
    return [run.id for run in walk([root, *others])[0]]


def test_runs_at_any_depth_but_not_in_runs(tmp_path: Path) -> None:
    run_at(tmp_path / "b")
    run_at(tmp_path / "study" / "deep" / "a")
    run_at(tmp_path / "b" / "checkpoints" / "inner")
    run_at(tmp_path / "b" / "inner")
    (tmp_path / "only_metrics").mkdir()
    (tmp_path / "only_metrics" / "metrics.jsonl").touch()
    assert ids(tmp_path) == ["b", "only_metrics", "study/deep/a"]
    assert walk([tmp_path])[1] == []


def test_a_root_may_be_a_run(tmp_path: Path) -> None:
    assert ids(run_at(tmp_path / "one")) == ["one"]


def test_files_of_evaluations_in_the_order_in_which_they_count(tmp_path: Path) -> None:
    run = run_at(
        tmp_path / "a", "100.json", "0.json", "100.code.json", "100.arc.json", "x.json", "7.json.tmp", ".8.json"
    )
    (run / "weights").mkdir()
    for name in ("rank-100.json", "rank-x.json", "rank-9.json.tmp"):
        (run / "weights" / name).write_text("12")
    (found,) = walk([tmp_path])[0]
    assert {step: list(files) for step, files in found.evals.items()} == {
        0: ["0.json"],
        100: ["100.json", "100.arc.json", "100.code.json"],
    }
    assert found.ranks[100]["rank-100.json"].size == 2
    assert list(found.ranks) == [100]


def test_updated_is_the_newest_of_records_and_evaluations(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a", "0.json")
    for path, when in ((run / "run.json", 100), (run / "evals" / "0.json", 300), (run, 900)):
        os.utime(path, (when, when))
    (found,) = walk([tmp_path])[0]
    assert found.updated_at == 300


def test_links_are_not_followed_and_those_that_lead_elsewhere_are_reported(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", run_at(tmp_path / "elsewhere" / "x")
    run = run_at(root / "a")
    (root / "latest").symlink_to(run)
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(elsewhere)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    found, skipped, _ = walk([root])
    assert [run.id for run in found] == ["a"]
    reasons = {Path(each.path).name: each.reason for each in skipped}
    assert reasons == {
        "loop": f"a link to {root}, which it is in: a loop, not followed",
        "out": f"a link to {elsewhere}, outside {root}: not followed; give it as another ROOT",
    }


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    run_at(tmp_path / "there" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert ids(tmp_path / "link") == ["a"]


def test_several_roots(tmp_path: Path) -> None:
    for name in ("x/runs/a", "y/runs/a", "z/b"):
        run_at(tmp_path / name)
    assert ids(tmp_path / "y", tmp_path / "z") == ["y/runs/a", "z/b"]
    twins = ids(tmp_path / "x" / "runs", tmp_path / "y" / "runs")
    assert [name.removeprefix(str(tmp_path).lstrip("/")) for name in twins] == ["/x/runs/a", "/y/runs/a"]
    # One root in another is that one; so is the same root twice.
    assert ids(tmp_path, tmp_path / "z", tmp_path) == ["x/runs/a", "y/runs/a", "z/b"]


def test_every_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"/no: no such folder; .*/never: no such folder"):
        walk([tmp_path / "no", tmp_path, tmp_path / "never"])


def test_hidden_folders_and_folders_without_a_record(tmp_path: Path) -> None:
    run_at(tmp_path / ".trash" / "a")
    (tmp_path / "half" / "checkpoints" / "100").mkdir(parents=True)
    found, skipped, _ = walk([tmp_path])
    assert found == []
    assert skipped == [(str(tmp_path / "half"), "has checkpoints, but neither run.json nor metrics.jsonl")]


def test_what_vanishes_or_is_forbidden_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_at(tmp_path / "a")
    run_at(tmp_path / "gone" / "b")
    run_at(tmp_path / "secret" / "c")
    real = os.scandir

    def scandir(path: Path) -> object:
        for name, error in (("gone", FileNotFoundError(2, "No such file")), ("secret", PermissionError(13, "Denied"))):
            if Path(path).name == name:
                raise error
        return real(path)

    monkeypatch.setattr(walking.os, "scandir", scandir)
    found, skipped, _ = walk([tmp_path])
    assert [run.id for run in found] == ["a"]
    assert [(Path(path).name, reason) for path, reason in skipped] == [
        ("gone", "vanished while it was looked at"),
        ("secret", "cannot be listed (Denied)"),
    ]


def test_links_into_a_folder_that_may_not_be_entered_are_skipped(tmp_path: Path) -> None:
    run_at(tmp_path / "root" / "a")
    private = tmp_path / "private"
    private.mkdir()
    for name in ("link", "sweep.json"):
        (tmp_path / "root" / name).symlink_to(private / "x")
    with locked(private):
        found, skipped, sweeps = walk([tmp_path / "root"])
        with pytest.raises(
            EvalError, match=r"/private/x: can't be looked at: Permission denied; .*/no: no such folder"
        ):
            walk([private / "x", tmp_path / "no"])
    assert [run.id for run in found] == ["a"]
    assert sweeps == []
    assert [(Path(path).name, reason) for path, reason in skipped] == [
        (name, f"a link to {private / 'x'}, which can't be looked at (Permission denied)")
        for name in ("link", "sweep.json")
    ]
