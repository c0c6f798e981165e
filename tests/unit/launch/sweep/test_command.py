from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import launch.sweep.command
from launch.__main__ import main
from launch.jobs import Event, events, note
from launch.sweep.local_queue import LocalQueue
from launch.sweep.record import write_record
from tests.unit.launch.sweep.conftest import FakeSlurm
from tests.unit.launch.sweep.sweeps import GRID, HEAD, SETTINGS, sweep_of, write_sweep

CPUS = ("--gpus", "0", "--cpus-per-task", "1")
pytestmark = pytest.mark.usefixtures("no_slurm")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_sweep(tmp_path)


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The problems that a command which starts nothing reports."""
    assert main(["sweep", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return [line.removeprefix("  - ") for line in printed.err.splitlines() if line.startswith("  - ")]


def set_status(run_dir: Path, status: str, *, exist_ok: bool = False, **content: str) -> None:
    """Of a run, whose configuration is left out."""
    run_dir.mkdir(parents=True, exist_ok=exist_ok)
    (run_dir / "run.json").write_text(json.dumps({"status": status, "step": 20, "steps": 20, **content}))


class TestShowing:
    def test_the_list(self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        set_status(tmp_path / "study/lr1e-5-seed2", "done")
        assert main(["sweep", str(file), "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[2] == "   1  lr1e-5-seed2  done         20/20"
        assert lines[-1] == "sweep: 6 cells: 1 done, 5 not started"
        assert not (tmp_path / "study/sweep.json").exists()

    def test_a_cell_for_a_job(self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sweep", str(file), "--cell", "4"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == str(tmp_path / "recipe.toml")
        assert lines[1].endswith("ds_configs/zero3.json")
        assert lines[2:] == sweep_of(tmp_path).cells[4].arguments

    @pytest.mark.parametrize("index", ["6", "-1"])
    def test_a_cell_that_is_not_there(self, file: Path, capsys: pytest.CaptureFixture[str], index: str) -> None:
        assert wrong(capsys, str(file), f"--cell={index}") == [f"--cell {index}: sweep.toml has the cells 0 to 5"]

    def test_a_dry_run(self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        set_status(tmp_path / "study/lr1e-5-seed1", "done")
        before = sorted(tmp_path.rglob("*"))
        assert main(["sweep", str(file), "--nodes", "1", *CPUS, "--at-once", "3", "--retries", "4", "--dry-run"]) == 0
        printed = capsys.readouterr()
        assert "sweep: 6 cells: 1 done, 5 not started\n" in printed.out
        assert "#SBATCH --array=1-5%3\n" in printed.out
        assert "export RETRIES=4 " in printed.out
        assert f"\ncell {tmp_path}/study/logs/array-1.json\n" in printed.out
        assert "Cell 1 is trained by\npython -m training.main --recipe " in printed.out
        assert f'warning: root = "{tmp_path}/study": is in /tmp' in printed.err
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("more", [(), ("--local",)])
    def test_a_dry_run_without_slurm(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
    ) -> None:
        (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
        file = write_sweep(tmp_path, SETTINGS + GRID, HEAD + 'ds_config = "zero.json"\n')
        assert main(["sweep", str(file), "--dry-run", *more]) == 0
        out = capsys.readouterr().out
        assert "#SBATCH" not in out
        assert f"Cell 0 is trained by\npython -m training.main --ds_config {tmp_path}/zero.json --recipe " in out


class TestProblems:
    def test_nothing_is_said_to_be_done(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert wrong(capsys, str(file)) == [
            "what to do with the cells? --list shows them, --local trains them here, --nodes N submits them"
        ]

    def test_settings_on_the_command_line(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert wrong(capsys, str(file), "--local", "--optim.lr", "1") == [
            "--optim.lr 1: settings of a sweep go in its file, in [settings]"
        ]

    def test_all_at_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = write_sweep(tmp_path, SETTINGS + '"optim.beta1" = 3.0\n' + GRID)
        found = wrong(capsys, str(file), "--local", "--nodes", "0", "--at-once", "0", "--retries", "-1")
        assert found == [
            "--at-once 0: must be at least 1",
            "--retries -1: must be at least 0",
            "--local and --nodes: cells run here or in jobs; give one of the two",
            "--nodes 0: must be at least 1",
            "optim.beta1 = 3.0 (sweep.toml): must be in [0, 1)",
        ]

    def test_more_ranks_than_gpus(
        self, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert wrong(capsys, str(file), "--local") == [
            "--ranks 2 --at-once 1: 2 ranks at once need as many GPUs, and there is 1"
        ]

    def test_the_world_size_of_jobs(
        self, file: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        (found,) = wrong(
            capsys, str(file), "--nodes", "1", "--gpus", "0", "--tasks-per-node", "5", "--cpus-per-task", "1"
        )
        assert "must be divisible by the world size, which is 5" in found

    def test_what_the_cluster_does_not_have(
        self, file: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        (found,) = wrong(capsys, str(file), "--nodes", "3", *CPUS)
        assert found == "--nodes 3: partition debug has 2"

    def test_no_slurm(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (found,) = wrong(capsys, str(file), "--nodes", "1", *CPUS)
        assert found.startswith("Slurm's sbatch is not on PATH")

    def test_a_root_that_can_not_be_written(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "study").mkdir()
        (tmp_path / "study/logs").write_text("")
        assert main(["sweep", str(file), "--local"]) == 1
        assert capsys.readouterr().err == f"\n{tmp_path}/study/logs: File exists\n\n"


class TestSubmitting:
    def test_the_cells_that_nobody_has(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        sweep = sweep_of(tmp_path)
        set_status(sweep.cells[0].run_dir, "done")
        set_status(sweep.cells[1].run_dir, "failed")
        note(sweep.cells[2].run_dir, Event(job="9_2", event="submitted"))
        note(sweep.cells[3].run_dir, Event(job="9_3", event="started"))
        fake_slurm.says("squeue", "echo '9_2|PENDING|N/A||Priority'")
        assert main(["sweep", str(file), "--nodes", "1", *CPUS, "--partition", "debug"]) == 0
        assert "#SBATCH --array=1,3-5\n" in fake_slurm.script
        assert "#SBATCH --partition=debug\n" in fake_slurm.script
        assert f"#SBATCH --output={tmp_path}/study/logs/%A_%a.out\n" in fake_slurm.script
        assert events(sweep.cells[5].run_dir)[-1].job == "100_5"
        assert json.loads((tmp_path / "study/sweep.json").read_text())["name"] == "sweep"
        out = capsys.readouterr().out
        assert out == (
            f"job 100: 4 of 6 cells of sweep, submitted with {tmp_path}/study/logs/array-1.sh\n"
            f"  output  {tmp_path}/study/logs/100_<cell>.out\n"
            f"  state   python -m launch sweep {file} --list\n"
            "  stop    scancel 100; or one cell: scancel 100_1\n"
        )

    def test_nothing_is_left(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        for cell in sweep_of(tmp_path).cells:
            set_status(cell.run_dir, "done")
        assert main(["sweep", str(file), "--nodes", "1", *CPUS]) == 0
        assert capsys.readouterr().out.endswith("sweep: 6 cells: 6 done\nThere is nothing to submit.\n")
        assert not (fake_slurm.folder / "script").exists()

    def test_a_queue_that_is_not_known(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        sweep = sweep_of(tmp_path)
        fake_slurm.says("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
        # Nothing of it has ever been a job.
        assert main(["sweep", str(file), "--nodes", "1", *CPUS, "--at-once", "2"]) == 0
        (fake_slurm.folder / "script").unlink()
        capsys.readouterr()
        for how in (["--nodes", "1", *CPUS], ["--local"]):
            assert main(["sweep", str(file), *how]) == 2
            assert capsys.readouterr().err.endswith(
                "\nsqueue failed: slurm_load_jobs error: Socket timed out\n"
                "Whether cells are in the queue already is not known: nothing was started; try again later\n\n"
            )
        assert not (fake_slurm.folder / "script").exists()
        set_status(sweep.cells[0].run_dir, "running", exist_ok=True)
        for how in (["--list"], ["--nodes", "1", *CPUS, "--dry-run"]):
            assert main(["sweep", str(file), *how]) == 0
            printed = capsys.readouterr()
            assert "Socket timed out; what is queued is not known\n" in printed.err
            assert "sweep: 6 cells: 1 running, 5 not started\n" in printed.out

    def test_cells_that_diverged_are_left(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        sweep = sweep_of(tmp_path)
        for index in range(5):
            set_status(sweep.cells[index].run_dir, "failed", error="LossSpikes: 10 spikes" if index else "OSError")
        assert main(["sweep", str(file), "--nodes", "1", *CPUS]) == 0
        assert "#SBATCH --array=0,5\n" in fake_slurm.script
        line = f"{sweep.cells[1].name}: failed, as it diverged, and is left so; to train it anew remove {sweep.cells[1].run_dir}\n"
        assert capsys.readouterr().out.startswith(line)

    def test_cells_that_are_trained_here(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
    ) -> None:
        sweep = sweep_of(tmp_path)
        write_record(sweep)
        with launch.sweep.command.only_queue(sweep.root):
            assert main(["sweep", str(file), "--nodes", "1", *CPUS]) == 2
        assert "another queue of this sweep is going on" in capsys.readouterr().err
        assert not (fake_slurm.folder / "script").exists()

    def test_sbatch_refuses(self, file: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm) -> None:
        fake_slurm.says("sbatch", "echo 'sbatch: error: Invalid qos' >&2; exit 1")
        assert main(["sweep", str(file), "--nodes", "1", *CPUS]) == 2
        assert capsys.readouterr().err.endswith("\nsbatch failed: Invalid qos\n\n")


class TestHere:
    @pytest.fixture
    def trained(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Cells that a queue was given; every one ends with `code`."""
        found: dict[str, Any] = {"cells": [], "code": 0, "is_stopping": False}

        def run(queue: LocalQueue) -> dict[str, int]:
            found["cells"] = [cell.name for cell in queue._waiting]
            found["at_once"], found["retries"] = queue._share.at_once, queue._retries
            queue.is_stopping = found["is_stopping"]
            return dict.fromkeys(found["cells"], found["code"])

        monkeypatch.setattr(LocalQueue, "run", run)
        return found

    def test_what_is_not_done(
        self,
        file: Path,
        tmp_path: Path,
        trained: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
        fake_slurm: FakeSlurm,
    ) -> None:
        sweep = sweep_of(tmp_path)
        set_status(sweep.cells[0].run_dir, "done")
        set_status(sweep.cells[1].run_dir, "running")  # killed, perhaps
        note(sweep.cells[2].run_dir, Event(job="9_2", event="submitted"))
        fake_slurm.says("squeue", "echo '9_2|PENDING|N/A||Priority'")
        assert main(["sweep", str(file), "--local", "--at-once", "2", "--retries", "5"]) == 0
        assert trained["cells"] == [sweep.cells[index].name for index in (1, 3, 4, 5)]
        assert (trained["at_once"], trained["retries"]) == (2, 5)
        assert (tmp_path / "study/sweep.json").exists()
        out = capsys.readouterr().out
        assert f"sweep: 4 of 6 cells to train, in {tmp_path}/study\n" in out
        assert f"{sweep.cells[2].name}: left to job 9_2, Priority\n" in out
        assert out.splitlines()[-1] == "sweep: 6 cells: 1 done, 1 running, 1 queued, 3 not started"

    @pytest.mark.parametrize(("code", "answer"), [(0, 0), (1, 1), (2, 1), (137, 1), (85, 85)])
    def test_the_exit_code(self, file: Path, trained: dict[str, Any], code: int, answer: int) -> None:
        trained["code"] = code
        assert main(["sweep", str(file), "--local"]) == answer

    def test_after_ctrl_c(self, file: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        trained.update(code=85, is_stopping=True)
        assert main(["sweep", str(file), "--local"]) == 130
        assert capsys.readouterr().out.endswith(
            "Stopped; what was done is kept. Run the same command again to continue.\n"
        )

    def test_two_queues(
        self, file: Path, tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep = sweep_of(tmp_path)
        write_record(sweep)
        with launch.sweep.command.only_queue(sweep.root):
            assert wrong(capsys, str(file), "--local") == [
                f"{sweep.root}: another queue of this sweep is going on, or it is just being submitted; one has all its cells"
            ]

    def test_cells_that_diverged_are_left(
        self, file: Path, tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        cell = sweep_of(tmp_path).cells[1]
        set_status(cell.run_dir, "failed", error="rank 0: NonFiniteGradients: 10 steps in a row")
        assert main(["sweep", str(file), "--local"]) == 1
        assert cell.name not in trained["cells"]
        assert len(trained["cells"]) == 5
        line = f"{cell.name}: failed, as it diverged, and is left so; to train it anew remove {cell.run_dir}\n"
        assert line in capsys.readouterr().out
