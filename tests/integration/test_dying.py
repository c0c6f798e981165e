"""However a rank ends, all end within seconds, with the same exit code and the cause on the last line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import base_environment, free_port
from tests.ranks_started import BLOCKED, IN_STEP, Job

pytestmark = pytest.mark.dist

LONG = ("--train.steps", "100000", "--checkpoint.every_steps", "100000")
SECONDS = 30
"""To end on a machine that is busy with other tests; it is one second on one that is not."""


def test_a_killed_rank_ends_the_others(tiny_recipe: Path, tmp_path: Path) -> None:
    with Job(tmp_path / "run", tiny_recipe, *LONG) as job:
        job.wait_for_step(2)
        # Stacks on demand do no harm.
        job.signal(0, signal.SIGUSR2)
        job.wait_for(lambda: "most recent call first" in job.log(0))
        job.wait_for_step(len(job.metrics()) + 1)
        job.signal(1, signal.SIGKILL)
        assert job.codes(SECONDS) == [1, -signal.SIGKILL]
        line = job.last_line()
        assert line.startswith(f"rank 1 on {socket.gethostname()} died without a word (killed? out of memory?)")
        assert '; rank 0 was in "step ' in line
        assert line.endswith(f"; stacks are in {tmp_path / 'run' / 'logs'}")
        record = job.record()
        assert (record["status"], record["error"]) == ("failed", line)
        assert record["step"] >= 1
        assert "Traceback" not in job.said()
        assert "this run ends: rank 1" in job.log(0) or "Traceback" in job.log(0), "where rank 0 was"


def test_when_rank_0_is_killed_one_of_the_others_speaks(tiny_recipe: Path, tmp_path: Path) -> None:
    rows = ("--train.global_batch_rows", "6", "--train.micro_batch_rows", "1")
    with Job(tmp_path / "run", tiny_recipe, *LONG, *rows, size=3) as job:
        job.wait_for_step(2)
        job.signal(0, signal.SIGKILL)
        assert job.codes(SECONDS) == [-signal.SIGKILL, 1, 1]
        assert job.said().count("died without a word") == 1
        assert job.last_line().startswith(f"rank 0 on {socket.gethostname()} died without a word")
        record = job.record()
        assert (record["status"], record["error"]) == ("failed", job.last_line())
        assert record["finished"] is not None
        assert "Traceback" not in job.said()


@pytest.mark.parametrize(
    ("code", "error", "is_traced"),
    [
        ("raise ValueError('not 3 but 4')", "ValueError: not 3 but 4", True),
        ("from training.errors import ModelError; raise ModelError('the base has gone')", "the base has gone", False),
    ],
    ids=["error", "user error"],
)
def test_an_error_of_one_rank_is_named_not_its_echoes(
    tiny_recipe: Path, tmp_path: Path, code: str, error: str, is_traced: bool
) -> None:
    with Job(tmp_path / "run", tiny_recipe, *LONG, patches={1: IN_STEP.format(step=3, code=code)}) as job:
        assert job.codes(180) == [1, 1]
        assert job.last_line() == f"rank 1: {error}"
        assert job.said().count(error) == 1 + is_traced
        assert job.said().count("Traceback") == is_traced
        record = job.record()
        assert record["status"] == "failed"
        assert record["error"] == (
            "rank 1: ValueError: not 3 but 4" if is_traced else "rank 1: ModelError: the base has gone"
        )
        assert record["step"] == 2
        assert "Traceback" in job.log(1)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_rank_that_stands_still_is_named(tiny_recipe: Path, tmp_path: Path, victim: int) -> None:
    with Job(tmp_path / "run", tiny_recipe, *LONG, "--train.hang_timeout", "12s") as job:
        job.wait_for_step(2)
        job.signal(victim, signal.SIGSTOP)
        other = job.processes[1 - victim]
        assert other.wait(12 + SECONDS) == 1, job.said()
        line = job.last_line()
        if victim == 1:
            assert line.startswith('nothing has moved for 12 s: rank 1 is silent since "'), line
            assert ', rank 0 in "step ' in line
        else:
            assert line.startswith(f"nothing has been heard of rank 0 on {socket.gethostname()} for 12 s"), line
        assert line.endswith(f"; stacks are in {tmp_path / 'run' / 'logs'}")
        record = job.record()
        assert (record["status"], record["error"]) == ("failed", line)
        assert "most recent call first" in job.log(1 - victim)


def test_a_stop_before_the_others_have_come(tiny_recipe: Path, tmp_path: Path) -> None:
    """Rank 0 waits for a rank that never comes."""
    with Job(tmp_path / "run", tiny_recipe, ranks=range(1)) as job:

        def is_waiting() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", job.port)) == 0

        job.wait_for(is_waiting)
        job.signal(0, signal.SIGTERM)
        assert job.codes(SECONDS) == [85]
        said = "run: stopped by SIGTERM during start-up, nothing was lost; start it again to continue"
        assert job.last_line() == said
        assert not (tmp_path / "run" / "run.json").exists()


def test_a_stop_while_loading_takes_all_ranks_along(tiny_recipe: Path, tmp_path: Path) -> None:
    """Only rank 1 is asked, rank 0 is in a system call; then rank 0 only, when run.json is there."""
    marker = tmp_path / "is blocked"
    blocked = BLOCKED.format(module="training.data", name="open_data", marker=str(marker))
    with Job(tmp_path / "run", tiny_recipe, patches={0: blocked}) as job:
        job.wait_for(marker.exists)
        job.signal(1, signal.SIGUSR1)
        assert job.codes(SECONDS) == [85, 85]
        assert job.said().count("stopped by") == 1
        assert "stopped by SIGUSR1 during start-up, nothing was lost; start it again" in job.last_line()
        assert "Traceback" not in job.said()
    marker.unlink()
    blocked = BLOCKED.format(module="training.saving", name="Saver.resume", marker=str(marker))
    with Job(tmp_path / "run", tiny_recipe, patches={0: blocked, 1: blocked}) as job:
        job.wait_for(marker.exists)
        job.wait_for((tmp_path / "run" / "run.json").exists)
        job.signal(0, signal.SIGTERM)
        assert job.codes(SECONDS) == [85, 85]
        assert "stopped by SIGTERM during start-up" in job.last_line()
        assert "Traceback" not in job.said()
        record = job.record()
        assert (record["status"], record["stopped_by"]) == ("preempted", "SIGTERM")
        assert record["finished"] is not None


def test_no_time_is_left(tiny_recipe: Path, tmp_path: Path) -> None:
    wall_time = ("--train.wall_time", "1h", "--train.stop_before", "3599.5s")
    with Job(tmp_path / "run", tiny_recipe, *wall_time, size=1) as job:
        assert job.codes(SECONDS) == [85]
        assert "stopped by wall time during start-up, nothing was lost; start it again" in job.last_line()


def test_the_time_of_the_slurm_job_is_up(tiny_recipe: Path, tmp_path: Path) -> None:
    """An hour passes at once in the third step."""
    patch = (
        "import time, types\n"
        "from training import stopping\n"
        "passed = [0]\n"
        "stopping.time = types.SimpleNamespace(time=lambda: time.time() + passed[0])\n"
    )
    patch += IN_STEP.format(step=3, code="passed[0] = 3600")
    job_ends = {"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    with Job(tmp_path / "run", tiny_recipe, *LONG, size=2, patches={0: patch}, environment=job_ends) as job:
        assert job.codes(180) == [85, 85]
        assert "stopped after step 3, everything saved; start it again to continue" in job.last_line()
        record = job.record()
        assert (record["status"], record["stopped_by"], record["step"]) == ("preempted", "wall time", 3)
        assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


def test_the_reason_of_another_rank_is_written_down(tiny_recipe: Path, tmp_path: Path) -> None:
    with Job(tmp_path / "run", tiny_recipe, *LONG) as job:
        job.wait_for_step(2)
        job.signal(1, signal.SIGUSR1)
        assert job.codes(SECONDS) == [85, 85]
        assert job.record()["stopped_by"] == "SIGUSR1"


LATE_END = """
import logging, time
from training.ranks.lifeline import Lifeline
close, shut_down = Lifeline.close, logging.shutdown
def late_close(lifeline):
    time.sleep(0.5)
    close(lifeline)
