"""The scripts of slurm/ on a real Slurm of two nodes: stopped, cancelled, requeued, on fewer nodes, refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.ranks import ROOT
from tests.ranks_started import Job
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import ON_CPUS, Gate, metrics, record, story, submit, told

pytestmark = [pytest.mark.slurm, pytest.mark.dist]

STEPS = 260
SETTINGS = (
    "--train.placement", "replicated", "--train.precision", "fp32", "--train.steps", str(STEPS), "--eval.at_start", "false",
    "--data.workers", "0", "--checkpoint.every_steps", "50", "--train.log_every_steps", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without Slurm, on two ranks."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with Job(out, tiny_recipe, *SETTINGS) as job:
        assert job.codes(240) == [0, 0], job.said()
    return out


def same(run: Path, other: Path, *, tolerance: float = 0.0) -> None:
    """Every step of both: the same batches, the same losses."""
    ours, theirs = metrics(run), metrics(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    assert [line["data_hash"] for line in ours] == [line["data_hash"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=tolerance, abs=0)


def test_the_wall_time_comes(cluster: Cluster, tiny_recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Slurm's own signal before the time is up: saved, requeued, resumed, and the losses are those of an undisturbed run."""
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 5)
    job = submit(
        cluster, tmp_path, "cpt_llama7b.sh", "--run.dir", str(run), *SETTINGS,
        options=("--nodes=2", *ON_CPUS, "--time=2", "--signal=B:USR1@60"), RECIPE=str(tiny_recipe), PYTHON=str(gate.python),
        DS_CONFIG=str(ROOT / "ds_configs" / "zero3_cpu.json"), MAX_REQUEUES="3", STOP_BEFORE="5s",
    )  # fmt: skip
    allowed = 5
    while len(told(run)) < 2 and allowed < STEPS - 20:
        time.sleep(0.6)
        allowed += 1
        gate.allow(allowed)
    gate.allow(STEPS)
    assert job.end() == "COMPLETED", job.output
    assert story(run) == [("started", None), ("requeued", 85), ("started", None), ("ended", 0)], job.output
    first, requeued, second, ended = told(run)
    assert (
        f"stopped at step {requeued.step} before the wall time, everything saved; requeued (1 of at most 3)"
        == requeued.message
    )
    assert requeued.message in job.output
    assert (first.restart, second.restart) == (0, 1)
    assert second.step == requeued.step
    assert first.nodes == ended.nodes == ("n1", "n2")
    content = record(run)
    assert content["status"] == "done"
    assert content["job"]["job"] == job.number
    assert content["job"]["message"] == "done"
    assert content["world"]["launcher"] == "srun"
    assert "stopped_by" not in content or content["stopped_by"] is None
    same(run, undisturbed)


def test_stopped_cancelled_and_finished(cluster: Cluster, tiny_recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    """scancel --signal=TERM, then scancel itself: both save, none comes back; a PREEMPT file of old is no reason to stop."""
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 5)

    def start():  # type: ignore[no-untyped-def]
        return submit(
            cluster, tmp_path, "ift_llama7b.sh", "--run.dir", str(run), *SETTINGS, options=("--nodes=2", *ON_CPUS, "--time=9"),
            RECIPE=str(tiny_recipe), PYTHON=str(gate.python), DS_CONFIG=str(ROOT / "ds_configs" / "zero3_cpu.json"),
        )  # fmt: skip

    job = start()
    job.wait(lambda: gate.made == 5, "step 5")
    cluster.run("scancel", "--signal=TERM", job.number)
    time.sleep(1)
    gate.allow(20)
    assert job.end() == "FAILED"
    assert job.field("ExitCode") == "85:0"
    assert (
        told(run)[-1].message
        == f"stopped by SIGTERM at step {told(run)[-1].step}, everything saved; submit it again to go on"
    )
    assert told(run)[-1].step in (5, 6)

    job = start()
    job.wait(lambda: gate.made == 20, "step 20")
    cluster.run("scancel", job.number)
    time.sleep(1)
    gate.allow(60)
    assert job.end() == "CANCELLED"
    job.wait(lambda: len(told(run)) == 4, "note of the end")
    assert (
        "stopped by SIGTERM (scancel, or a preemption, after which Slurm requeues by itself), everything saved"
        in job.output
    )
    assert record(run)["job"]["message"] == told(run)[-1].message
    assert 20 <= told(run)[-1].step < 60

    (run / "PREEMPT").touch()
    gate.allow(STEPS)
    job = start()
    assert job.end() == "COMPLETED", job.output
    assert not (run / "PREEMPT").exists()
    assert "PREEMPT" in job.output, "it is told that it was not heeded"
    same(run, undisturbed)

    again = start()
    assert again.end() == "COMPLETED"
    assert again.output == f"{run} is done already\n"


