"""What slurm/job.sh asks: may the job begin, is it to come back."""

from __future__ import annotations

import fcntl
import json
import re
import socket
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.job.command import free_port_of
from launch.job.settings import setting_problems
from launch.jobs import Event, events, note
from tests.permissions import locked
from tests.ranks import ROOT
from training.world import slurm_port

JSON = str(ROOT / "ds_configs" / "zero3_cpu.json")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "431", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in (
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_STEP_NODELIST",
        "PREFLIGHT",
        "MAX_REQUEUES",
        "STOP_BEFORE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXCLUDE_FAILING", "yes")
    monkeypatch.setenv("RETRIES", "2")


class TestBegin:
    def test_the_run_directory_and_a_port(self, tiny_recipe: Path, tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        run = tmp_path / "run"
        assert main(["job", "begin", str(tiny_recipe), "--ds_config", JSON, "--ranks", "2", "--run.dir", str(run)]) == 0
        assert capsys.readouterr().out == f"RUN={run}\nMASTER_PORT={12000 + 431}\n"
        (event,) = events(run)
        assert (event.job, event.event, event.restart, event.nodes) == ("431", "started", 1, ("n1", "n2"))

    def test_everything_wrong_at_once(self, tiny_recipe: Path, tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        broken = tmp_path / "ds.json"
        broken.write_text("{")
        arguments = ["--ds_config", str(broken), "--ranks", "3", "--run.dir", str(tmp_path / "run"), "--optim.lrr", "3"]
        assert main(["job", "begin", str(tiny_recipe), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "3 problems in the configuration; nothing was started" in err
        assert str(broken) in err
        assert "--optim.lrr (command line): unknown setting; did you mean optim.lr?" in err
        assert "must be divisible by the world size, which is 3" in err
        assert not (tmp_path / "run").exists()

    def test_settings_of_the_job(self, tiny_recipe: Path, tmp_path: Path, job: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        monkeypatch.setenv("MAX_REQUEUES", "unlimited")
        monkeypatch.setenv("STOP_BEFORE", "120")
        assert (
            main(
                [
                    "job",
                    "begin",
                    str(tiny_recipe),
                    "--ds_config",
                    JSON,
                    "--ranks",
                    "2",
                    "--run.dir",
                    str(tmp_path / "run"),
                ]
            )
            == 2
        )
        err = capsys.readouterr().err
        assert "2 problems in the configuration; nothing was started" in err
        assert "MAX_REQUEUES=unlimited: must be a whole number of 0 or more" in err
        assert 'STOP_BEFORE=120: is no time; write a number and its unit, such as "90s"' in err

    def test_another_job_of_the_run(self, tiny_recipe: Path, tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        run = tmp_path / "run"
        arguments = ["job", "begin", str(tiny_recipe), "--ds_config", JSON, "--ranks", "2", "--run.dir", str(run)]
        assert main(arguments) == 0
        with (run / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            capsys.readouterr()
            assert main(arguments) == 2
            assert capsys.readouterr() == ("", f"{run}: another start of this run is going on\n")
        assert len(events(run)) == 1, "what that one does is not confused with this one"
        assert main(arguments) == 0

    def test_done_already(
        self, tiny_recipe: Path, tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        arguments = ["job", "begin", str(tiny_recipe), "--ds_config", JSON, "--ranks", "2", "--run.dir", str(run)]
        assert main(arguments) == 0
        (run / "run.json").write_text(json.dumps({"status": "done"}))
        capsys.readouterr()
        assert main(arguments) == 10
        assert capsys.readouterr() == ("", f"{run} is done already\n")
        assert main([*arguments, "--resume", "somewhere/checkpoints/5"]) == 0, "it is told to go back"

    def test_a_directory_that_cannot_be_written(self, tiny_recipe: Path, tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        (tmp_path / "slurm").write_text("a file where a folder should be")
        (tmp_path / "run.json").write_text(json.dumps({"status": "not started"}))
        assert (
            main(["job", "begin", str(tiny_recipe), "--ds_config", JSON, "--ranks", "2", "--run.dir", str(tmp_path)])
            == 1
        )
        assert f"{tmp_path / 'slurm'} can't be read or written: File exists" in capsys.readouterr().err

    def test_a_path_that_may_not_be_looked_at(self, tiny_recipe: Path, tmp_path: Path, job: None, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        private = tmp_path / "private"
        private.mkdir()
        for name in ("data.tokenizer", "run.dir"):
            with locked(private):
                assert main(["job", "begin", str(tiny_recipe), "--ranks", "2", f"--{name}", f"{private}/x"]) == 2
            assert f"{private}/x can't be looked at: Permission denied" in capsys.readouterr().err

    def test_a_taken_port(self) -> None:
        own = slurm_port(431)
        with socket.socket() as other:
            other.bind(("", own))
            other.listen()
            port = free_port_of(431)
        assert port != own
        assert abs(port - own) > 100, "not what the jobs submitted next to it will take"
        assert free_port_of(431) == own


class TestEnd:
    def end(self, run: Path, *options: str) -> int:
        return main(["job", "end", str(run), *options])

    @pytest.fixture
    def run(self, tmp_path: Path, job: None) -> Path:
        note(tmp_path, Event(job="431", event="started", step=0))
        (tmp_path / "run.json").write_text(json.dumps({"status": "preempted", "stopped_by": "SIGUSR1", "step": 7}))
        return tmp_path

    def test_requeued(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.end(run, "--code", "85", "--time-is-up") == 75
        message = "stopped at step 7 before the wall time, everything saved; requeued (2 of at most 50)"
        assert capsys.readouterr().out == message + "\n"
        assert json.loads((run / "run.json").read_text())["job"]["message"] == message
        assert events(run)[-1] == Event(
            job="431",
            event="requeued",
            message=message,
            code=85,
            restart=1,
            nodes=("n1", "n2"),
            step=7,
            at=events(run)[-1].at,
        )

    def test_requeued_without_a_node(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        failing = tmp_path / "failing"

        def end(nodes: str = "n2\n") -> int:
            failing.write_text(nodes)
            code = self.end(run, "--code", "1", "--preflight", "--failing", str(failing))
            assert not failing.exists()
            return code

        assert end() == 76
        assert (run / "slurm" / "excluded-431").read_text() == "n2\n"
        assert events(run)[-1].is_preflight
        assert end("") == 0
        monkeypatch.setenv("EXCLUDE_FAILING", "no")
        assert end() == 0
        monkeypatch.setenv("EXCLUDE_FAILING", "yes")
        monkeypatch.setenv("PREFLIGHT", "only")
        assert end() == 0
        assert events(run)[-1].message == "preflight failed on n2; nothing was started"

    def test_limits(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAX_REQUEUES", "1")
        assert self.end(run, "--code", "85", "--time-is-up") == 0
        assert "the limit of 1 requeues is reached" in events(run)[-1].message
        monkeypatch.setenv("MAX_REQUEUES", "2")
        assert self.end(run, "--code", "85", "--preempted") == 75
        assert events(run)[-1].message == "preempted at step 7, everything saved; requeued (2 of at most 2)"

    def test_failures(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run / "run.json").write_text(json.dumps({"status": "failed", "error": "rank 1: no memory", "step": 7}))
        codes = [self.end(run, "--code", "1") for _ in range(3)]
        assert codes == [75, 75, 0]
        assert capsys.readouterr().out.splitlines()[-1] == (
            "failed with exit code 1: rank 1: no memory (and 2 times before); the last checkpoint is kept"
        )

    def test_an_end_that_needs_no_words(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.end(run, "--code", "0") == 0
        assert capsys.readouterr().out == ""
        assert events(run)[-1].event == "ended"

    @pytest.mark.parametrize("step", ["x", None, [3], {}])
    def test_a_step_that_is_none_keeps_no_job_from_its_end(self, run: Path, step: object) -> None:
        (run / "run.json").write_text(json.dumps({"status": "failed", "error": "e", "step": step}))
        assert self.end(run, "--code", "1") == 75
        assert (events(run)[-1].event, events(run)[-1].step) == ("requeued", 0)

    @pytest.mark.parametrize("text", [["x"], 3, {}])
    def test_a_reason_that_is_no_text_keeps_no_job_from_its_end(self, run: Path, text: object) -> None:
        (run / "run.json").write_text(json.dumps({"status": "failed", "error": text, "step": 7}))
        assert self.end(run, "--code", "1") == 75
        assert events(run)[-1].message == "failed with exit code 1; retry 1 of 2; requeued (2 of at most 50)"
        (run / "run.json").write_text(json.dumps({"status": "preempted", "stopped_by": text, "step": 7}))
        assert self.end(run, "--code", "85") == 0
        assert events(run)[-1].message == "stopped by request at step 7, everything saved; submit it again to go on"

    def test_events_that_cannot_be_read_keep_no_job_from_its_end(self, run: Path, tmp_path: Path) -> None:
        (run / "slurm" / "jobs.jsonl").write_bytes(b"\xff{")
        assert self.end(run, "--code", "85", "--time-is-up") == 75
        failing = tmp_path / "failing"
        failing.write_bytes(b"n2 \xff")
        assert self.end(run, "--code", "1", "--preflight", "--failing", str(failing)) == 76

    def test_refused(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert (
            main(["job", "refused", str(run), "--code", "85", "--reason", "slurm_requeue error:\n Requested operation"])
            == 0
        )
        message = "not requeued, Slurm refused: slurm_requeue error: Requested operation; submit it again to go on"
        assert capsys.readouterr().out == message + "\n"
        assert (events(run)[-1].event, events(run)[-1].message) == ("ended", message)


def test_the_base_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"model": {"base": "/models/base"}}}))
    assert main(["job", "base", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "/models/base\n"
    for content in (
        {"config": {"model": {"base": None}}},
        {"status": "not started"},
        {"config": {"model": 3}},
        {"config": []},
    ):
        (tmp_path / "run.json").write_text(json.dumps(content))
        assert main(["job", "base", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"{tmp_path}: names no base in its run.json, so there is no step 0 to score\n"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RETRIES", "-1", "must be a whole number of 0 or more"),
        ("PREFLIGHT", "No", "must be yes, no or only"),
        ("EXCLUDE_FAILING", "true", "must be yes or no"),
        ("STOP_SIGNAL", "KILL", "must be USR1, TERM or INT"),
        ("PREFLIGHT_LIMIT", "0", "must be a number of seconds"),
        ("STOP_BEFORE", "soon", "is no time; write a number and its unit"),
    ],
)
def test_settings(name: str, value: str, message: str) -> None:
    (problem,) = setting_problems({name: value, "HOME": "/x"})
    assert problem.startswith(f"{name}={value}: {message}")


def test_the_settings_of_the_script_are_all_right() -> None:
    text = (ROOT / "slurm" / "job.sh").read_text()
    values = dict(re.findall(r'^: "\$\{(\w+):=([^$"]*)\}"', text, re.MULTILINE))
    assert {"MAX_REQUEUES", "RETRIES", "PREFLIGHT", "STOP_BEFORE"} <= set(values)
    assert setting_problems(values) == []
