"""slurm/eval_llama7b.sh on a real Slurm: a checkpoint of a run, scored by a process on each of two nodes after its training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import ON_CPUS, Submitted, submit
from tests.suite_data import make_suite_data

pytestmark = [pytest.mark.slurm, pytest.mark.dist]


def tasks_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["tasks"]
    return found


def score(cluster: Cluster, folder: Path, *arguments: str | Path, options: tuple[str, ...] = ()) -> Submitted:
    """Submit a job of two tasks."""
    return submit(
        cluster, folder, "eval_llama7b.sh", *map(str, arguments), options=("--nodes=2", *ON_CPUS, *options),
        EVAL_DATA=str(folder / "data"), DTYPE="float32", BATCH_TOKENS="512", TMPDIR=str(folder),
    )  # fmt: skip


def test_a_checkpoint_after_its_training_and_the_base(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    make_suite_data(tmp_path / "data")
    out = tmp_path / "run"
    training = submit(
        cluster, tmp_path, "ift_llama7b.sh", "--run.dir", str(out), "--adapter.kind", "lora", "--train.steps", "4",
        "--optim.warmup_steps", "1", "--train.precision", "fp32", "--train.placement", "replicated", "--eval.at_start", "false",
        options=("--nodes=1", *ON_CPUS), RECIPE=str(tiny_recipe), DS_CONFIG="",
    )  # fmt: skip
    chained = score(
        cluster, tmp_path, out, "last", "--suite", "forgetting@5", options=(f"--dependency=afterok:{training.number}",)
    )
    # Another job that waits for a training that fails never starts.
    wrong = submit(
        cluster,
        tmp_path,
        "ift_llama7b.sh",
        "--optim.lrr",
        "3",
        options=("--nodes=1", *ON_CPUS),
        RECIPE=str(tiny_recipe),
    )
    never = score(
        cluster, tmp_path, out, "last", options=(f"--dependency=afterok:{wrong.number}", "--kill-on-invalid-dep=yes")
    )
    base = score(
        cluster, tmp_path, out, "0", "--suite", "forgetting@5", options=(f"--dependency=afterok:{training.number}",)
    )
    assert training.end() == "COMPLETED", training.output
    for step, job in ((4, chained), (0, base)):
        assert job.end() == "COMPLETED", job.output
        found = tasks_of(out / "evals" / f"{step}.forgetting-5.json")
        assert {name: task["n"] for name, task in found.items()} == dict.fromkeys(
            ("hellaswag@5", "arc_challenge@5", "winogrande@5"), 5
        )
    assert never.end() == "CANCELLED"
    assert not list(tmp_path.glob("eval-*.*/")), "what was exported for the job is removed"

    # One process alone finds the same of the run's own export, which is the adapter beside its base.
    alone = [sys.executable, "-m", "evals", "run", str(out), "--suite", "forgetting@5", "--data", str(tmp_path / "data"),
             "--tokenizer", str(tiny_recipe.parent / "tokenizer.model"), "--out", str(tmp_path / "alone.json")]  # fmt: skip
    done = subprocess.run(
        alone, cwd=ROOT, env=base_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    of_checkpoint = tasks_of(out / "evals" / "4.forgetting-5.json")
    for name, task in tasks_of(tmp_path / "alone.json").items():
        expected = [example["nll"] for example in of_checkpoint[name]["examples"]]
        assert [example["nll"] for example in task["examples"]] == pytest.approx(expected, abs=1e-4)

    # What has been scored is not scored again. An interrupted job has kept its answers but has no result: the next one exports the
    # checkpoint anew, and asks nothing.
    again = score(cluster, tmp_path, out, "4", "--suite", "forgetting@5")
    assert again.end() == "COMPLETED", again.output
    assert again.output.count("already scored at step 4") == 1, again.output
    assert again.output.count("acc_norm") == 2, "one process prints the table"
    (out / "evals" / "4.forgetting-5.json").unlink()
    kept = out / "evals" / "kept" / "4.forgetting-5.jsonl"
    before = kept.read_bytes()
    resumed = score(cluster, tmp_path, out, "4", "--suite", "forgetting@5")
    assert resumed.end() == "COMPLETED", resumed.output
    assert f"going on from {len(before.splitlines()) - 1} answers in {kept}" in resumed.output
    assert kept.read_bytes() == before
    assert tasks_of(out / "evals" / "4.forgetting-5.json") == of_checkpoint


def test_what_is_missing_is_said(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    usage, nowhere = score(cluster, tmp_path, "run"), score(cluster, tmp_path, tmp_path / "nowhere", "3")
    empty = score(cluster, tmp_path, tmp_path / "empty", "last")
    for job, message in (
        (usage, "usage: sbatch slurm/eval_llama7b.sh RUN STEP [--suite NAME ...]\n"),
        (nowhere, f"{tmp_path / 'nowhere'}/checkpoints/3: no such folder"),
        (empty, f"{tmp_path / 'empty'}: has no checkpoint to score\n"),
    ):
        assert job.end() == "FAILED"
        assert job.field("ExitCode") == "2:0"
        assert message in job.output


def test_without_sbatch(tmp_path: Path) -> None:
    for script in ("cpt_llama7b.sh", "ift_llama7b.sh", "eval_llama7b.sh", "sweep_llama7b.sh", "demo_cpu.sh"):
        env = {key: value for key, value in base_environment().items() if not key.startswith("SLURM_")} | {
            "ROOT": str(ROOT)
        }
        done = subprocess.run(
            ["bash", str(ROOT / "slurm" / script)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"this is a job for Slurm; submit it: sbatch {ROOT}/slurm/{script} (without Slurm: "
        )
        # From the checkout, without ROOT.
        del env["ROOT"]
        done = subprocess.run(
            ["bash", f"slurm/{script}"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0
