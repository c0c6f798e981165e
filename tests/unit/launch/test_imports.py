from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "deepspeed", "transformers", "numpy", "mpi4py", "tyro", "sentencepiece", "matplotlib")


@pytest.mark.parametrize(
    "module",
    [
        "launch", "launch.plan.command", "launch.plan.table", "launch.plan.units", "launch.demo", "launch.local", "launch.__main__",
        "training", "training.config", "training.recipe", "training.ds_json", "training.record.run_record", "training.world",
        "training.files", "training.schedule", "training.randomness", "training.stopping", "training.command_line",
        "training.main", "training.costs.memory", "training.costs.communication", "training.costs.flops", "training.costs.fitting",
    ],
)  # fmt: skip
def test_what_a_login_node_needs_imports_no_heavy_library(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
