"""The demo on two nodes; a node that preflight refuses; two jobs at once on the same nodes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import ON_CPUS, Gate, python, record, story, submit, told

pytestmark = [pytest.mark.slurm, pytest.mark.dist]

SHORT = (
    "--train.steps", "4", "--optim.warmup_steps", "1", "--eval.at_start", "false", "--train.placement", "replicated",
    "--train.precision", "fp32", "--data.workers", "0",
)  # fmt: skip


def test_the_demo(cluster: Cluster, tmp_path: Path) -> None:
    """Trains on two nodes with ZeRO-3, evaluates, reports; submitted again, it says that it is done."""
    short = ("--train.steps", "6", "--optim.warmup_steps", "2", "--checkpoint.every_steps", "3")
    job = submit(cluster, tmp_path, "demo_cpu.sh", *short, OUT=str(tmp_path / "demo"), MAX_FILES="160", PREFLIGHT="yes")
    assert job.end(500) == "COMPLETED", job.output
    for name in ("base", "lora"):
        content = record(tmp_path / "demo" / name)
        assert (content["status"], content["step"]) == ("done", 6)
        assert content["world"] == {"size": 2, "launcher": "srun", "local_size": 1}
        assert content["job"]["nodes"] == ["n1", "n2"]
        assert story(tmp_path / "demo" / name) == [("started", None), ("ended", 0)]
        assert sorted(path.name for path in (tmp_path / "demo" / name / "logs").iterdir()) == ["rank0.log", "rank1.log"]
    assert job.output.count("preflight: healthy") == 1, "preflight runs once per job"
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    assert "lora" in json.dumps(report)
    assert "bits per byte" in job.output

    again = submit(cluster, tmp_path, "demo_cpu.sh", *short, OUT=str(tmp_path / "demo"), MAX_FILES="160")
    assert again.end() == "COMPLETED", again.output
    assert f"{tmp_path}/demo/base is done already" in again.output
    assert f"{tmp_path}/demo/lora is done already" in again.output


def test_a_node_that_preflight_refuses(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """n1 can't write the run directory: named, excluded, and the job comes back on the other node."""
    run = tmp_path / "run"
    # Only of preflight and training: what the batch script asks on the first node must be recorded.
    sick = python(
        tmp_path / "bin",
        f"""
if [ "$SLURMD_NODENAME" = n1 ] && [ "$1" = -u ] && [ -z "$INSIDE" ]; then
    INSIDE=1 exec unshare --mount bash -c 'mount --bind {run} {run} && mount -o remount,bind,ro {run} && exec "$0" "$@"' "$0" "$@"
fi""",
    )
    script = tmp_path / "cpt.sh"
    header = (ROOT / "slurm" / "cpt_llama7b.sh").read_text()
    script.write_text(header.replace("#SBATCH --ntasks-per-node=8", "##").replace("#SBATCH --gpus-per-node=8\n", ""))
    job = submit(
        cluster, tmp_path, script, "--run.dir", str(run), *SHORT, options=("--nodes=1-2", "--cpus-per-task=1"),
        RECIPE=str(tiny_recipe), DS_CONFIG="", PREFLIGHT="yes", PYTHON=str(sick),
    )  # fmt: skip
    assert job.end(300) == "COMPLETED", job.output
    assert story(run) == [("started", None), ("requeued", 1), ("started", None), ("ended", 0)], job.output
    first, requeued, second, _ = told(run)
    assert (first.nodes, second.nodes) == (("n1", "n2"), ("n2",))
    assert requeued.message == "preflight failed on n1; excluded; requeued (1 of at most 50)"
    assert requeued.message in job.output
    assert "n1" in job.output
    assert "Read-only file system" in job.output
    assert job.field("ExcNodeList") == "n1"
    assert record(run)["starts"][0]["world_size"] == 1


