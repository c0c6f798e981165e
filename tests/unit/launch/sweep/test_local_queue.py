"""The queue with a program in place of training: real processes, and quick ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import launch.sweep.ranks
from launch.jobs import Event, note
from launch.sweep.board import Board
from launch.sweep.cells import Sweep
from launch.sweep.local_queue import LocalQueue, Share, only_queue, share_of_this_machine
from launch.sweep.record import write_record
from tests.unit.launch.sweep.conftest import FakeSlurm
from tests.unit.launch.sweep.sweeps import HEAD, sweep_of
from training.recipe import ConfigError
from training.world import detect_world

ROOT = Path(__file__).resolve().parents[4]
TRAINING = """
import json, os, pathlib, signal, sys, time

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = pathlib.Path(arguments["--run.dir"])
run.mkdir(parents=True, exist_ok=True)
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS CUDA_VISIBLE_DEVICES".split()
rank = os.environ["RANK"]
number = len(list(run.glob(f"start-*-{rank}")))
environment = {name: os.environ.get(name) for name in names}
(run / f"start-{number}-{rank}").write_text(json.dumps({"arguments": arguments, "environment": environment, "at": time.monotonic()}))

def record(**content):
    if rank == "0":
        (run / "run.json").write_text(json.dumps({"step": number, "steps": 4, **content}))

def stop(*_):
    record(status="preempted", stopped_by="SIGTERM")
    os._exit(85)

signal.signal(signal.SIGTERM, stop)
record(status="running")
print("rank", rank, "of", run.name)
program = json.loads(os.environ["PROGRAM"]).get(run.name, [0])
code = program[min(number, len(program) - 1)]
while code == "wait":
    time.sleep(0.01)
if code == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
if code == "lost rank":
    os.kill(os.getpid(), 9) if rank == "1" else time.sleep(600)
record(status={0: "done", 85: "preempted"}.get(code, "failed"), error="LossSpikes: 10" if code == "diverges" else "no luck")
(run / f"end-{number}-{rank}").write_text(str(time.monotonic()))
sys.exit(1 if code == "diverges" else code)
"""
GRID = "[grid]\n'run.seed' = [1, 2, 3]\n[settings]\n'train.placement' = 'replicated'\n"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "main.py").write_text(TRAINING)
    monkeypatch.setattr(launch.sweep.ranks, "ROOT", tmp_path)
    monkeypatch.setenv("PROGRAM", "{}")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweep = sweep_of(tmp_path, GRID)
    write_record(sweep)
    return sweep


class Trained:
    """What a queue did."""

    def __init__(
        self, sweep: Sweep, *, ranks: int = 1, at_once: int = 1, retries: int = 1, gpus: tuple[str, ...] = ()
    ) -> None:
        output = StringIO()
        share = Share(ranks=ranks, at_once=at_once, cores=8, gpus=gpus)
        with Board(Console(file=output, width=1000, force_terminal=False)) as board:
            self.queue = LocalQueue(sweep, sweep.cells, share=share, retries=retries, board=board)
            self.codes = self.queue.run()
        self.lines = output.getvalue().splitlines()


def start(sweep: Sweep, cell: int, number: int = 0, rank: int = 0) -> dict[str, dict[str, str]]:
    """What a rank was started with."""
    found: dict[str, dict[str, str]] = json.loads((sweep.cells[cell].run_dir / f"start-{number}-{rank}").read_text())
    return found


def program(monkeypatch: pytest.MonkeyPatch, **codes: list[int | str]) -> None:
    """Exit codes of each cell's starts, the last of them for all that follow."""
    monkeypatch.setenv("PROGRAM", json.dumps(codes))


