from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.jobs import Event, events
from launch.local import ROOT
from launch.slurm import SlurmError
from launch.submit.script import Environment, Resources
from launch.sweep.array_job import array_script, next_files, submit, task_list
from launch.sweep.cells import Sweep
from launch.sweep.record import read_frozen, write_record
from tests.unit.launch.sweep.conftest import FakeSlurm
from tests.unit.launch.sweep.sweeps import sweep_of

GOLDEN = Path(__file__).parent / "golden"
RESOURCES = Resources(
    nodes=1,
    gpus_per_node=8,
    tasks_per_node=8,
    cpus_per_task=8,
    time="24:00:00",
    name="rank-study",
    output="",
    partition="gpu",
    requeue=True,
)
ENVIRONMENT = Environment(
    root=Path("/shared/palimpsest"), python=Path("/shared/palimpsest/.venv/bin/python"),
    exports={"MAX_REQUEUES": "50", "SCRATCH": "/scratch/me", "RETRIES": "1"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("indices", "at_once", "text"),
    [([0], None, "0"), ([0, 1], None, "0-1"), ([0, 3, 5, 6, 7, 9], 4, "0,3,5-7,9%4"), ([998, 999], 1, "998-999%1")],
)
def test_task_lists(indices: list[int], at_once: int | None, text: str) -> None:
    assert task_list(indices, at_once) == text


@given(st.sets(st.integers(0, 999), min_size=1))
def test_a_task_list_has_every_number(indices: set[int]) -> None:
    parts = [part.partition("-") for part in task_list(sorted(indices)).split(",")]
    assert [n for first, _, last in parts for n in range(int(first), int(last or first) + 1)] == sorted(indices)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    sweep = sweep_of(tmp_path)
    write_record(sweep)
    return sweep


def test_the_script(sweep: Sweep, tmp_path: Path) -> None:
    """To renew it: write what it is compared with."""
    cells = [sweep.cells[index] for index in (0, 1, 3)]
    text = array_script(sweep, cells, RESOURCES, ENVIRONMENT, next_files(sweep)[1], 2)
    path = tmp_path / "array.sh"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-x", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    assert text.replace(str(tmp_path), "/shared") == (GOLDEN / "array.sh").read_text()


def test_a_submission(sweep: Sweep, fake_slurm: FakeSlurm) -> None:
    cells = [sweep.cells[index] for index in (1, 4)]
    job, path = submit(sweep, cells, RESOURCES, ENVIRONMENT, None)
    assert (job, path) == ("100", sweep.root / "logs/array-1.sh")
    # Held, and let go when everything is written; the script for people isn't.
    assert "#SBATCH --hold\n" in fake_slurm.script
    assert fake_slurm.script.replace("#SBATCH --hold\n", "") == path.read_text()
    assert "--array=1,4\n" in fake_slurm.script
    assert fake_slurm.scontrol_calls == ["release 100"]
    for cell in cells:
        (event,) = events(cell.run_dir)
        expected = Event(job=f"100_{cell.index}", event="submitted", message="array of sweep", at=event.at)
        assert event == expected
        assert read_frozen(path.with_suffix(".json"), cell.index)[2:] == cell.arguments
    assert not sweep.cells[0].run_dir.exists()
    assert submit(sweep, cells, RESOURCES, ENVIRONMENT, None)[1] == sweep.root / "logs/array-2.sh"


def test_what_is_submitted_reads_its_own_cells(sweep: Sweep, fake_slurm: FakeSlurm) -> None:
    submit(sweep, sweep.cells, RESOURCES, ENVIRONMENT, None)
    assert fake_slurm.script.splitlines()[-1] == f"cell {sweep.root}/logs/array-1.json"


def test_a_root_with_a_percent_sign(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    sweep = sweep_of(tmp_path, head='recipe = "recipe.toml"\nroot = "50%A"\n')
    write_record(sweep)
    _, path = submit(sweep, sweep.cells, RESOURCES, ENVIRONMENT, None)
    assert f"#SBATCH --output={tmp_path}/50%%A/logs/%A_%a.out\n" in fake_slurm.script
    assert path.parent == tmp_path / "50%A" / "logs"


def test_a_refusal_leaves_nothing_behind(sweep: Sweep, fake_slurm: FakeSlurm) -> None:
    fake_slurm.says("sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    with pytest.raises(SlurmError, match="invalid account"):
        submit(sweep, sweep.cells, RESOURCES, ENVIRONMENT, None)
    assert list((sweep.root / "logs").iterdir()) == []
    assert not sweep.cells[0].run_dir.exists()
