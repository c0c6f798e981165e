"""`python -m launch status`: a command of its own, with a squeue that tests have written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.jobs import Event, note
from tests.unit.launch.status.run_folders import line, make_run, make_sweep


@pytest.fixture
def study(tmp_path: Path) -> Path:
    root, now = tmp_path / "study", time.time()
    make_run(root / "full", "done", step=100, started_at=now - 900, written_at=now - 60)
    make_run(root / "lora", lines=[line(s) for s in range(1, 41)], started_at=now - 900, written_at=now - 5)
    note(root / "waiting", Event(job="12_3", event="submitted"))
    make_sweep(root, {name: {"method": name} for name in ("full", "lora", "waiting", "absent")})
    return root


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def squeue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "squeue"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho '12_3|PENDING|N/A||Resources'\necho '99|RUNNING|2030-01-01T00:00:00|n1|None'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    return script


def test_piped(study: Path, squeue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["run", "state"], ["lora", "running"], ["waiting", "queued"], ["absent", "not"]]  # fmt: skip
    assert lines[2].endswith("12_3 pending  waits: Resources")
    assert lines[5:] == [
        "sweep rank-study: 4 cells: 1 running, 1 queued, 1 not started, 1 done",
        "4 runs: 1 running, 1 queued, 1 not started, 1 done",
    ]


@pytest.mark.usefixtures("no_slurm")
def test_without_slurm(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study)]) == 0
    out = capsys.readouterr().out
    assert "ago; squeue can't be asked here" in out
    assert out.splitlines()[-1].endswith("; squeue is not here, so what is queued is not known")


def test_a_squeue_that_fails(study: Path, squeue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2\nexit 1\n")
    problem = "squeue failed: slurm_load_jobs error: Socket timed out; what is queued is not known"
    assert main(["status", str(study)]) == 0
    out = capsys.readouterr().out
    assert "ago; squeue can't be asked here" in out
    assert "not in the queue" not in out
    assert out.splitlines()[-1] == f"4 runs: 1 running, 1 queued, 1 not started, 1 done; {problem}"
    assert main(["status", str(study), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["runs"]) == 4
    assert printed.err == f"{problem}\n"
    # Of runs that had no jobs it changes nothing.
    assert main(["status", str(study / "full")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 run: 1 done"


@pytest.mark.usefixtures("squeue")
def test_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(study), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {run["id"]: run["state"] for run in found["runs"]} == {
        "full": "done", "lora": "running", "waiting": "queued", "absent": "not started",
    }  # fmt: skip


@pytest.mark.usefixtures("no_slurm")
def test_in_a_terminal(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(41):
        make_run(study / f"old-{number}", "done")
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    assert main(["status", str(study)]) == 0
    out = capsys.readouterr().out
    assert "not listed (--all does): 43 runs: 1 not started, 42 done" in out
    assert "old-17" not in out
    assert main(["status", str(study), "--all"]) == 0
    assert "old-17" in capsys.readouterr().out


@pytest.mark.usefixtures("no_slurm")
def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    assert main(["status", str(tmp_path)]) == 0
    assert (
        capsys.readouterr().out
        == f"skipped: {tmp_path}/a: has checkpoints, but neither run.json nor metrics.jsonl\nno runs\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; give the folder that holds the runs"),
        (["run.json"], "run.json: is a file; give the folder that holds the runs"),
        ([".", "--watch", "0"], "--watch 0: must be a number of seconds above 0"),
        ([".", "--watch", "nan", "--optim.lr", "3"], "--optim.lr: unknown option\n3: unknown option\n--watch nan: must be a number"),
        ([".", "--watch", "5", "--json"], "--watch, --json: choose one; a program can ask again itself"),
    ],
)  # fmt: skip
def test_wrong_input(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").touch()
    assert main(["status", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_watching_ends_with_ctrl_c(study: Path) -> None:
    command = [sys.executable, "-m", "launch", "status", str(study), "--watch", "0.1"]
    root = Path(__file__).parents[4]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = 0
        while looks < 3:
            looks += process.stdout.readline().startswith("4 runs: ")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_names_and_texts_that_are_no_unicode(tmp_path: Path, no_slurm: None) -> None:
    make_run(tmp_path / "study" / os.fsdecode(b"run\xff"), "failed", error=os.fsdecode(b"no \xff"))
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "status", str(tmp_path / "study")],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "run\ufffd" in done.stdout.decode()
    assert "no \ufffd" in done.stdout.decode()