class TestCells:
    def test_one_after_another(self, sweep: Sweep) -> None:
        done = Trained(sweep)
        assert done.codes == {"seed1": 0, "seed2": 0, "seed3": 0}
        assert [line.partition(" in ")[0] for line in done.lines] == [
            line for seed in (1, 2, 3) for line in (f"seed{seed}: started", f"seed{seed}: done, 0 steps")
        ]
        for index in (1, 2):
            before = float((sweep.cells[index - 1].run_dir / "end-0-0").read_text())
            assert float(str(start(sweep, index)["at"])) > before

    def test_what_a_rank_is_told(self, sweep: Sweep) -> None:
        Trained(sweep, ranks=2)
        first, second = (start(sweep, 0, rank=rank) for rank in (0, 1))
        assert first["arguments"] == second["arguments"]
        assert first["arguments"]["--recipe"] == str(sweep.cells[0].recipe)
        assert first["arguments"]["--run.seed"] == "1"
        assert "--ds_config" not in first["arguments"]
        port = first["environment"]["MASTER_PORT"]
        for rank, place in enumerate((first, second)):
            assert place["environment"] == {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": None, "CROSS_RANK": "0", "CROSS_SIZE": "1",
            }  # fmt: skip
            # In a Slurm job of one node, however many tasks it counts.
            environment = {key: value for key, value in place["environment"].items() if value is not None}
            job = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "8"}
            assert detect_world(environment | job).size == 2

    def test_the_deepspeed_json(self, sweep: Sweep, tmp_path: Path) -> None:
        (tmp_path / "zero.json").write_text("{}")
        Trained(sweep_of(tmp_path, GRID, HEAD + 'ds_config = "zero.json"\n'))
        assert start(sweep, 0)["arguments"]["--ds_config"] == str(tmp_path / "zero.json")

    def test_the_output_of_a_cell(self, sweep: Sweep) -> None:
        Trained(sweep, ranks=2)
        text = (sweep.root / "logs" / "seed2.log").read_text()
        assert text.splitlines()[1].endswith(" seed2")
        assert {"rank 0 of seed2", "rank 1 of seed2"} < set(text.splitlines())

    def test_several_at_once_share_the_machine(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        Trained(sweep, ranks=2, at_once=3, gpus=("0", "1", "2", "3", "5", "7"))
        places = [start(sweep, cell)["environment"] for cell in range(3)]
        assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0,1", "2,3", "5,7"]
        assert {place["OMP_NUM_THREADS"] for place in places} == {"1"}
        assert len({place["MASTER_PORT"] for place in places}) == 3

    def test_several_at_once_run_at_once(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        # Each waits for the other one.
        text = TRAINING.replace(
            'print("rank"', 'while len(list(run.parent.glob("seed*/start-*"))) < 2: time.sleep(0.01)\nprint("rank"'
        )
        (tmp_path / "training" / "main.py").write_text(text)
        assert set(Trained(sweep, at_once=2).codes.values()) == {0}


class TestFailures:
    def test_one_is_tried_again_and_the_queue_goes_on(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        program(monkeypatch, seed1=[1, 0], seed2=[7])
        done = Trained(sweep, retries=2)
        assert done.codes == {"seed1": 0, "seed2": 7, "seed3": 0}
        log = sweep.root / "logs"
        assert [line for line in done.lines if "seed1" in line][:2] == [
            "seed1: started", f"seed1: failed with exit code 1: no luck; see {log}/seed1.log",
        ]  # fmt: skip
        assert [line for line in done.lines if "started" in line] == [
            "seed1: started", "seed1: started, try 2 of 3", "seed2: started", "seed2: started, try 2 of 3", "seed2: started, try 3 of 3",
            "seed3: started",
        ]  # fmt: skip

    @pytest.mark.parametrize("retries", [0, 3])
    def test_a_wrong_configuration_is_not_tried_again(
        self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, retries: int
    ) -> None:
        program(monkeypatch, seed1=[2])
        done = Trained(sweep, retries=retries)
        assert done.codes["seed1"] == 2
        assert len(list(sweep.cells[0].run_dir.glob("start-*"))) == 1

    def test_a_run_that_diverged_is_not_tried_again(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        program(monkeypatch, seed1=["diverges", 0])
        done = Trained(sweep, retries=3)
        assert done.codes == {"seed1": 1, "seed2": 0, "seed3": 0}
        assert done.lines[1].startswith("seed1: failed with exit code 1: LossSpikes: 10; see ")

    def test_a_run_that_was_stopped_is_not_tried_again(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        program(monkeypatch, seed1=[85])
        done = Trained(sweep)
        assert done.codes == {"seed1": 85, "seed2": 0, "seed3": 0}
        assert done.lines[1] == "seed1: stopped after step 0, everything saved"

    def test_the_ranks_that_a_lost_one_leaves_are_ended(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        program(monkeypatch, seed1=["lost rank"])
        monkeypatch.setattr(launch.sweep.ranks, "PATIENCE", 0.1)
        done = Trained(sweep, ranks=2, retries=0)
        assert done.codes == {"seed1": 128 + signal.SIGKILL, "seed2": 0, "seed3": 0}


QUEUE = """
import signal
import sys
from pathlib import Path
import launch.sweep.ranks
from launch.sweep.board import Board
from launch.sweep.cells import expand
from launch.sweep.definition import read_definition
from launch.sweep.local_queue import LocalQueue, Share

# The tests themselves may run under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
launch.sweep.ranks.ROOT = Path(sys.argv[1])
sweep = expand(read_definition(Path(sys.argv[1]) / "sweep.toml"))
with Board() as board:
    queue = LocalQueue(sweep, sweep.cells, share=Share(ranks=2, at_once=2, cores=2, gpus=()), retries=1, board=board)
    print(queue.run(), queue.is_stopping)
"""


class TestStopping:
    def interrupted(self, sweep: Sweep, *signals: signal.Signals) -> str:
        """What a queue prints that gets signals while its first two cells run."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        queue = subprocess.Popen(
            [sys.executable, "-c", QUEUE, str(sweep.file.parent)], env=env, stdout=subprocess.PIPE, text=True
        )
        with queue:
            until = time.monotonic() + 60
            while (
                len(list(sweep.root.glob("seed[12]/run.json"))) < 2
                or len(list(sweep.root.glob("seed[12]/start-*"))) < 4
            ):
                assert time.monotonic() < until
                assert queue.poll() is None
                time.sleep(0.01)
            lines: list[str] = []
            assert queue.stdout is not None
            for number in signals:
                queue.send_signal(number)
                while not any("stopping" in line for line in lines):
                    lines.append(queue.stdout.readline())
                    assert lines[-1], lines
            lines.append(queue.communicate(timeout=60)[0])
        assert queue.returncode == 0
        return "".join(lines)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
    def test_what_runs_is_saved_and_nothing_else_starts(
        self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        program(monkeypatch, seed1=["wait", 0], seed2=["wait", 0])
        output = self.interrupted(sweep, number)
        assert "stopping: what runs is saved first; Ctrl-C again to end it without\n" in output
        assert output.endswith("{'seed1': 85, 'seed2': 85} True\n")
        assert not sweep.cells[2].run_dir.exists()
        assert set(Trained(sweep).codes.values()) == {0}

    def test_a_second_signal_ends_what_does_not_stop(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        program(monkeypatch, seed1=["stubborn"], seed2=["stubborn"])
        output = self.interrupted(sweep, signal.SIGINT, signal.SIGINT)
        assert output.endswith("{'seed1': 137, 'seed2': 137} True\n")
        assert output.count("started") == 2

    def test_nothing_is_left_running_after_an_error(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        program(monkeypatch, seed1=["wait"], seed2=["wait"])

        class Broken(Board):
            def say(self, line: str) -> None:
                """As when nobody reads it, once both cells run."""
                until = time.monotonic() + 60
                while line == "seed2: started" and len(list(sweep.root.glob("seed[12]/run.json"))) < 2:
                    assert time.monotonic() < until
                    time.sleep(0.01)
                if line == "seed2: started":
                    raise BrokenPipeError

        share = Share(ranks=1, at_once=2, cores=8, gpus=())
        queue = LocalQueue(sweep, sweep.cells, share=share, retries=1, board=Broken(Console(file=StringIO())))
        with pytest.raises(BrokenPipeError):
            queue.run()
        for cell in sweep.cells[:2]:
            assert json.loads((cell.run_dir / "run.json").read_text())["status"] == "preempted"

    def test_a_closed_terminal_may_be_ignored(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        try:
            monkeypatch.setattr(Board, "say", lambda board, line: os.kill(os.getpid(), signal.SIGHUP))
            assert Trained(sweep).codes == {"seed1": 0, "seed2": 0, "seed3": 0}
        finally:
            signal.signal(signal.SIGHUP, before)


class TestJobsOfOthers:
    """What changes while a cell waits its turn."""

    def test_a_cell_that_is_queued_or_done_by_then(self, sweep: Sweep, fake_slurm: FakeSlurm) -> None:
        note(sweep.cells[1].run_dir, Event(job="9_1", event="submitted"))
        fake_slurm.says("squeue", "echo '9_1|PENDING|N/A||Priority'")
        sweep.cells[2].run_dir.mkdir()
        (sweep.cells[2].run_dir / "run.json").write_text('{"status": "done"}')
        done = Trained(sweep)
        assert done.codes == {"seed1": 0}
        assert done.lines[2:] == ["seed2: left to job 9_1, Priority", "seed3: done already"]

    def test_a_queue_that_is_not_known(self, sweep: Sweep, fake_slurm: FakeSlurm) -> None:
        note(sweep.cells[1].run_dir, Event(job="9_1", event="submitted"))
        fake_slurm.says("squeue", "exit 1")
        assert Trained(sweep).codes == {"seed1": 0, "seed2": 0, "seed3": 0}


class TestShares:
    @pytest.mark.parametrize(
        ("ranks", "at_once", "problems"),
        [
            (2, 2, []),
            (0, 1, ["--ranks 0: must be at least 1"]),
            (1, -1, ["--at-once -1: must be at least 1"]),
            (2, 3, ["--ranks 2 --at-once 3: 6 ranks at once need as many GPUs, and there are 4"]),
        ],
    )
    def test_more_than_there_is(self, ranks: int, at_once: int, problems: list[str]) -> None:
        assert Share(ranks=ranks, at_once=at_once, cores=1, gpus=("0", "1", "2", "3")).problems == problems
        assert Share(ranks=4, at_once=9, cores=1, gpus=()).problems == []

    def test_the_gpus_that_this_process_may_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
        assert share_of_this_machine(1, 1).gpus == ("3", "GPU-abc")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert share_of_this_machine(1, 1).gpus == ()
        assert share_of_this_machine(1, 1).cores == len(os.sched_getaffinity(0))

    def test_the_users_own_number_of_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert Share(ranks=1, at_once=1, cores=8, gpus=()).environment(0)["OMP_NUM_THREADS"] == "3"


def test_one_queue_per_sweep(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="another queue of this sweep is going on")
    with only_queue(tmp_path), refused, only_queue(tmp_path):
        pass
    with only_queue(tmp_path):
        pass


def test_storage_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_queue(tmp_path):
        pass
