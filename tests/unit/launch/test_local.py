from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

ROOT = Path(__file__).resolve().parents[3]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


class TestWaiting:
    @pytest.mark.parametrize("code", [0, 1, 2, 85])
    def test_the_exit_code_is_the_commands(self, code: int) -> None:
        assert local.wait(python(f"raise SystemExit({code})")) == code

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda n: n.name)
    def test_a_signal_becomes_128_and_its_number(self, number: signal.Signals) -> None:
        code = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number})"
        assert local.wait(python(code)) == 128 + number

    @pytest.mark.parametrize(
        ("number", "to_whom"),
        [(signal.SIGINT, "group"), (signal.SIGTERM, "group"), (signal.SIGTERM, "parent")],
    )
    def test_an_interrupted_command_is_waited_for(self, tmp_path: Path, number: signal.Signals, to_whom: str) -> None:
        # The child takes a moment to save after Ctrl-C, which the terminal sends to the whole group.
        child = (
            "import signal, sys, time, pathlib\n"
            f"signal.signal(signal.{number.name}, lambda *_: (time.sleep(0.3),"
            " pathlib.Path('saved').touch(), sys.exit(85)))\n"
            "pathlib.Path('ready').touch()\n"
            "time.sleep(30)\n"
        )
        parent = (
            "import pathlib, sys\nfrom launch import local\n"
            "local.terminate_like_interrupt()\n"
            "try:\n"
            f"    local.wait([sys.executable, '-c', {child!r}])\n"
            "except KeyboardInterrupt:\n"
            "    print('interrupted, saved:', pathlib.Path('saved').exists())\n"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            python(parent), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        with process:
            wait_for(tmp_path / "ready", process)
            (os.killpg if to_whom == "group" else os.kill)(process.pid, number)
            output, _ = process.communicate(timeout=20)
        assert output == "interrupted, saved: True\n"
        assert process.returncode == 0


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, "it never came up"
        time.sleep(0.01)


class TestCommands:
    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """The commands that would have been run."""
        found: list[list[str]] = []
        monkeypatch.setattr(local, "wait", lambda command: found.append(list(command)) or 7)
        return found

    def test_a_module(self, commands: list[list[str]]) -> None:
        assert local.run_module("evals", "report", "here") == 7
        assert commands == [[sys.executable, "-m", "evals", "report", "here"]]

    def test_training(self, commands: list[list[str]]) -> None:
        assert local.train(Path("r.toml"), Path("zero3.json"), 3, ["--optim.lr", "2"]) == 7
        (command,) = commands
        assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
        assert command[command.index("--num_accelerators") + 1] == "3"
        assert 1024 <= int(command[command.index("--master_port") + 1]) < 65536
        script = command.index(str(ROOT / "training" / "main.py"))
        assert command[script + 1 :] == ["--ds_config", "zero3.json", "--recipe", "r.toml", "--optim.lr", "2"]
        assert Path(command[script]).is_file()


class TestEnvironment:
    def test_the_interpreters_tools_come_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/somewhere/else")
        monkeypatch.setenv("PYTHONPATH", "/mine")
        env = local.environment()
        assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/somewhere/else"]
        assert env["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]

    def test_without_a_python_path_no_empty_entry_appears(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
        assert local.environment()["PYTHONPATH"] == str(ROOT)

    def test_the_process_own_environment_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = dict(os.environ)
        local.environment()["X"] = "1"
        assert dict(os.environ) == before

    def test_deepspeed_is_told_when_there_is_no_gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)
        monkeypatch.setattr(local, "Path", lambda text: tmp_path if text == "/dev" else Path(text))
        assert local.environment()["DS_ACCELERATOR"] == "cpu"
        monkeypatch.setenv("DS_ACCELERATOR", "xpu")
        assert local.environment()["DS_ACCELERATOR"] == "xpu"
        monkeypatch.delenv("DS_ACCELERATOR")
        (tmp_path / "nvidia0").touch()
        assert "DS_ACCELERATOR" not in local.environment()


def test_ports_are_free_ones() -> None:
    assert 1024 <= local.free_port() < 65536
