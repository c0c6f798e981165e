"""`python -m evals collect`: files, looks that repeat, and what can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evals.__main__ import main
from evals.collect import command
from evals.collect.command import run_collect
from evals.errors import EvalError

FILES = {"cache.jsonl", "collected.json", "index.html", "table.csv", "table.parquet"}


def test_every_form_is_written(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(study), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "a.json")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    out = capsys.readouterr().out
    assert "monteclora" in out
    assert "4 runs (4 done), 8 points" in out
    assert out.rstrip().endswith(f"page: {tmp_path}/out/index.html")
    document = json.loads((tmp_path / "out" / "collected.json").read_text())
    assert len(document["runs"]) == 4
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "out" / "collected.json").read_bytes()
    assert "monteclora" in (tmp_path / "out" / "index.html").read_text()


def test_results_beside_the_runs_are_no_runs(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["collect", str(study)]) == 0
        assert "4 runs" in capsys.readouterr().out
    assert {path.name for path in (study / "collected").iterdir()} == FILES


def test_skipped_files_are_told(study: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(study, "torn", "lora") / "evals" / "100.json").write_text('{"ta')
    assert main(["collect", str(study)]) == 0
    assert f"skipped: {study}/torn/evals/100.json: not JSON" in capsys.readouterr().out


def test_a_folder_without_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(tmp_path)]) == 0
    assert f"no run was found in {tmp_path}: no folder there has a run.json" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_watching_looks_again_and_writes_what_changed(
    study: Path, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = study / "collected" / "index.html"
    times: list[int] = []

    def sleep(seconds: float) -> None:
        assert seconds == 5
        times.append(page.stat().st_mtime_ns if page.exists() else 0)
        if len(times) == 2:  # between the second and the third look
            make_run(study, "late", "lora")
        elif len(times) == 4:
            study.rename(study.with_name("away"))
        elif len(times) == 5:
            study.with_name("away").rename(study)
        elif len(times) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    console = Console(width=120)
    with console.capture() as capture, pytest.raises(KeyboardInterrupt):
        run_collect([study], console, watch=5)
    text = capture.get()
    assert text.count("looking again every 5 s; Ctrl-C ends") == 1
    assert [line.split()[0] for line in text.splitlines() if " runs (" in line] == ["4", "5"], (
        "shown when something changed"
    )
    assert f"{study}: no such folder" in text
    assert times[0] == times[1] != times[2] == times[3]


def test_interrupting_ends_cleanly(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupted)
    assert main(["collect", str(study), "--watch"]) == 0
    assert "looking again every 30 s" in capsys.readouterr().out
    monkeypatch.setattr(command, "collect", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["collect", str(study)])
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30min", 1800), ("1.5h", 5400), ("7", 7)])
def test_times(text: str, seconds: float, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(command, "run_collect", lambda *_, stale, **__: seen.append(stale))
    assert main(["collect", str(study), "--stale", text]) == 0
    assert seen == [seconds]


def test_wrong_numbers_are_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(study), "--watch", "-1", "--stale", "0s"]) == 2
    assert "--watch -1: must be positive; --stale 0: must be positive" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["collect", str(study), "--stale", "soon"])
    assert "'soon' is no time; write a number and s, min or h" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_says_what_to_do(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvalError, match=r"cannot be written.*; give a folder of your own with --out"):
        run_collect([study], Console(), out=tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root(study: Path) -> None:
    study.chmod(0o555)
    try:
        with pytest.raises(EvalError, match="--out"):
            run_collect([study], Console())
    finally:
        study.chmod(0o755)


def test_what_cannot_be_read_is_not_called_unwritable(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(*_: object, **__: object) -> None:
        raise PermissionError(13, "Denied", "run.json")

    monkeypatch.setattr(command, "collect", collect)
    with pytest.raises(PermissionError):
        run_collect([study], Console(), out=tmp_path / "out")


def test_watching_goes_on_after_a_look_that_storage_refused(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    looks, real = iter((None, PermissionError(13, "Denied", "run.json"), KeyboardInterrupt())), command.collect

    def collect(*arguments: Any, **named: Any) -> dict[str, Any]:
        if (error := next(looks)) is not None:
            raise error
        return real(*arguments, **named)

    monkeypatch.setattr(command, "collect", collect)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    console = Console(width=120)
    with console.capture() as capture, pytest.raises(KeyboardInterrupt):
        run_collect([study], console, out=tmp_path / "out", watch=5)
    assert "Denied: 'run.json'" in capture.get()


@pytest.mark.parametrize("name", ["cache.jsonl", "table.csv"])
def test_a_file_that_cannot_be_written_is_named(name: str, study: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(EvalError, match=rf"{name}.*: cannot be written .*; give a folder of your own with --out"):
        run_collect([study], Console(), out=tmp_path / "out")
