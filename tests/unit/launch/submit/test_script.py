from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.submit.script import Environment, Resources, script
from launch.submit.settings import shell_line

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).parents[4]
HOME = Path("/home/user/palimpsest")
RUN = "/scratch/user/runs/code"
HERE = Environment(root=HOME, python=HOME / ".venv/bin/python", exports={"MAX_REQUEUES": "50"})
TRAIN = shell_line(["train", f"{HOME}/recipes/cpt_code_llama7b.toml", f"{HOME}/ds_configs/zero3.json"])


def asked(**values: object) -> Resources:
    """Resources of a CPU job, and what is said otherwise."""
    usual = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 2, "cpus_per_task": 1, "time": "30:00", "name": "code",
             "output": f"{RUN}/slurm/%j.out", "requeue": True}  # fmt: skip
    return Resources(**(usual | values))  # type: ignore[arg-type]


GPUS = {"nodes": 4, "gpus_per_node": 8, "tasks_per_node": 8, "cpus_per_task": 8, "time": "24:00:00"}
SCRIPTS = {
    "demo_cpu": script(
        asked(name="demo"), HERE, shell_line(["train", f"{HOME}/recipes/demo.toml", f"{HOME}/ds_configs/zero3_cpu.json"])
    ),
    "gpus_all_options": script(
        asked(
            **GPUS, partition="gpu,long", account="ab-12", qos="high", constraint="h100&ib", exclude="gpu[07-09,12]",
            reservation="study", mem="0", dependency="afterany:12", extra=("--mail-type=END,FAIL", "--comment=it's a \"test\" #1", "-H"),
        ),
        Environment(
            root=HOME, python=HOME / ".venv/bin/python", setup=("module purge", "module load cuda/12.8 gcc"),
            exports={"MAX_REQUEUES": "5", "PREFLIGHT": "no", "EXCLUDE_FAILING": "no", "SCRATCH": "/scratch/my files", "NOTE": "it's"},
        ),
        shell_line([*TRAIN.split(), *["--adapter.kind", "lora", "--adapter.rank", "64", "--optim.lr", "2e-4", "--train.stop_before", "2min"], "--run.dir", RUN]),
    ),
    "gres": script(asked(**GPUS, gres="gpu:h100:8"), HERE, TRAIN),
    "container": script(
        asked(**GPUS),
        Environment(root=HOME, python=Path("python"), container='apptainer exec --nv --bind "/scratch/my files" /images/p.sif'),
        TRAIN,
    ),
    "pyxis": script(
        asked(**GPUS),
        Environment(root=HOME, python=Path("python"), srun="--container-image=/images/p.sqsh --container-mounts=/scratch"),
        TRAIN,
    ),
    "conda": script(
        asked(**GPUS),
        Environment(
            root=HOME, python=Path("/opt/conda/envs/p/bin/python"),
            setup=('eval "$(conda shell.bash hook)"', "conda activate p"),
        ),
        TRAIN,
    ),
    "array": script(
        asked(**GPUS, array="0,3,5-9%4", output="/scratch/user/study/logs/%A_%a.out", name="rank-study"),
        Environment(root=HOME, python=HOME / ".venv/bin/python", exports={"MAX_REQUEUES": "50", "RETRIES": "2"}),
        shell_line(["cell", "/home/user/rank study.toml"]),
    ),
    "eval": script(
        asked(nodes=1, gpus_per_node=8, tasks_per_node=8, cpus_per_task=8, time="04:00:00", name="code-eval",
              dependency="afterok:12", signal_seconds=0),
        Environment(
            root=HOME, python=HOME / ".venv/bin/python",
            exports={"EVAL_DATA": "/data/evals", "DTYPE": "bfloat16", "BATCH_TOKENS": "8192"},
        ),
        shell_line(["score", RUN, "last", "--suite", "forgetting", "--suite", "learning-code@200"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
class TestGolden:
    def test_is_as_it_was(self, name: str) -> None:
        # After a change that is meant: look at the difference, and write the new text over the file.
        assert SCRIPTS[name] == (GOLDEN / f"{name}.sh").read_text()

    def test_bash_reads_it(self, name: str) -> None:
        done = subprocess.run(["bash", "-n", GOLDEN / f"{name}.sh"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
    def test_shellcheck_has_nothing_to_say(self, name: str) -> None:
        command = ["shellcheck", "-x", GOLDEN / f"{name}.sh"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_all_golden_files_are_of_a_script() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCRIPTS)


@pytest.mark.parametrize("resources", [asked(name="a\nb"), asked(extra=("--comment=a\nb",)), asked(extra=("-H\n",))])
def test_a_line_break_in_an_option(resources: Resources) -> None:
    with pytest.raises(ValueError, match=r"has a line break, which Slurm's options can't have"):
        script(resources, HERE, "train")


def test_no_empty_option() -> None:
    lines = script(asked(), HERE, "train").splitlines()
    assert not [line for line in lines if line.startswith("#SBATCH") and line.endswith("=")]
    assert not any("--gpus" in line or "--dependency" in line for line in lines)


def test_without_requeue() -> None:
    assert "#SBATCH --no-requeue\n" in script(asked(requeue=False), HERE, "train")


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40)
@given(st.lists(text, min_size=1, max_size=5), text, text, text)
def test_values_reach_bash_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], python: str, container: str, export: str
) -> None:
    """A stub in the place of slurm/job.sh prints what it was given."""
    folder = tmp_path_factory.mktemp("root", numbered=True)
    (folder / "slurm").mkdir()
    (folder / "slurm/job.sh").write_text('train() { printf "%s\\0" "$PYTHON" "$CONTAINER" "$VALUE" "$@"; }\n')
    environment = Environment(
        root=folder, python=Path("/p") / python.strip("/"), container=container, exports={"VALUE": export}
    )
    line = shell_line(["train", *words])
    done = subprocess.run(["bash"], input=script(asked(), environment, line).encode(), capture_output=True, check=True)
    assert done.stderr == b""
    given_back = [part.decode() for part in done.stdout.split(b"\0")[:-1]]
    assert given_back == [str(environment.python), container, export, *words]