def test_a_node_fails(cluster: Cluster, tiny_recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    """The job comes back; on the node that is left it goes on with another world size and the same batches."""
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 70)
    # Edited as the cluster guide says for a job that may have fewer nodes.
    script = tmp_path / "cpt.sh"
    header = (ROOT / "slurm" / "cpt_llama7b.sh").read_text()
    assert header.count("#SBATCH --ntasks-per-node=8") == header.count("#SBATCH --gpus-per-node=8\n") == 1
    script.write_text(header.replace("#SBATCH --ntasks-per-node=8", "##").replace("#SBATCH --gpus-per-node=8\n", ""))
    job = submit(
        cluster, tmp_path, script, "--run.dir", str(run), *SETTINGS,
        options=("--nodes=1-2", "--cpus-per-task=1", "--time=9"), RECIPE=str(tiny_recipe), PYTHON=str(gate.python),
        DS_CONFIG=str(ROOT / "ds_configs" / "zero3_cpu.json"),
    )  # fmt: skip
    job.wait(lambda: gate.made == 70, "step 70")
    assert told(run)[0].nodes == ("n1", "n2")
    cluster.kill_node("n2")
    try:
        gate.allow(STEPS)
        assert job.end() == "COMPLETED", job.output
    finally:
        cluster.start_node("n2")
        cluster.wait_for_nodes(2)
    starts = [event.nodes for event in told(run) if event.event == "started"]
    # Slurm may take a while to notice, and try the dead node once more.
    assert starts in ([("n1", "n2"), ("n1",)], [("n1", "n2"), ("n1", "n2"), ("n1",)]), told(run)
    failed = told(run)[1]
    if failed.event == "started":
        # Slurm was faster than the ranks, ended the script, and brought the job back by itself.
        assert (failed.step, failed.restart) == (70, 1)
    else:
        assert (failed.event, failed.step) == ("requeued", 70)
        assert "died without a word" in failed.message
        assert "retry 1 of 2; requeued (1 of at most 50)" in failed.message
    assert [start["world_size"] for start in record(run)["starts"]] == [2, 1]
    same(run, undisturbed, tolerance=1e-5)


def test_limits_and_refusals(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    """What does not come back: a wrong recipe, a job at its limit; both say why."""
    settings = {"RECIPE": str(tiny_recipe), "DS_CONFIG": str(ROOT / "ds_configs" / "zero3_cpu.json")}
    options = ("--nodes=1", *ON_CPUS, "--time=9")
    wrong = submit(cluster, tmp_path, "cpt_llama7b.sh", "--run.dir", str(tmp_path / "wrong"), "--optim.lrr", "3", options=options, **settings)  # fmt: skip

    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 5)
    limited = submit(
        cluster, tmp_path, "cpt_llama7b.sh", "--run.dir", str(run), *SETTINGS, options=options, **settings,
        PYTHON=str(gate.python), MAX_REQUEUES="0",
    )  # fmt: skip
    limited.wait(lambda: gate.made == 5, "step 5")
    cluster.run("scancel", "--batch", "--signal=USR1", limited.number)
    time.sleep(1)
    gate.allow(20)
    assert limited.end() == "FAILED"
    message = told(run)[-1].message
    assert "not requeued: the limit of 0 requeues is reached (MAX_REQUEUES); submit it again to go on" in message
    assert message in limited.output
    assert record(run)["job"] == {**record(run)["job"], "message": message, "event": "ended", "code": 85}
    assert record(run)["status"] == "preempted"

    assert wrong.end() == "FAILED"
    assert wrong.field("ExitCode") == "2:0"
    assert "--optim.lrr (command line): unknown setting; did you mean optim.lr?" in wrong.output
    assert not (tmp_path / "wrong").exists()
