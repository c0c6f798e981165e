from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from launch.submit.options import add_job_arguments, environment_of, job_problems, named_variables, resources_of
from launch.submit.script import Resources


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_job_arguments(parser)
    parser.add_argument("--no-files", action="store_true")
    return parser.parse_args(list(arguments))


class TestProblems:
    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["--nodes", "0"], "--nodes 0: must be at least 1"),
            (["--gpus", "-1"], "--gpus -1: must be at least 0"),
            (["--gpus", "0", "--tasks-per-node", "0"], "--tasks-per-node 0: must be at least 1"),
            (["--cpus-per-task", "0"], "--cpus-per-task 0: must be at least 1"),
            (["--max-requeues", "-1"], "--max-requeues -1: must be at least 0"),
            (["--signal", "-1"], "--signal -1: must be at least 0"),
            (
                ["--tasks-per-node", "4"],
                "--tasks-per-node 4: with --gpus 8 there is one process per GPU; leave it out, or give as many GPUs",
            ),
            (
                ["--time", "24h"],
                "--time 24h: is no time of Slurm's; write minutes, hours:minutes:seconds or days-hours, such as 90, 24:00:00 "
                "or 2-12",
            ),
            (
                ["--time", "5"],
                "--time 5: the run is asked to save 300 s before the end (--signal), which is at once; give it more time, or a "
                "smaller --signal",
            ),
            (["--export", "1A=3"], "--export 1A=3: write NAME=VALUE"),
            (["--export", "A"], "--export A: write NAME=VALUE"),
            (["--srun"], "--srun: needs a value; write it with =, as in --srun=--container-image=image.sqsh"),
            (["--sbatch"], "--sbatch: needs an option, with =, as in --sbatch=--mail-type=END"),
            (["--sbatch", "END"], "--sbatch END: needs an option, with =, as in --sbatch=--mail-type=END"),
            (["--after", "12:"], "--after 12:: write a job's number, or a dependency such as afterany:12"),
            (["--after", "job"], "--after job: write a job's number, or a dependency such as afterany:12"),
            (["--partition", "a\nb"], "--partition: must be one line"),
            (["--container", "a\nb"], "--container: must be one line"),
            (["--srun=a\nb"], "--srun: must be one line"),
            (["--sbatch=-H\nb"], "--sbatch: must be one line"),
            (["--gres=gpu:8\n"], "--gres: must be one line"),
            (
                ["--container", "apptainer exec --bind '/data image.sif"],
                "--container apptainer exec --bind '/data image.sif: can't be read as a shell does: No closing quotation",
            ),
            (
                ['--srun=--container-mounts="/data'],
                '--srun --container-mounts="/data: can\'t be read as a shell does: No closing quotation',
            ),
            (["--srun=--mpi=none -l"],
             "--srun -l: would number the lines that srun prints, which the job reads; leave it out"),
            (["--srun=--label"],
             "--srun --label: would number the lines that srun prints, which the job reads; leave it out"),
            (["--export", "MAX_REQUEUES=lots"],
             "--export MAX_REQUEUES=lots: must be a whole number of 0 or more"),
            (["--export", "STOP_BEFORE=120"],
             '--export STOP_BEFORE=120: is no time; write a number and its unit, such as "90s", "10min", "2h" or "1 day"'),
            (["--export", "PREFLIGHT=maybe"], "--export PREFLIGHT=maybe: must be yes, no or only"),
            (["--python", "/nowhere/python"],
             "--python /nowhere/python: there is no such program on this machine; --no-files where only compute nodes have it"),
            (["--python", "/"],
             "--python /: there is no such program on this machine; --no-files where only compute nodes have it"),
            (["--sbatch=--array=0-3"],
             "--sbatch --array=0-3: several jobs would train one run; python -m launch sweep submits an array"),
            (["--sbatch=-a0-3"],
             "--sbatch -a0-3: several jobs would train one run; python -m launch sweep submits an array"),
            (["--sbatch=--arr=0"],
             "--sbatch --arr=0: several jobs would train one run; python -m launch sweep submits an array"),
            (["--gres", "gpu:h100:4"],
             "--gres gpu:h100:4: asks for 4 GPUs of each machine, and --gpus for 8"),
            (["--gres", "gpu:1", "--gpus", "0"],
             "--gres gpu:1: asks for 1 GPUs of each machine, and --gpus for 0"),
        ],
    )  # fmt: skip
    def test_each(self, arguments: list[str], problem: str) -> None:
        assert job_problems(options(*arguments)) == [problem]

    @pytest.mark.parametrize(
        "arguments",
        [
            [], ["--gpus", "0", "--tasks-per-node", "4"], ["--gpus", "4", "--tasks-per-node", "4"], ["--time", "infinite"],
            ["--export", "A=", "--export", "b_1=x=y\nz"], ["--after", "12_3"], ["--after", "12:13"], ["--after", "singleton"],
            ["--after", "afterok:12?afterany:13_*,after:14+5"], ["--sbatch=-H", "--sbatch=--mail-type=END"],
            ["--signal", "0", "--time", "1"],
            ["--container", "apptainer exec --bind '/my data' x.sif"], ["--srun=--container-mounts='/my data' --mpi=none"],
            ["--export", "MAX_REQUEUES=0", "--export", "STOP_BEFORE=90s", "--export", "PREFLIGHT=only"],
            ["--python", "python3"], ["--python", "/nowhere/python", "--no-files"], ["--sbatch=--account=a"],
            ["--python", "/nowhere/python", "--container", "apptainer exec x.sif"],
            ["--python", "/nowhere/python", "--srun=--container-image=x.sqsh"],
            ["--gres", "gpu:h100:8"], ["--gres", "gpu:h100:2(S:0),nvme:1", "--gpus", "2"], ["--gres", "nvme:1", "--gpus", "0"],
        ],
    )  # fmt: skip
    def test_nothing_wrong(self, arguments: list[str]) -> None:
        assert job_problems(options(*arguments)) == []

    def test_all_at_once(self) -> None:
        assert len(job_problems(options("--nodes", "0", "--time", "x", "--export", "y", "--after", "z"))) == 4