def late_shutdown():
    time.sleep(0.5)
    shut_down()
Lifeline.close, logging.shutdown = late_close, late_shutdown
"""
"""A patch: the process takes its time to say goodbye, and to end."""


@pytest.mark.parametrize("late", [0, 1])
def test_a_good_end_is_no_death(tiny_recipe: Path, tmp_path: Path, late: int) -> None:
    """Whichever rank ends last, stopped in the third step and then done."""
    out = tmp_path / "run"
    preempt = IN_STEP.format(step=3, code=f"__import__('pathlib').Path({str(out)!r}, 'PREEMPT').touch()")
    patches = {rank: preempt + LATE_END * (rank == late) for rank in (0, 1)}
    with Job(out, tiny_recipe, "--train.steps", "5", patches=patches) as job:
        assert job.codes(180) == [85, 85]
        assert job.last_line() == "run: stopped after step 3, everything saved; start it again to continue"
        assert job.record()["stopped_by"] == "PREEMPT file"
        no_death(job)
    with Job(out, tiny_recipe, "--train.steps", "5", patches={late: LATE_END}) as job:
        assert job.codes(180) == [0, 0]
        assert (job.record()["status"], job.record()["step"]) == ("done", 5)
        no_death(job)


def no_death(job: Job) -> None:
    for text in (job.said(), job.log(0), job.log(1)):
        assert " died" not in text
        assert "this run ends" not in text
    assert not list(job.out.glob(".ended-*"))


STOPPED_IN_STEP_3 = """
import os, sys
from pathlib import Path
from training.main import leave, main
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    from training.engine import Engine
    own, taken = Engine.step, []
    def step(*arguments, **more):
        taken.append(None)
        if len(taken) == 3:
            Path(sys.argv[sys.argv.index("--run.dir") + 1], "PREEMPT").touch()
        return own(*arguments, **more)
    Engine.step = step
