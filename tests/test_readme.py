"""The README names files, commands and settings that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.recipe import all_paths

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))


def test_files_exist() -> None:
    named = set(re.findall(r"(?:recipes|ds_configs|slurm|training|docs)/[\w./]+\.(?:toml|json|sh|py|png)", README))
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_settings_exist() -> None:
    named = set(re.findall(r"--((?:run|model|adapter|data|train|optim|checkpoint|eval)\.[\w.]+)", BLOCKS))
    assert named
    assert named - set(all_paths()) <= set(re.findall(r"--([\w.]+) \(command line\): unknown", BLOCKS))


@pytest.mark.parametrize("module", ["launch", "data_pipeline", "evals"])
def test_subcommands_exist(module: str) -> None:
    named = set(re.findall(rf"python -m {module} (\w+)", README))
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert named
    assert [name for name in named if name not in done.stdout] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)`", text))
    assert len(named) >= 5
    assert named <= targets
