from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch.demo
from launch.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


class TestPlan:
    @pytest.mark.parametrize(
        ("more", "line"),
        [
            ((), None), (("--hidden_key.compensation", "none"), None),
            (("--hidden_key.enabled", "true"), "HiddenKey: 2 forward and 1 backward pass(es) over every row."),
        ],
    )  # fmt: skip
    def test_the_passes_of_hidden_key(
        self, recipe: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], line: str | None
    ) -> None:
        assert main(["plan", str(recipe), "--ranks", "2", "--model.base", "none", *more]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [text for text in printed if "HiddenKey" in text] == ([] if line is None else [line])

    def test_a_wrong_recipe(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", str(recipe), "--ranks", "5", "--optim.lr", "-1"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "2 problems in the configuration" in printed.err
        assert "optim.lr = -1.0 (command line): must be greater than 0" in printed.err
        assert "must be divisible by the world size, which is 5" in printed.err

    @pytest.mark.parametrize("ranks", ["0", "-1"])
    def test_no_ranks(self, recipe: Path, capsys: pytest.CaptureFixture[str], ranks: str) -> None:
        assert main(["plan", str(recipe), "--ranks", ranks]) == 2
        assert f"--ranks {ranks}: must be at least 1" in capsys.readouterr().err


class TestArguments:
    @pytest.mark.parametrize("ranks", ["0", "-1"])
    def test_no_ranks(self, capsys: pytest.CaptureFixture[str], ranks: str) -> None:
        assert main(["demo", "--ranks", ranks]) == 2
        assert f"--ranks {ranks}: must be at least 1" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["nonsense"], ["plan"]])
    def test_no_command(self, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: python -m launch" in capsys.readouterr().err

    def test_the_demos_arguments(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        calls: list[Any] = []
        monkeypatch.setattr(launch.demo, "run_demo", lambda out, **options: calls.append((out, options)) or 3)
        monkeypatch.chdir(tmp_path)
        assert main(["demo"]) == 3
        assert main(["demo", "--out", "x", "--ranks", "1", "--until", "base", "--train.steps", "-5"]) == 3
        assert calls == [
            (tmp_path / "runs/demo", {"ranks": 2, "until": None, "overrides": []}),
            (tmp_path / "x", {"ranks": 1, "until": "base", "overrides": ["--train.steps", "-5"]}),
        ]


def test_it_runs_as_a_module_from_anywhere(recipe: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch", "plan", str(recipe), "--model.base", "none", "--ranks", "2"]
    done = subprocess.run(command, env=env, cwd=recipe.parent, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 steps, 15,360 tokens" in done.stdout


@pytest.mark.parametrize("arguments", [["plan", "recipe.toml"], ["demo"]])
def test_without_the_projects_packages(tmp_path: Path, arguments: list[str]) -> None:
    # What a Python of the system, without any packages, sees.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-m", "launch", *arguments]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"rich is not installed for {sys.executable}: run `make setup` and use .venv/bin/python"
    )
    assert "`pip install -e .`" in done.stderr


def test_planning_does_not_load_the_demo() -> None:
    code = "import sys\nfrom launch.__main__ import main\ntry: main(['plan', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('launch.demo' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60).returncode == 0


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "plan" in printed
    assert "demo" in printed


@pytest.mark.parametrize(
    ("cells", "arguments"), [(2, ["sweep", "sweep.toml", "--list"]), (999, ["sweep", "sweep.toml", "--list"]), (2, ["status", "."])]
)  # fmt: skip
def test_nobody_reads_it_to_the_end(recipe: Path, cells: int, arguments: list[str]) -> None:
    """As `| head` does it: what is little fails when it is flushed, much when it is printed, and rich by itself."""
    grid = f'[grid]\n"run.seed" = {list(range(cells))}\n'
    (recipe.parent / "sweep.toml").write_text(f'recipe = "{recipe}"\nroot = "study"\n{grid}')
    command, env = [sys.executable, "-m", "launch", *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command, cwd=recipe.parent, env=env, stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
