"""Training starts in environments as they are on clusters: not activated, through wrappers and containers, without a home."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT

pytestmark = pytest.mark.dist


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_bare_environment_in_a_container(tiny_recipe: Path, tmp_path: Path) -> None:
    """ZeRO-3 needs ninja, which is beside the interpreter and not on PATH; the container's line and a wrapper come before it."""
    python = program(tmp_path / "python-of-the-project", f'exec {sys.executable} "$@"')
    container = program(tmp_path / "apptainer", 'shift 3 # exec --nv image.sif\nexec "$@"')
    out = tmp_path / "run"
    done = subprocess.run(
        [container, "exec", "--nv", "image.sif", python, "-m", "training.main", "--ds_config", "ds_configs/zero3_cpu.json",
         "--recipe", tiny_recipe, "--run.dir", out, "--adapter.kind", "lora", "--train.steps", "2", "--optim.warmup_steps", "1",
         "--eval.at_start", "false"],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_a_machine_that_cannot_compile_says_so(tiny_recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.main", "--ds_config", "ds_configs/zero3_cpu.json", "--recipe", tiny_recipe,
         "--run.dir", tmp_path / "run"],
        cwd=ROOT, env={"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "lacks the C++ compiler c++; install that, or take train.placement" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
