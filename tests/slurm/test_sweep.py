"""A sweep as an array job: six cells on two nodes, one of which fails for good, and another one once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs import events
from tests.ranks import ROOT, base_environment
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import Submitted, python, record, story

pytestmark = [pytest.mark.slurm, pytest.mark.dist]

SWEEP = """
recipe = "{recipe}"
root = "study"

[settings]
"train.placement" = "replicated"
"train.steps" = 12
"eval.at_start" = false
"data.workers" = 0

[methods.full]
"optim.lr" = [1e-3, 2e-3, 4e-3]

[methods.lora]
"adapter.kind" = "lora"
"optim.lr" = [1e-3, 2e-3, 4e-3]
"""
FAILING = """if [ "$3" = training.main ]; then
    case "$*" in
        */full-lr4e-3*) echo "no luck"; exit 1 ;;
        */lora-lr4e-3*) [ -e {folder}/once ] || {{ touch {folder}/once; exit 1; }} ;;
    esac
fi"""
ON_CPUS = ("--nodes", "1", "--gpus", "0", "--cpus-per-task", "1", "--time", "30", "--no-preflight")


def sweep(cluster: Cluster, file: Path, *arguments: str) -> str:
    """What `python -m launch sweep` prints."""
    env = {**base_environment(), **cluster.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "sweep", str(file), *arguments], env=env, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_six_cells_of_which_one_fails(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    file, study = tmp_path / "sweep.toml", tmp_path / "study"
    file.write_text(SWEEP.format(recipe=tiny_recipe))
    failing = python(tmp_path / "bin", FAILING.format(folder=tmp_path))
    job_options = (*ON_CPUS, "--python", str(failing))
    printed = sweep(cluster, file, *job_options, "--at-once", "4", "--retries", "1")
    number = printed.removeprefix("job ").partition(":")[0]
    assert printed.startswith(f"job {number}: 6 of 6 cells of sweep, submitted with {study}/logs/array-1.sh\n")
    # The jobs read a file of what was submitted, whatever becomes of the sweep's own.
    file.rename(tmp_path / "later.toml")
    job = Submitted(cluster, number, study / "logs")
    job.wait(lambda: not (cluster.run("squeue", "--noheader", "--array") or "").strip(), "end", 400)
    (tmp_path / "later.toml").rename(file)

    names = [cell["name"] for cell in json.loads((study / "sweep.json").read_text())["cells"]]
    assert names == ["full-lr1e-3", "full-lr2e-3", "full-lr4e-3", "lora-lr1e-3", "lora-lr2e-3", "lora-lr4e-3"]
    for index, name in enumerate(names):
        assert story(study / name)[:2] == [("submitted", None), ("started", None)], job.output
        assert {event.job for event in events(study / name)} == {f"{number}_{index}"}
        assert record(study / name)["status"] == ("not started" if index == 2 else "done")

    # A busy machine may lose a node for a moment, and more starts than these.
    assert [each for each in story(study / names[2]) if each[1] is not None] == [("requeued", 1), ("ended", 1)], (
        job.output
    )
    # The last task has the array's own number: its requeue must not be everybody's.
    assert story(study / names[5]).count(("requeued", 1)) == 1

    for name in (names[0], names[1], names[3], names[4]):
        assert "stopped by SIGTERM" not in (study / name / "slurm" / "jobs.jsonl").read_text()

    listed = sweep(cluster, file, "--list").splitlines()
    assert " ".join(listed[3].split()).startswith("2 full-lr4e-3 failed - failed with exit code 1")
    assert listed[-1] == "sweep: 6 cells: 5 done, 1 failed"
    # Only what isn't done is submitted again; where it has been, nothing is.
    sweep(cluster, file, *job_options, "--sbatch=--begin=now+3hours")
    assert "#SBATCH --array=2\n" in (study / "logs" / "array-2.sh").read_text()
    assert sweep(cluster, file, "--list").splitlines()[-1] == "sweep: 6 cells: 5 done, 1 queued"
    assert sweep(cluster, file, *job_options).endswith("There is nothing to submit.\n")
    cluster.run("scancel", "--user=root")
