from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.permissions import locked
from tests.unit.training.minimal import write_recipe
from tests.unit.training.test_origin import write_checkpoint
from training import command_line
from training.command_line import (
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_WRONG_CONFIGURATION,
    Command,
    Refusal,
    parse_command_line,
)
from training.config import to_dict
from training.origin import Origin
from training.recipe import load_config

ROOT = Path(__file__).resolve().parents[3]


def torch_variables(rank: int, size: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip


@pytest.fixture
def arguments(recipe: Path) -> list[str]:
    """A command line without problems."""
    ds_config = recipe.parent / "zero3.json"
    ds_config.write_text('{\n "zero_optimization": {"stage": 3}\n}')
    return ["--recipe", str(recipe), "--ds_config", str(ds_config)]


def write_record(arguments: list[str], *overrides: str, **values: Any) -> Path:
    """The run.json of an earlier start with these settings."""
    config = load_config(Path(arguments[1]), overrides)
    config.run.dir.mkdir(parents=True)
    (config.run.dir / "run.json").write_text(json.dumps({"schema": 1, "config": to_dict(config), **values}))
    return config.run.dir


def test_exit_codes_are_a_contract() -> None:
    assert (EXIT_DONE, EXIT_WRONG_CONFIGURATION, EXIT_PREEMPTED) == (0, 2, 85)


class TestGood:
    def test_a_command(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        command = parse_command_line([*arguments, "--optim.lr", "2e-5"], {})
        assert isinstance(command, Command)
        assert command.config.optim.lr == 2e-5
        assert command.ds_config == {"zero_optimization": {"stage": 3}}
        assert (command.world.rank, command.world.size, command.world.launcher) == (0, 1, "none")
        assert capsys.readouterr() == ("", "")

    def test_the_launchers_local_rank_is_accepted_and_dropped(self, arguments: list[str]) -> None:
        for added in (["--local_rank=1"], ["--local_rank", "1"], ["--local-rank=1"]):
            command = parse_command_line([*added, *arguments], torch_variables(1, 2))
            assert isinstance(command, Command)
            assert command.world.local_rank == 1

    def test_dashes_and_equals_signs(self, arguments: list[str]) -> None:
        command = parse_command_line([f"--ds-config={arguments[3]}", f"--recipe={arguments[1]}"], {})
        assert isinstance(command, Command)

    @pytest.mark.parametrize("value", ["-1", "-1e-4", "-.5"])
    def test_a_negative_number_is_a_value(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str], value: str
    ) -> None:
        assert parse_command_line([*arguments, "--optim.lr", value], {}) == 2
        assert f"optim.lr = {float(value)} (command line): must be greater than 0" in capsys.readouterr().err

    def test_names_are_not_abbreviated(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert parse_command_line(["--rec", arguments[1], *arguments[2:]], {}) == 2
        assert "--recipe is missing" in capsys.readouterr().err


class TestWrong:
    def test_nothing_given(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert parse_command_line([], {}) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.strip().splitlines() == [
            "2 problems in the configuration; nothing was started.",
            "  - --recipe is missing: the TOML file of the run, such as recipes/demo.toml",
            "  - --ds_config is missing: the DeepSpeed JSON, such as ds_configs/zero3.json",
        ]

    def test_everything_in_one_message(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        Path(arguments[3]).write_text('{\n "zero_optimization": {"stage": 3},\n "bf16": {}\n}')
        write_recipe(Path(arguments[1]).parent, more="[optim2]\nx = 1\n")
        code = parse_command_line([*arguments, "--train.steps", "0", "stray"], torch_variables(0, 5))
        assert code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[0] == "5 problems in the configuration; nothing was started."
        text = "\n".join(lines)
        for part in (
            "'bf16' belongs to the recipe", "optim2 (", "train.steps = 0 (command line)", "'stray' is no setting",
            "train.global_batch_rows = 12",
        ):  # fmt: skip
            assert part in text

    def test_a_contradicting_world_is_reported_with_the_rest(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert parse_command_line([*arguments, "--optim.lr", "0"], {"RANK": "0", "WORLD_SIZE": "2"}) == 2
        text = capsys.readouterr().err
        assert "RANK and WORLD_SIZE are set but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not" in text
        assert "optim.lr = 0.0" in text

    @pytest.mark.parametrize("wrong", [["--optim.lr", "0"], ["--train.global_batch_rows", "3"]])
    def test_only_rank_0_prints(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str]
    ) -> None:
        refusal = parse_command_line([*arguments, *wrong], torch_variables(1, 2))
        assert isinstance(refusal, Refusal)
        assert refusal.world.rank == 1
        assert len(refusal.problem.problems) == 1
        assert capsys.readouterr() == ("", "")
        assert parse_command_line([*arguments, *wrong], torch_variables(0, 2)) == 2
        assert capsys.readouterr().err != ""

    def test_the_world_size_is_the_launchers(self, arguments: list[str]) -> None:
        assert isinstance(parse_command_line(arguments, torch_variables(0, 4)), Command)
        assert parse_command_line(arguments, torch_variables(0, 8)) == 2


class TestRunDirectory:
    def test_a_finished_run_is_done(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        run_dir = write_record(arguments, status="done")
        assert parse_command_line(arguments, torch_variables(0, 2)) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out == f"{run_dir} is done already; remove it, or choose another run.dir, to train again\n"
        assert parse_command_line(arguments, torch_variables(1, 2)) == 0
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("status", ["running", "preempted", "failed"])
    def test_an_unfinished_run_is_continued(self, arguments: list[str], status: str) -> None:
        write_record(arguments, status=status)
        assert isinstance(parse_command_line(arguments, {}), Command)

    def test_torchruns_restart_does_not_undo_a_stop(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        run_dir = write_record(arguments, status="preempted", stopped_by="PREEMPT file", finished=now)
        restart = {"TORCHELASTIC_RESTART_COUNT": "1"}
        assert parse_command_line(arguments, torch_variables(0, 2) | restart) == 85
        assert capsys.readouterr() == (
            f"{run_dir} was stopped by PREEMPT file, and torchrun's restart does not change that; "
            "start it again to continue\n", "",
        )  # fmt: skip
        assert parse_command_line(arguments, torch_variables(1, 2) | restart) == 85
        assert capsys.readouterr() == ("", "")
        for count in ({}, {"TORCHELASTIC_RESTART_COUNT": "0"}, {"SLURM_RESTART_COUNT": "1"}):
            assert isinstance(parse_command_line(arguments, torch_variables(0, 2) | count), Command)

    @pytest.mark.parametrize(
        ("environment", "last", "goes_on"),
        [
            ({}, None, False),
            ({"SLURM_JOB_ID": "8"}, None, False),
            ({"SLURM_JOB_ID": "8"}, "7", False),
            ({"SLURM_JOB_ID": "8"}, "8", True),
            ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}, "8_1", True),
            ({"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, None, True),
            ({"TORCHELASTIC_RESTART_COUNT": "1"}, None, True),
        ],
    )
    def test_whether_its_job_has_started_it_before(
        self, arguments: list[str], environment: dict[str, str], last: str | None, goes_on: bool
    ) -> None:
        write_record(arguments, status="failed", starts=[{"at": ""}, {"at": "", "job": {"job": last}} if last else {}])
        found = parse_command_line(arguments, torch_variables(0, 2) | environment)
        assert isinstance(found, Command)
        assert found.goes_on == goes_on
        assert (found.job is None) == ("SLURM_JOB_ID" not in environment)

    @pytest.mark.parametrize(
        "change",
        [
            {"status": "failed", "stopped_by": None},
            # By torchrun itself.
            {"stopped_by": "SIGTERM"},
            # By an earlier job.
            {"finished": "2020-01-01T00:00:00+00:00"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_torchruns_restart_goes_on_after_another_end(self, arguments: list[str], change: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_record(arguments, **{"status": "preempted", "stopped_by": "wall time", "finished": now, **change})
        restart = {"TORCHELASTIC_RESTART_COUNT": "1"}
        assert isinstance(parse_command_line(arguments, torch_variables(0, 2) | restart), Command)

    def test_another_recipes_directory_is_refused_with_what_differs(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dir = write_record(arguments, status="done")
        assert parse_command_line([*arguments, "--optim.lr", "1e-5", "--adapter.kind", "lora"], {}) == 2
        assert capsys.readouterr().err.strip().splitlines() == [
            "1 problem in the configuration; nothing was started.",
            f'  - run.dir = "{run_dir}": belongs to a different recipe; choose another directory, or remove it:',
            '      adapter.kind: "none" there, "lora" here',
            "      optim.lr: 0.005 there, 1e-05 here",
        ]

    def test_it_is_reported_with_the_other_problems(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dir = write_record(arguments, status="done")
        assert parse_command_line([*arguments, "--optim.lr", "0"], {}) == 2
        printed = capsys.readouterr().err
        assert "2 problems in the configuration" in printed
        assert "optim.lr = 0.0 (command line): must be greater than 0" in printed
        assert f'run.dir = "{run_dir}": belongs to a different recipe' in printed

    def test_a_value_that_cannot_be_read_is_not_compared(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_record(arguments, status="done")
        assert parse_command_line([*arguments, "--optim.lr", "fast"], {}) == 2
        printed = capsys.readouterr().err
        assert "1 problem in the configuration" in printed
        assert "must be a number" in printed

    def test_settings_that_do_not_change_the_result_may_change(self, arguments: list[str]) -> None:
        write_record(arguments, status="preempted")
        changes = [
            "--train.micro_batch_rows=2", "--train.log_every_steps=3", "--train.max_skipped_steps=3",
            "--model.activation_checkpointing=full", "--checkpoint.keep=5", "--checkpoint.every_steps=5",
            "--checkpoint.export=false", "--eval.batch_tokens=3",
        ]  # fmt: skip
        command = parse_command_line([*arguments, *changes], torch_variables(0, 3))
        assert isinstance(command, Command)
        assert command.config.checkpoint.keep == 5

    def test_a_directory_with_other_things_is_refused(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = Path(arguments[1]).parent / "out"
        folder.mkdir()
        (folder / "thesis.tex").write_text("")
        assert parse_command_line(arguments, {}) == 2
        assert "holds files but no record of a run" in capsys.readouterr().err


class TestResume:
    @pytest.fixture
    def root(self, arguments: list[str]) -> Path:
        """Checkpoints of an earlier start."""
        run_dir = write_record(arguments, status="preempted")
        for step in (5, 10):
            write_checkpoint(run_dir / "checkpoints", step, load_config(Path(arguments[1])))
        return run_dir / "checkpoints"

    def test_auto_is_the_default(self, arguments: list[str], root: Path) -> None:
        expected = Origin(root=root, kind="own")
        for more in ([], ["--resume", "auto"], ["--resume=auto"]):
            command = parse_command_line([*arguments, *more], {})
            assert isinstance(command, Command)
            assert command.origin == expected

    def test_a_path_is_relative_to_the_working_directory(
        self, arguments: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        monkeypatch.setenv("STEP", "5")
        for text in ("5", "./5", "$STEP", str(root / "5")):
            command = parse_command_line([*arguments, "--resume", text], {})
            assert isinstance(command, Command)
            assert (command.origin.checkpoint, command.origin.kind) == (root / "5", "given")
        assert (root / "10").exists(), "nothing is changed yet"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--resume"], "--resume: needs a value: auto, never, or the path of a checkpoint"),
            (["--resume="], "--resume: needs a value: auto, never, or the path of a checkpoint"),
            (
                ["--resume", "$NOT_SET_HERE/5"],
                "--resume $NOT_SET_HERE/5: the environment variable NOT_SET_HERE is not set",
            ),
            (["--resume", "/nowhere"], "--resume: /nowhere: no such folder"),
            (["--run.branch_from", "/nowhere", "--run.dir", "new"], "run.branch_from: /nowhere: no such folder"),
            (["--resume", "never"], "has checkpoints already, the newest of step 10; choose another run.dir, or leave"),
        ],
    )
    def test_problems_are_reported_with_the_others(
        self, arguments: list[str], root: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        assert parse_command_line([*arguments, *more, "--optim.eps", "0"], {}) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "optim.eps = 0.0" in printed

    @pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
    def test_a_requeued_job_does_not_mean_never(self, arguments: list[str], root: Path, name: str) -> None:
        assert parse_command_line([*arguments, "--resume", "never"], {name: "0"}) == 2
        assert isinstance(parse_command_line([*arguments, "--resume", "never"], {name: "1"}), Command)

    def test_a_done_run_goes_back_where_it_is_told_to_once(
        self, arguments: list[str], root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = json.loads((root.parent / "run.json").read_text()) | {"status": "done"}
        (root.parent / "run.json").write_text(json.dumps(record))
        assert parse_command_line(arguments, {}) == 0
        back = [*arguments, "--resume", str(root / "5")]
        command = parse_command_line(back, {})
        assert isinstance(command, Command)
        (root.parent / "run.json").write_text(json.dumps(record | dict(command.origin.facts)))
        capsys.readouterr()
        assert parse_command_line(back, {}) == 0
        assert "is done already" in capsys.readouterr().out

    def test_where_it_begins_is_decided_once(
        self, arguments: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is there when it is checked may be gone a moment later."""
        find = command_line.find_origin
        decided: list[Origin] = []

        def find_origin(*arguments: Any, **options: Any) -> Origin:
            decided.append(find(*arguments, **options))
            shutil.rmtree(root)
            return decided[-1]

        monkeypatch.setattr(command_line, "find_origin", find_origin)
        command = parse_command_line(arguments, {})
        assert isinstance(command, Command)
        assert decided == [command.origin]

    def test_it_is_in_the_help(self) -> None:
        done = run_python(MAIN, "--help")
        assert done.returncode == 0, done.stderr
        assert "[--resume auto|never|PATH]" in " ".join(done.stdout.split())


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


MAIN = """
import sys
from training.main import main
code = main(sys.argv[1:])
loaded = sorted({"torch", "deepspeed", "transformers", "mpi4py", "tyro"} & set(sys.modules))
print(f"loaded={loaded}", flush=True)
sys.exit(code)
"""


class TestProcess:
    def test_a_wrong_configuration_is_answered_without_loading_torch(self, arguments: list[str]) -> None:
        done = run_python(MAIN, *arguments, "--optim.lr", "0")
        assert done.returncode == 2
        assert done.stdout == "loaded=[]\n"
        assert "optim.lr = 0.0 (command line): must be greater than 0" in done.stderr

    def test_a_finished_run_is_answered_without_loading_torch(self, arguments: list[str]) -> None:
        write_record(arguments, status="done")
        done = run_python(MAIN, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "is done already" in done.stdout
        assert done.stdout.endswith("loaded=[]\n")

    def test_run_by_path_its_own_folder_shadows_no_library(self, arguments: list[str]) -> None:
        script = str(ROOT / "training" / "main.py")
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, script, *arguments, "--optim.lr", "0"],
            env=env, cwd=Path(arguments[1]).parent, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2
        assert "optim.lr = 0.0" in done.stderr

    @pytest.mark.parametrize("with_recipe", [False, True])
    def test_help_shows_every_setting_with_its_docstring_and_default(
        self, arguments: list[str], with_recipe: bool
    ) -> None:
        done = run_python(MAIN, *(arguments if with_recipe else []), "--help")
        assert (done.returncode, done.stderr) == (0, "")
        words = " ".join(done.stdout.split())
        assert "--optim.lr" in words
        assert "Peak learning rate." in words
        assert "Seed of everything random" in words
        assert "--adapter.kind {none,lora,monteclora}" in words
        assert "--checkpoint.export {True,False}" in words
        assert "Items of a list are separated by commas" in words
        if with_recipe:
            assert "Peak learning rate. (default: 0.005)" in words
            assert "--data.sources.text.path" in words
        else:
            assert "Peak learning rate. (default: 0.0001)" in words
            assert "(required)" in words

    def test_help_that_nobody_reads_to_its_end(self) -> None:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "training" / "main.py"), "--help"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (141, b"")

    def test_help_of_a_wrong_recipe_says_what_is_wrong_and_helps_all_the_same(self, arguments: list[str]) -> None:
        write_recipe(Path(arguments[1]).parent, more="[optim2]\nx = 1\n")
        done = run_python(MAIN, *arguments, "--help")
        assert done.returncode == 0
        assert "optim2" in done.stderr
        assert "Peak learning rate." in done.stdout


PATHS = (
    "data.sources.text.path", "data.tokenizer", "data.cache_dir", "data.chat_template", "model.base", "run.dir",
    "run.branch_from", "adapter.init_from", "eval.data_dir", "eval.tasks.old_bits.path",
)  # fmt: skip


class TestPathsThatCannotBeLookedAt:
    @pytest.mark.parametrize("name", [*PATHS, "resume"])
    def test_one_is_a_problem_beside_others(
        self, name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        private = tmp_path / "private"
        private.mkdir()
        path = private / "x" / "y"
        added = [f"--{name}", str(path), "--adapter.kind", "lora", "--optim.lr", "-1"]
        with locked(private):
            assert parse_command_line([*arguments, *added], {}) == EXIT_WRONG_CONFIGURATION
        error = capsys.readouterr().err
        assert "optim.lr = -1.0" in error
        (line,) = [line for line in error.splitlines() if f"{path} can't be looked" in line]
        assert line.startswith((f"  - {name}", f"  - --{name}"))
        assert line.endswith(f"{path} can't be looked at: Permission denied")

    @pytest.mark.parametrize(
        ("name", "inside"),
        [
            ("data.sources.text.path", "index.json"), ("data.tokenizer", "tokenizer.model"),
            ("model.base", "config.json"), ("run.dir", "run.json"), ("adapter.init_from", "adapter_config.json"),
        ],
    )  # fmt: skip
    def test_a_folder_that_may_not_be_entered(
        self, name: str, inside: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        private = tmp_path / "private"
        private.mkdir()
        with locked(private):
            assert parse_command_line([*arguments, f"--{name}", str(private), "--adapter.kind", "lora"], {}) == 2
        assert f"{private / inside} can't be looked at: Permission denied" in capsys.readouterr().err

    def test_the_checkpoints_of_the_run_itself(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        root = write_record(arguments) / "checkpoints"
        root.mkdir()
        with locked(root):
            assert parse_command_line(arguments, {}) == EXIT_WRONG_CONFIGURATION
        assert f'run.dir = "{root.parent}": {root} can\'t be looked at: Permission denied' in capsys.readouterr().err

    def test_links_in_a_circle(self, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        loop = str(tmp_path / "loop")
        for added in (["--resume", loop], ["--run.branch_from", loop], ["--run.dir", loop, "--run.branch_from", loop]):
            assert parse_command_line([*arguments, *added], {}) == EXIT_WRONG_CONFIGURATION
        error = capsys.readouterr().err
        assert f"--resume: {loop}: no such folder" in error
        assert f"run.branch_from: {loop}: no such folder" in error
        assert f'run.dir = "{loop}": is a link to what is not there' in error
