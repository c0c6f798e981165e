"""Storage that is full, read-only, away or slow while a run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.ranks import ROOT, base_environment, free_port
from tests.unit.training.checkpoint.checking import newest_good, verify

pytestmark = pytest.mark.dist

PATIENCE = 120.0
"""Seconds; what is waited for takes a few."""


class Job:
    """Two ranks that make as many steps as they are allowed to."""

    def __init__(self, recipe: Path, run: Path, folder: Path, *settings: str, path: str = "", **env: str) -> None:
        self.run, self.folder = run, folder
        folder.mkdir(exist_ok=True)
        (folder / "allowed").write_text("0")
        (folder / "made").write_text(str(self.newest()))
        port = free_port()
        self._output = folder / "output"
        self._ranks = []
        with self._output.open("wb") as output:
            for rank in range(2):
                environment = base_environment() | env | {
                    "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
                }  # fmt: skip
                command = [
                    sys.executable, "-m", "tests.integration.gated_run", str(folder), "--recipe", str(recipe),
                    "--run.dir", str(run), "--adapter.kind", "none", "--train.placement", "replicated", *settings,
                ]  # fmt: skip
                self._ranks.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
                )

    def allow(self, steps: int) -> None:
        """Let it train until so many steps are made."""
        temporary = self.folder / "allowed.tmp"
        temporary.write_text(str(steps))
        temporary.replace(self.folder / "allowed")

    def made(self) -> int:
        """How many steps are made."""
        return int((self.folder / "made").read_text() or 0)

    def train(self, steps: int) -> None:
        """Let it train, and wait until it has."""
        self._wait(f"step {steps}", lambda: self.made() >= steps, lambda: self.allow(steps))

    def until(self, what: str, condition: Callable[[], Any]) -> None:
        """Let it train until something is so: ranks look after saves between two steps."""
        self._wait(what, condition, lambda: self.allow(self.made() + 1), pause=0.1)

    def _wait(self, what: str, condition: Callable[[], Any], go_on: Callable[[], None], pause: float = 0.02) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.is_running(), f"waiting for {what}: the run has ended\n{self.output()}"
            assert time.monotonic() < deadline, f"waiting for {what}\n{self.output()}"
            go_on()
            time.sleep(pause)

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def is_running(self) -> bool:
        return all(rank.poll() is None for rank in self._ranks)

    def end(self) -> int:
        """Wait until it has ended; the exit code of all ranks."""
        codes = {rank.wait(PATIENCE) for rank in self._ranks}
        assert len(codes) == 1, f"{codes}\n{self.output()}"
        return codes.pop()

    def terminate(self) -> None:
        for rank in self._ranks:
            rank.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.wait()

    def checkpoints(self) -> list[str]:
        """Whatever is in checkpoints/, by name."""
        folder = self.run / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def newest(self) -> int:
        """Step of the newest checkpoint; 0 without any."""
        return max((int(name) for name in self.checkpoints() if name.isdigit()), default=0)

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "run.json").read_text())
        return found

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]


Start = Callable[..., Job]


@pytest.fixture
def start(tiny_recipe: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts jobs, and ends them whatever happens."""
    jobs: list[Job] = []

    def begin(run: Path, *settings: str, **more: str) -> Job:
        jobs.append(Job(tiny_recipe, run, tmp_path / f"job-{len(jobs)}", *settings, **more))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "storage"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", "--recursive", "--lazy", str(folder)], check=True)


def fill(storage: Path) -> Path:
    """Leave no room; return the file to remove."""
    filler = storage / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


SETTINGS = ("--checkpoint.every_steps", "5", "--checkpoint.retry_after", "1s", "--checkpoint.export", "false")


def test_a_run_goes_on_through_all_of_it(storage: Path, start: Start) -> None:
    run, away, steps = storage / "run", storage / "away", 240
    job = start(
        run, *SETTINGS, "--train.steps", str(steps), "--checkpoint.max_failed", "1000", "--eval.every_steps", "20"
    )
    job.until("a checkpoint", lambda: job.newest() >= 10)

    # Full: neither checkpoints nor scores can be written.
    filler = fill(storage)
    last = job.newest()
    job.train(job.made() + 25)
    job.until("a failed save", lambda: "could not be saved" in job.output())
    assert "No space left on device" in job.output()
    assert f"the last good one is that of step {last}" in job.output()
    assert verify(run / "checkpoints" / str(last)).step == last
    filler.unlink()
    job.until("a save once there is room", lambda: job.newest() > last)

    # Read-only.
    mount("--bind", str(run), str(run))
    mount("-o", "remount,ro,bind", str(run))
    last = job.newest()
    job.train(job.made() + 25)
    job.until("a failed save", lambda: "Read-only file system" in job.output().partition("storage works again")[2])
    assert verify(run / "checkpoints" / str(last)).step == last
    subprocess.run(["umount", str(run)], check=True)
    job.until("a save once it can be written", lambda: job.newest() > last)

    # Away.
    last = job.newest()
    run.rename(away)
    job.train(job.made() + 25)
    job.until("a failed save", lambda: "WARNING: the checkpoint" in job.output().rpartition("storage works again")[2])
    assert not run.exists(), "it could not come back if it was made anew"
    away.rename(run)
    job.until("a save once it is there", lambda: job.newest() > last)

    assert job.made() < steps, "give it more steps"
    job.allow(steps)
    assert job.end() == 0, job.output()
    output = job.output()
    assert output.count("storage works again") == 3
    assert "No such file or directory" in output
    assert output.count("WARNING: storage does not take") <= 6, "once per kind of trouble"
    assert output.count("storage takes what is written again") >= 1
    assert "Logging error" not in output
    assert "Traceback" not in output
    assert job.record()["status"] == "done"
    assert [line["step"] for line in job.metrics()] == list(range(1, steps + 1))
    assert {path.name for path in (run / "evals").iterdir()} == {f"{step}.json" for step in range(0, steps + 1, 20)}
    assert all(name.isdigit() for name in job.checkpoints()), "nothing is left of what failed"
    for name in job.checkpoints():
        verify(run / "checkpoints" / name)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [each.step for each in events.Scalars("train/loss")] == list(range(1, steps + 1))
    for rank in range(2):
        assert f"saved checkpoint of step {steps}" in (run / "logs" / f"rank{rank}.log").read_text()