class TestResources:
    def test_of_gpus(self) -> None:
        assert resources_of(options("--nodes", "4"), name="a", output="b") == Resources(
            nodes=4,
            gpus_per_node=8,
            tasks_per_node=8,
            cpus_per_task=8,
            time="24:00:00",
            name="a",
            output="b",
            requeue=True,
        )

    def test_every_option(self) -> None:
        words = [
            "--gpus",
            "0",
            "--tasks-per-node",
            "3",
            "--cpus-per-task",
            "2",
            "--time",
            "1-0",
            "--signal",
            "60",
            "--after",
            "12",
            "--sbatch=-H",
            "--mem",
            "0",
            "--gres",
            "nvme:1",
        ]
        names = ("partition", "account", "qos", "constraint", "exclude", "reservation")
        given = resources_of(options(*words, *(f"--{name}=my-{name}" for name in names)), name="a", output="b")
        assert given == Resources(
            nodes=1, gpus_per_node=0, tasks_per_node=3, cpus_per_task=2, time="1-0", name="a", output="b", requeue=True,
            signal_seconds=60, dependency="afterok:12", extra=("-H",), mem="0", gres="nvme:1", partition="my-partition", account="my-account",
            qos="my-qos", constraint="my-constraint", exclude="my-exclude", reservation="my-reservation",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("after", "dependency"), [("", ""), ("12:13_4", "afterok:12:13_4"), ("afterany:12", "afterany:12")]
    )
    def test_a_dependency(self, after: str, dependency: str) -> None:
        assert resources_of(options(f"--after={after}"), name="a", output="b").dependency == dependency

    def test_cpus_have_one_task(self) -> None:
        wanted = resources_of(options("--gpus", "0"), name="a", output="b")
        assert (wanted.tasks_per_node, wanted.cpus_per_task) == (1, 2)


class TestEnvironment:
    @pytest.fixture
    def recipe(self, tmp_path: Path) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(
            '# $COMMENT\n[run]\ndir = "$SCRATCH/${USER}/x"\nbase = "${MODELS}/a"\n"$HOME" = "$UNSET $SCRATCH"\n'
        )
        return path

    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("COMMENT", "SCRATCH", "MODELS"):
            monkeypatch.setenv(name, f"/{name.lower()}")
        monkeypatch.delenv("UNSET", raising=False)

    def test_as_it_is(self, tmp_path: Path) -> None:
        here = environment_of(options(), tmp_path / "none.toml")
        assert (here.root, here.python) == (Path(__file__).parents[4], Path(sys.executable))
        assert (here.container, here.srun, here.setup, here.exports) == ("", "", (), {"MAX_REQUEUES": "50"})

    def test_variables_of_the_recipe(self, recipe: Path) -> None:
        assert named_variables(recipe) == {"SCRATCH": "/scratch", "MODELS": "/models"}
        exports = environment_of(options("--export", "SCRATCH=/x=y", "--export", "A="), recipe).exports
        assert exports == {"MAX_REQUEUES": "50", "SCRATCH": "/x=y", "MODELS": "/models", "A": ""}

    def test_a_recipe_that_is_none(self, recipe: Path) -> None:
        recipe.write_bytes(b"\xff$SCRATCH")
        assert named_variables(recipe) == {}

    @pytest.mark.parametrize(
        ("arguments", "exports"),
        [
            (["--no-preflight", "--no-exclude", "--max-requeues", "3"],
             {"MAX_REQUEUES": "3", "PREFLIGHT": "no", "EXCLUDE_FAILING": "no"}),
            # The run's own stop, two minutes before the end, must come after the signal.
            (["--signal", "120"], {"MAX_REQUEUES": "50", "STOP_BEFORE": "60s"}),
            (["--signal", "121"], {"MAX_REQUEUES": "50"}),
            (["--signal", "0"], {"MAX_REQUEUES": "50"}),
        ],
    )  # fmt: skip
    def test_variables_of_the_job(self, tmp_path: Path, arguments: list[str], exports: dict[str, str]) -> None:
        assert environment_of(options(*arguments), tmp_path / "none.toml").exports == exports

    @pytest.mark.parametrize(
        ("arguments", "python"),
        [
            (["--container", "apptainer exec x.sif"], "python"),
            (["--srun=--container-image=x.sqsh"], "python"),
            (["--srun=--cpu-bind=none"], sys.executable),
            (["--container", "apptainer exec x.sif", "--python", "/opt/bin/python3"], "/opt/bin/python3"),
        ],
    )
    def test_the_interpreter(self, tmp_path: Path, arguments: list[str], python: str) -> None:
        here = environment_of(options(*arguments, "--setup", "a", "--setup", "b"), tmp_path / "none.toml")
        assert (str(here.python), here.setup) == (python, ("a", "b"))

    def test_an_interpreter_beside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Relative to where the command is typed; a link, as in an environment's bin, is not followed."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "python").symlink_to(sys.executable)
        for written in ("./python", "bin/../python"):
            given = options("--python", written)
            assert job_problems(given) == []
            assert environment_of(given, tmp_path / "none.toml").python == tmp_path / "python"
        assert len(job_problems(options("--python", "bin/python"))) == 1