leave(main(sys.argv[1:]))
"""


def test_torchruns_restart_does_not_undo_a_stop(tiny_recipe: Path, tmp_path: Path) -> None:
    out, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(STOPPED_IN_STEP_3)
    command = [
        str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--max-restarts", "2",
        "--master_port", str(free_port()), str(program), "--recipe", str(tiny_recipe), "--run.dir", str(out),
        "--train.placement", "replicated", "--eval.at_start", "false", "--train.steps", "5",
    ]  # fmt: skip
    done = subprocess.run(command, env=base_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    assert "stopped after step 3, everything saved; start it again to continue" in done.stdout
    said = f"{out} was stopped by PREEMPT file, and torchrun's restart does not change that; start it again to continue"
    assert said in done.stdout
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["step"], len(record["starts"])) == ("preempted", 3, 1)


LATE_AFTER_A_RESTART = """
import os, sys, time
if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]) == ("1", "1"):
    time.sleep(3)
from training.main import leave, main
leave(main(sys.argv[1:]))
"""


def test_torchrun_restarts_and_the_run_goes_on(tiny_recipe: Path, tmp_path: Path) -> None:
    """Also where one rank comes later than the others, who find what it had left in torchrun's store before."""
    out, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(LATE_AFTER_A_RESTART)
    command = [
        str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--max-restarts", "1",
        "--master_port", str(free_port()), str(program), "--recipe", str(tiny_recipe), "--run.dir", str(out),
        "--train.placement", "replicated", "--eval.at_start", "false", "--train.steps", "200",
        "--checkpoint.every_steps", "20",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=base_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not any((out / "checkpoints").glob("[0-9]*")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.05)
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        ranks = sorted(int(pid) for pid in found.stdout.split())
        os.kill(ranks[1], signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, output
    assert "died without a word" in output
    assert "resuming after step" in output
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["step"], len(record["starts"])) == ("done", 200, 2)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 201))
