from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs import events
from tests.ranks import ROOT, base_environment
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import Submitted

pytestmark = pytest.mark.slurm

GOLDEN = sorted((ROOT / "tests/unit/launch/submit/golden").glob("*.sh"))
NAMES = {"gpu,long": "debug,other"}
"""Of the golden files' partitions, those that the cluster of the tests has instead."""


def submit(cluster: Cluster, recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m launch submit` of a tiny recipe, as on a login node."""
    json = ROOT / "ds_configs/zero3_cpu.json"
    command = [sys.executable, "-m", "launch", "submit", str(recipe), "--ds_config", str(json), *arguments]
    environment = {**base_environment(), **cluster.environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


ON_CPUS = ("--gpus", "0", "--cpus-per-task", "1", "--time", "30", "--no-preflight", "--export", "DS_ACCELERATOR=cpu")


def test_a_run_trains_on_two_nodes_and_is_recorded(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "100 % of a run"
    words = (*ON_CPUS, "--run.dir", str(run), "--train.steps", "2", "--eval.tasks.new.max_examples", "2")
    done = submit(cluster, tiny_recipe, "--nodes", "2", *words)
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[1]
    job = Submitted(cluster, number, run / "slurm")
    again = submit(cluster, tiny_recipe, "--nodes", "2", *words)
    assert again.returncode == 2
    assert f"this run has jobs in the queue already: {number} (" in again.stderr
    assert job.end() == "COMPLETED", job.output
    assert (run / "slurm" / f"{number}.out").exists()
    assert "starting 2 rank(s)" in job.output
    told = events(run)
    assert [(event.job, event.event) for event in told] == [
        (number, "submitted"),
        (number, "started"),
        (number, "ended"),
    ]
    assert told[1].nodes == ("n1", "n2")
    assert "is done already" in submit(cluster, tiny_recipe, *words).stderr


def test_what_the_cluster_does_not_have(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--run.dir", str(run), "--nodes", "4", "--gpus", "4", "--cpus-per-task", "2", "--time", "2:00:00")
    done = submit(cluster, tiny_recipe, *words, "--partition", "other", "--train.global_batch_rows", "32")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line for line in done.stderr.splitlines() if line.startswith("  - ")] == [
        "  - --nodes 4: partition other has 2",
        "  - --gpus 4: a node of partition other has 2 at most",
        "  - --cpus-per-task 2: 4 processes make 8 CPUs per node, and a node of partition other has 4 at most",
        "  - --time 2:00:00: partition other allows 1:00:00",
    ]
    done = submit(cluster, tiny_recipe, *words, "--partition", "otter", "--train.global_batch_rows", "32")
    assert "--partition otter: there is none of this name; this cluster has other, " in done.stderr
    assert not run.exists()


INNER = """\
#!/bin/bash
#SBATCH --ntasks=1
#SBATCH --output={folder}/inner.out
env | grep ^SLURM_
"""


def test_a_job_submitted_by_a_job_takes_nothing_over(cluster: Cluster, tmp_path: Path) -> None:
    inner = tmp_path / "inner.sh"
    inner.write_text(INNER.format(folder=tmp_path))
    code = f"from pathlib import Path; from launch import slurm; print(slurm.submit(Path({str(inner)!r}).read_text(), cwd=Path('/')))"
    options = ["--array=3", "--ntasks-per-node=2", f"--output={tmp_path}/outer.out", f"--chdir={ROOT}"]
    done = subprocess.run(
        ["sbatch", "--parsable", *options, f"--wrap={shlex.join([sys.executable, '-c', code])}"], cwd=ROOT,
        env={**base_environment(), **cluster.environment}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    outer = Submitted(cluster, done.stdout.strip(), tmp_path)
    assert outer.end() == "COMPLETED", (tmp_path / "outer.out").read_text()
    number = (tmp_path / "outer.out").read_text().strip()
    assert Submitted(cluster, number, tmp_path).end() == "COMPLETED"
    variables = dict(line.split("=", 1) for line in (tmp_path / "inner.out").read_text().splitlines())
    assert variables["SLURM_JOB_ID"] == number
    assert not [name for name in variables if name.startswith(("SLURM_ARRAY", "SLURM_NTASKS_PER_NODE"))]


def test_what_slurm_alone_knows(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    done = submit(cluster, tiny_recipe, *ON_CPUS, "--run.dir", str(tmp_path / "run"), "--mem", "900G")
    assert done.returncode == 1
    assert "sbatch failed: " in done.stderr
    assert "Nothing was submitted; the script is " in done.stderr


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_sbatch_accepts_every_header(cluster: Cluster, path: Path, tmp_path: Path) -> None:
    """The sizes are those of a real cluster, so that they are changed on the command line; all else is read from the file."""
    text = path.read_text().replace("/scratch/user", str(tmp_path))
    for theirs, ours in NAMES.items():
        text = text.replace(theirs, ours)
    # There are no features, reservations and other nodes, nor the job that is waited for.
    known = [
        line
        for line in text.splitlines()
        if not line.startswith(("#SBATCH --constraint", "#SBATCH --reservation", "#SBATCH --exclude"))
    ]
    script = tmp_path / "job.sh"
    script.write_text("\n".join(known) + "\n")
    small = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=30", "--dependency="]
    small += ["--gpus-per-node=2"] if "--gpus-per-node" in text else []
    small += ["--gres=gpu:2"] if "--gres" in text else []
    environment = {**os.environ, **cluster.environment}
    done = subprocess.run(
        ["sbatch", "--test-only", *small, script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_sbatch_reads_values_as_they_were(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """Blanks, quotes and number signs in what is quoted in the header."""
    run = tmp_path / "it's #1"
    comment = """a "b" 'c' \\ #d"""
    done = submit(
        cluster,
        tiny_recipe,
        *ON_CPUS,
        "--run.dir",
        str(run),
        "--name",
        'my "job" #1',
        "--sbatch=--hold",
        f"--sbatch=--comment={comment}",
    )
    assert done.returncode == 0, done.stderr
    number = done.stdout.split()[1]
    shown = cluster.run("scontrol", "show", "job", number) or ""
    cluster.run("scancel", number)
    lines = {name: value.strip() for name, _, value in (line.strip().partition("=") for line in shown.splitlines())}
    assert lines["Comment"] == comment
    assert (
        lines["StdOut"] == f"{run}/slurm/{number}.out".replace("%", "%%")
        or lines["StdOut"] == f"{run}/slurm/{number}.out"
    )
    assert 'JobName=my "job" #1' in shown
    assert f"touch {shlex.quote(str(run / 'PREEMPT'))} " in done.stdout