def test_two_jobs_at_once(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """On the same nodes, each with a port of its own; one of them asks for preflight only."""
    options = ("--nodes=2", *ON_CPUS)
    settings = {"RECIPE": str(tiny_recipe), "DS_CONFIG": ""}
    jobs = [
        submit(
            cluster, tmp_path, "cpt_llama7b.sh", "--run.dir", str(tmp_path / name), *SHORT, options=options, **settings
        )
        for name in ("one", "two")
    ]
    only = submit(
        cluster, tmp_path, "ift_llama7b.sh", "--run.dir", str(tmp_path / "three"), *SHORT, options=options, **settings,
        PREFLIGHT="only",
    )  # fmt: skip
    jobs[0].wait(lambda: all(job.field("JobState") == "RUNNING" for job in jobs), "two jobs at once")
    for job in (*jobs, only):
        assert job.end() == "COMPLETED", job.output
    for name in ("one", "two"):
        assert record(tmp_path / name)["world"]["size"] == 2
    assert only.output.startswith("preflight: healthy"), only.output
    assert not (tmp_path / "three" / "metrics.jsonl").exists()
    assert story(tmp_path / "three") == [("started", None), ("ended", 0)]


def test_taken_away_by_a_more_important_job(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """With a grace time Slurm signals the ranks only: saved within it, the job comes back when the nodes are free."""
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 2)
    job = submit(
        cluster, tmp_path, "cpt_llama7b.sh", "--run.dir", str(run), *SHORT, options=("--nodes=2", *ON_CPUS, "--partition=low", "--time=9"),
        RECIPE=str(tiny_recipe), DS_CONFIG="", PYTHON=str(gate.python),
    )  # fmt: skip
    job.wait(lambda: gate.made == 2, "step 2")
    important = tmp_path / "important.sh"
    important.write_text("#!/bin/bash\nsleep 5\n")
    other = submit(cluster, tmp_path, important, options=("--nodes=2", "--exclusive", "--partition=high", "--time=9"))
    job.wait(lambda: job.field("PreemptTime") not in ("None", "Unknown", ""), "preemption")
    gate.allow(3)
    job.wait(lambda: len(told(run)) == 2, "end of its ranks")
    gate.allow(4)
    assert other.end() == "COMPLETED"
    assert job.end() == "COMPLETED", job.output
    assert story(run) == [("started", None), ("requeued", 85), ("started", None), ("ended", 0)], job.output
    assert told(run)[1].message == "preempted at step 3, everything saved; requeued (1 of at most 50)"


def test_environments(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """From a job's own shell, with --export=NONE, through a container's command line, with labels: the ranks get what they need."""
    run = tmp_path / "a run"
    tools = tmp_path / "tools"
    tools.mkdir()
    container = tools / "apptainer"
    container.write_text(
        '#!/bin/bash\necho "== $# words =="\n[ "$1 $2 $3" = "exec --bind a b" ] || exit 9\nexec "${@:5}"\n'
    )
    container.chmod(0o755)
    outer = {
        "SLURM_ARRAY_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_RESTART_COUNT": "7",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    script = tmp_path / "cpt.sh"
    header = (ROOT / "slurm" / "cpt_llama7b.sh").read_text()
    settings = {
        "RECIPE": str(tiny_recipe), "DS_CONFIG": "", "PREFLIGHT": "no", "ROOT": str(ROOT), "PYTHON": sys.executable,
        "CONTAINER": f"{container} exec --bind 'a b' image.sif", "SRUN": "--label", "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
    script.write_text(
        header.replace("#SBATCH --ntasks-per-node=8", "##")
        .replace("#SBATCH --gpus-per-node=8\n", "")
        .replace("\nexport SCRATCH", f"\n{exports}export SCRATCH")
    )
    job = submit(
        cluster, tmp_path, script, "--run.dir", str(run), *SHORT, options=("--nodes=2", "--cpus-per-task=1", "--export=NONE"),
        **outer,
    )  # fmt: skip
    assert job.end() == "COMPLETED", job.output
    assert record(run)["world"]["size"] == 2, "one process per node, whatever the outer job had"
    assert told(run)[0].job == job.number, "not the outer job's task"
    assert told(run)[0].restart == 0
    assert "0: == 8 words ==" in job.output or "words ==" in job.output

    broken = submit(
        cluster, tmp_path, "cpt_llama7b.sh", options=("--nodes=1", *ON_CPUS), CONTAINER="apptainer exec --bind '/data"
    )
    elsewhere = submit(cluster, tmp_path, "cpt_llama7b.sh", options=("--nodes=1", *ON_CPUS), ROOT=str(tmp_path))
    unlimited = submit(
        cluster,
        tmp_path,
        "cpt_llama7b.sh",
        options=("--nodes=1", *ON_CPUS),
        RECIPE=str(tiny_recipe),
        MAX_REQUEUES="unlimited",
    )
    for refused, message in (
        (broken, "CONTAINER='apptainer exec --bind '/data' or SRUN='': is no line that a shell can read"),
        (elsewhere, f"ROOT={tmp_path}: must be the checkout; submit from there, or set ROOT"),
        (unlimited, "MAX_REQUEUES=unlimited: must be a whole number of 0 or more"),
    ):
        assert refused.end() == "FAILED"
        assert refused.field("ExitCode") == "2:0"
        assert message in refused.output, refused.output
