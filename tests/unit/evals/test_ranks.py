"""What torchrun's variables mean; several processes are started by tests/distributed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evals.errors import EvalError
from evals.ranks import Place, joined, place_in

STARTED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_process_without_a_launcher_is_alone() -> None:
    assert place_in({"MASTER_PORT": "1"}) == Place(rank=0, size=1, local_rank=0)
    with joined(Place()):
        pass


def test_what_a_launcher_says() -> None:
    assert place_in(STARTED) == Place(rank=3, size=8, local_rank=1)


def test_what_srun_says() -> None:
    srun = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    assert place_in(srun) == Place(rank=3, size=8, local_rank=1)
    assert place_in(srun | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Place(), "srun with a single task"
    assert place_in({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == Place(), "a batch script"
    assert place_in(STARTED | srun) == Place(rank=3, size=8, local_rank=1), "torchrun's own come first"
    with pytest.raises(EvalError, match="MASTER_ADDR, MASTER_PORT is not set"):
        place_in({name: value for name, value in srun.items() if not name.startswith("MASTER")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOCAL_RANK": None}, r"LOCAL_RANK is not set; start with torchrun, or unset RANK, WORLD_SIZE, MASTER_ADDR"),
        ({"RANK": "x"}, r"must be numbers \(.*'x'\); start with torchrun"),
        ({"RANK": "8"}, r"RANK is 8 and WORLD_SIZE 8: ranks count from 0"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, str | None], message: str) -> None:
    env = {name: value for name, value in (STARTED | changes).items() if value is not None}
    with pytest.raises(EvalError, match=message):
        place_in(env)


def test_leaving_runs_nothing_that_could_still_fail() -> None:
    program = (
        "import atexit, os; {}; from evals.ranks import leave; atexit.register(os.abort); print('written'); leave({})"
    )
    for code in (0, 2):
        done = subprocess.run(
            [sys.executable, "-c", program.format("import torch", code)], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, "written\n", "")
    # Without torch it is the ordinary end.
    done = subprocess.run([sys.executable, "-c", program.format("0", 0)], capture_output=True, text=True, timeout=60)
    assert done.returncode < 0