def test_a_disk_that_stays_full_ends_the_run_and_nothing_is_lost(storage: Path, start: Start) -> None:
    run, steps = storage / "run", 120
    settings = (*SETTINGS, "--train.steps", str(steps), "--checkpoint.max_failed", "2", "--eval.at_start", "false")
    job = start(run, *settings)
    job.until("a checkpoint", lambda: job.newest() >= 10)
    filler, last = fill(storage), job.newest()
    job.allow(steps)
    assert job.end() == 1, job.output()
    last_line = job.output().strip().splitlines()[-1]
    assert "No space left on device" in last_line
    assert f"the last good one is that of step {last}" in last_line
    assert "failure 2 of 2 in a row (checkpoint.max_failed)" in last_line
    assert "Traceback" not in job.output()
    found, damages = newest_good(run / "checkpoints")
    assert found is not None
    assert (found.step, damages) == (last, [])
    filler.unlink()

    # It goes on where it was; asked to stop while the disk is full, it tries, and says what there is.
    job = start(run, *settings, "--checkpoint.max_failed", "100")
    job.until("a later checkpoint", lambda: job.newest() > last)
    assert f"resuming after step {last} of {steps}" in job.output()
    filler, last = fill(storage), job.newest()
    job.terminate()
    job.allow(job.made() + 1)
    assert job.end() == 1, job.output()
    last_line = job.output().strip().splitlines()[-1]
    assert "could not be saved in" in last_line
    assert f"the last good one is that of step {last}" in last_line
    assert verify(run / "checkpoints" / str(last)).step == last
    filler.unlink()

    job = start(run, *settings)
    job.allow(steps)
    assert job.end() == 0, job.output()
    assert f"resuming after step {last} of {steps}" in job.output()
    assert [line["step"] for line in job.metrics()] == list(range(1, steps + 1))
    assert all(name.isdigit() for name in job.checkpoints())


SLOW = '''
"""fsync of the process that writes checkpoints waits as long as the file named by SLOW_STORAGE is there."""
import os, sys, time
if "training.checkpoint.writer_process" in sys.orig_argv:
    own = os.fsync
    def fsync(descriptor):
        while os.path.exists(os.environ["SLOW_STORAGE"]):
            time.sleep(0.01)
        own(descriptor)
    os.fsync = fsync
'''


def test_slow_storage_delays_saves_and_not_steps(tmp_path: Path, start: Start) -> None:
    run, slow = tmp_path / "run", tmp_path / "slow"
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    slow.touch()
    settings = (
        *SETTINGS, "--train.steps", "120", "--checkpoint.every_steps", "10", "--checkpoint.write_timeout", "6s",
        "--eval.at_start", "false",
    )  # fmt: skip
    job = start(run, *settings, path=str(tmp_path), SLOW_STORAGE=str(slow))
    job.train(20)
    assert job.newest() == 0, "step 10 is being saved all the while"
    # Step 20 is to be saved, too, which waits for that.
    job.allow(21)
    time.sleep(1)
    assert job.made() == 20
    slow.unlink()
    job.until("the checkpoint of step 20", lambda: job.newest() >= 20)
    assert "10" in job.checkpoints()

    # Longer than checkpoint.write_timeout: the save has failed, and the next one is not held up.
    slow.touch()
    last = job.newest()
    job.train(last + 20)
    job.until("the timeout", lambda: "storage has not finished after 6s (checkpoint.write_timeout)" in job.output())
    slow.unlink()
    job.until("a save once storage is well", lambda: job.newest() > last)
    assert job.made() < 120, "give it more steps"
    job.allow(120)
    assert job.end() == 0, job.output()
    assert job.newest() == 120
    assert all(name.isdigit() for name in job.checkpoints()), "nothing is left of what failed"
    stalls = {line["step"]: line["stall_seconds"] for line in job.metrics()}
    assert list(stalls) == list(range(1, 121))
    assert sum(stalls[step] for step in range(11, 21)) < 1, "no step waited for storage"
    assert stalls[21] > 0.9, "the next save waited for the last"


def test_what_cannot_be_written_until_the_end_is_a_failure(tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    job = start(run, *SETTINGS, "--train.steps", "6", "--eval.at_start", "false")
    job.train(1)
    (run / "evals").touch()
    job.allow(6)
    assert job.end() == 1, job.output()
    problem = f"{run}: storage did not take evals/6.json (File exists)"
    assert job.output().strip().splitlines()[-1] == problem
    assert "Traceback" not in job.output()
    record = job.record()
    assert record["status"] == "failed"
    assert problem in record["error"]
    assert [line["step"] for line in job.metrics()] == list(range(1, 7))
    # Nothing but the scores is missing: started again it scores the model, and is done.
    (run / "evals").unlink()
    job = start(run, *SETTINGS, "--train.steps", "6", "--eval.at_start", "false")
    assert job.end() == 0, job.output()
    assert (run / "evals" / "6.json").exists()
