"""Training on a real Slurm, by srun and by mpirun, on two nodes whose names no resolver knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ROOT, base_environment
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.dist]

BIN = Path(sys.executable).parent
MAIN = str(ROOT / "training" / "main.py")


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> int:
    """Submit a script and wait for its end; the exit code. Its output is in `folder`/out."""
    # Of the tests' environment no interface, which training is to find, and no port or address.
    env = {key: value for key, value in base_environment().items() if key != "GLOO_SOCKET_IFNAME"} | cluster.environment
    done = subprocess.run(
        ["sbatch", "--wait", "--parsable", f"--output={folder}/out", f"--error={folder}/out", "--open-mode=append", *options],
        input=f"#!/bin/bash\n{script}", cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    return done.returncode


def train(recipe: Path, out: Path) -> str:
    """The command line of a short run, for a shell."""
    settings = "--train.placement replicated --adapter.kind lora --train.steps 3 --eval.at_start false --checkpoint.export false"
    return f"{sys.executable} {MAIN} --recipe {recipe} --run.dir {out} {settings}"


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def losses(out: Path) -> list[tuple[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["data_hash"], pytest.approx(line["loss"], abs=1e-5)) for line in lines]


def test_srun_and_mpirun_start_the_same_run(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    script = f"""
        echo "alone:"; {train(tiny_recipe, tmp_path / "alone")}; echo "code $?"
        srun {sys.executable} -c 'from mpi4py import MPI; print("MPI sees", MPI.COMM_WORLD.size)'
        mkdir srun; touch srun/PREEMPT
        echo "srun:"; srun {train(tiny_recipe, tmp_path / "srun")}; echo "code $?"
        echo "mpirun:"; {BIN}/mpirun --allow-run-as-root -n 2 {train(tiny_recipe, tmp_path / "mpirun")}; echo "code $?"
        env | grep ^MASTER_
        echo $SLURM_JOB_ID > job
    """
    submit(cluster, tmp_path, script, "--nodes=2", "--ntasks-per-node=1")
    said = (tmp_path / "out").read_text()
    alone, _, rest = said.partition("srun:\n")
    job = (tmp_path / "job").read_text().strip()
    assert (
        f"Slurm job {job} is for 2 tasks, and this process was started without srun, so it would train alone" in alone
    )
    assert "code 2\n" in alone
    assert not (tmp_path / "alone").exists()
    # Processes of MPI would not find each other: nothing here goes by it.
    assert alone.count("MPI sees 1\n") == 2
    assert rest.count("code 0\n") == 2, said
    assert "MASTER_" not in rest

    by_srun, by_mpirun = record(tmp_path / "srun"), record(tmp_path / "mpirun")
    for found, launcher in ((by_srun, "srun"), (by_mpirun, "mpirun")):
        assert (found["status"], found["step"]) == ("done", 3)
        assert (found["world"]["size"], found["world"]["launcher"]) == (2, launcher)
        facts = {"job": job, "restart": 0, "nodes": ["n1", "n2"]}
        (start,) = found["starts"]
        assert start["job"] == facts
        assert found["job"] == {**facts, "event": "running", "at": start["at"]}
    assert by_srun["world"]["local_size"] == 1
    assert losses(tmp_path / "srun") == losses(tmp_path / "mpirun")

    # From before the job's first start.
    (note,) = by_srun["starts"][0]["notes"]
    assert note in rest
    assert "before this start: removed" in note
    assert not (tmp_path / "srun" / "PREEMPT").exists()


@pytest.mark.parametrize(
    ("srun", "refusal"),
    [
        ("srun", "srun started deepspeed or torchrun 2 times, 1 of them on this node, and this one knows of 1"),
        ("", "is for 2 nodes, and deepspeed or torchrun, which was started without srun, knows of 1"),
    ],
)
def test_launchers_that_each_begin_a_world_of_their_own(
    cluster: Cluster, tiny_recipe: Path, tmp_path: Path, srun: str, refusal: str
) -> None:
    command = train(tiny_recipe, tmp_path / "run").replace(
        sys.executable, f"{BIN}/torchrun --nproc_per_node 1 --master_port 0", 1
    )
    assert submit(cluster, tmp_path, f"{srun} {command}", "--nodes=2", "--ntasks-per-node=1") == 1
    said = (tmp_path / "out").read_text()
    assert refusal in said
    assert not (tmp_path / "run").exists()
