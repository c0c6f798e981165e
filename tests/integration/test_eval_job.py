"""slurm/eval.sh: a checkpoint of a run scored by several processes, with a stand-in for srun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment
from tests.ranks_started import Job
from tests.suite_data import make_suite_data

pytestmark = pytest.mark.dist

SRUN = """#!/bin/bash
# A task at once or, with --ntasks=1, a single one: what srun does within a job, on this machine.
tasks=$SLURM_NTASKS
while [[ $1 == --* ]]; do
    [[ $1 == --ntasks=* ]] && tasks=${1#--ntasks=}
    shift
done
for ((rank = 0; rank < tasks; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=$tasks "$@" & pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""


def tasks_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["tasks"]
    return found


def submit(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as a job of two tasks would."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    env = base_environment() | {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid() % 9000), "SLURM_NTASKS": "2",
        "SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": sys.executable, "EVAL_DATA": str(tmp_path / "data"), "DTYPE": "float32",
        "BATCH_TOKENS": "512", "TMPDIR": str(tmp_path),
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(ROOT / "slurm" / "eval.sh"), *map(str, arguments)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def test_a_checkpoint_and_the_base(tiny_recipe: Path, tmp_path: Path) -> None:
    make_suite_data(tmp_path / "data")
    out = tmp_path / "run"
    settings = [
        "--adapter.kind",
        "lora",
        "--train.steps",
        "4",
        "--optim.warmup_steps",
        "1",
        "--train.precision",
        "fp32",
    ]
    with Job(out, tiny_recipe, *settings, size=1) as job:
        assert job.codes(200) == [0], job.said()
    for step in (0, 4):
        done = submit(tmp_path, out, str(step), "--suite", "forgetting@5")
        assert done.returncode == 0, done.stdout + done.stderr
        found = tasks_of(out / "evals" / f"{step}.forgetting-5.json")
        assert {name: task["n"] for name, task in found.items()} == dict.fromkeys(
            ("hellaswag@5", "arc_challenge@5", "winogrande@5"), 5
        )
    assert not list(tmp_path.glob("eval-*")), "what was exported for the job is removed"

    # One process alone finds the same of the run's own export, which is the adapter beside its base.
    alone = [sys.executable, "-m", "evals", "run", str(out), "--suite", "forgetting@5", "--data", str(tmp_path / "data"),
             "--tokenizer", str(tiny_recipe.parent / "tokenizer.model"), "--out", str(tmp_path / "alone.json")]  # fmt: skip
    done = subprocess.run(
        alone, cwd=ROOT, env=base_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, task in tasks_of(tmp_path / "alone.json").items():
        expected = [example["nll"] for example in found[name]["examples"]]
        assert [example["nll"] for example in task["examples"]] == pytest.approx(expected, abs=1e-4)

    again = submit(tmp_path, out, "4", "--suite", "forgetting@5")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already scored at step 4") == 1, again.stdout
    assert again.stdout.count("acc_norm") == 2, "one process prints the table"

    # An interrupted job has kept its answers but has no result; the next one exports the checkpoint anew, and asks nothing.
    (out / "evals" / "4.forgetting-5.json").unlink()
    kept = out / "evals" / "kept" / "4.forgetting-5.jsonl"
    before = kept.read_bytes()
    resumed = submit(tmp_path, out, "4", "--suite", "forgetting@5")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"going on from {len(before.splitlines()) - 1} answers in {kept}" in resumed.stdout
    assert kept.read_bytes() == before
    assert tasks_of(out / "evals" / "4.forgetting-5.json") == found


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    done = submit(tmp_path, "run")
    assert done.returncode == 2
    assert done.stderr == "usage: sbatch slurm/eval.sh RUN STEP [--suite NAME ...]\n"
    done = submit(tmp_path, tmp_path / "nowhere", "3")
    assert done.returncode == 2
    assert f"{tmp_path / 'nowhere'}/checkpoints/3: no such folder" in done.stderr
