"""The scripts of slurm/: what Slurm reads of them, and what a shell would trip over."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ranks import ROOT

SCRIPTS = sorted(path for path in (ROOT / "slurm").glob("*.sh") if path.name != "job.sh")


def test_there_are_some() -> None:
    assert [path.stem for path in SCRIPTS] == [
        "cpt_llama7b",
        "demo_cpu",
        "eval_llama7b",
        "ift_llama7b",
        "sweep_llama7b",
    ]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS), "slurm/job.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
class TestScript:
    def test_options_come_before_commands(self, path: Path) -> None:
        # sbatch reads no further than the first line that is neither empty nor a comment.
        lines = path.read_text().splitlines()
        first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
        assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
        assert os.access(path, os.X_OK)

    def test_it_is_short(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        assert len(lines) <= 50
        assert max(map(len, lines)) <= 150

    def test_the_files_it_names_exist(self, path: Path) -> None:
        named = set(re.findall(r"\$ROOT/((?:recipes|ds_configs|slurm)/[\w./-]+)", path.read_text()))
        assert named
        assert [name for name in named if not (ROOT / name).exists()] == []

    def test_training_comes_back(self, path: Path) -> None:
        text = path.read_text()
        options = set(re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE))
        trains = re.search(r"^(train|cell) ", text, re.MULTILINE) is not None
        assert ({"signal", "requeue", "open-mode"} <= options) == trains
        # The signal must leave time, and come before the run's own stop.
        for seconds in re.findall(r"--signal=B:USR1@(\d+)", text):
            assert int(seconds) >= 120


def test_every_setting_of_a_job_is_documented() -> None:
    text = (ROOT / "slurm" / "job.sh").read_text()
    for name, comment in re.findall(r'^: "\$\{(\w+):=[^"]*\}"(.*)$', text, re.MULTILINE):
        assert "#" in comment, name
